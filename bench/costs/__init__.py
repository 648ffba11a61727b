"""How is a cost table measured and trusted?"""
