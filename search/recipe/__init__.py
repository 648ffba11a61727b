"""What is asked for? (a run as a value, its steps and its costs)"""
