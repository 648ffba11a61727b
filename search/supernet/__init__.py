"""How are architecture and weights searched together?"""
