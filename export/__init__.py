"""HOW it is deployed: ONNX graph, TensorRT engines, runners, parity."""
