"""Does a network keep what was promised? (budget, front, AP)"""
