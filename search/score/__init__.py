"""What do the choices of a space cost in loss, by replacing parts of a trained detector?"""
