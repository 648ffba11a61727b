"""Which networks can be built? (backbones, and the supernet of a search space)"""
