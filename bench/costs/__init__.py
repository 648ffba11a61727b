"""How is a cost table measured, shown, and checked against whole detectors?"""
