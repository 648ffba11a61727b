"""How does a trained detector become an ONNX file?"""
