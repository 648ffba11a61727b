"""How is a detector of another tool run beside ours? (ONNX files in YOLO's or DETR's form)"""
