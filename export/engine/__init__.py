"""How does the graph become a TensorRT engine, and run?"""
