"""Where do the figures of the documentation come from? (nothing imports these)"""
