"""Which images and boxes are learned from and evaluated on?"""
