"""How does a backbone become a detector, and a file?"""
