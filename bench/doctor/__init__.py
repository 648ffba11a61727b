"""What works on this machine, and does it really? (`adapt doctor`, `adapt doctor --verify`)"""
