"""How are finished detectors benchmarked, and how is the result reported?"""
