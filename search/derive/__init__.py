"""Which networks does a finished search stand for?"""
