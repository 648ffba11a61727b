"""Which ONNX graph is deployed?"""
