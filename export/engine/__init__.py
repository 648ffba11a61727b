"""How are engines of TensorRT and TensorRT-RTX built, checked and run?"""
