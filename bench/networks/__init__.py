"""What do accuracy and latency of whole detectors come to?"""
