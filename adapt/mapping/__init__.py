"""How do trained parameters reach another network? (pretrained ones, or a supernet's)"""
