"""How does an ONNX file become a TensorRT engine, and how does that run?"""
