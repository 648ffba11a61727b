"""Which networks can be built? (backbones, and the supernet of all of them)"""
