"""Which commands measure, and put the other packages together?"""
