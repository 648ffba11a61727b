"""How is a detector trained? (steps, processes and checkpoints, of a search too; fine-tuning)"""
