"""Which formats of annotations are read? (COCO, Pascal VOC, YOLO; all become COCO's lists)"""
