"""How do exported detectors run on images, and do all runtimes detect the same?"""
