"""How are the weights of a detector trained? (steps, processes, checkpoints)"""
