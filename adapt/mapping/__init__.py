"""How do trained parameters reach another network?"""
