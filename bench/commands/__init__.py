"""Which commands measure, or use several packages? (options and output; the work is elsewhere)"""
