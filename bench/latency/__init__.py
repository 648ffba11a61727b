"""How is one latency measured? (what is run, on what, in which process, how often)"""
