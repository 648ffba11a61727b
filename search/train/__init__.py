"""How is a detector trained? (steps, processes, checkpoints of every training; fine-tuning)"""
