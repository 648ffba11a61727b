"""Which backbone, pyramid, heads and input are best together, at one latency?"""
