"""How does a backbone become a detector, and how is the detector stored?"""
