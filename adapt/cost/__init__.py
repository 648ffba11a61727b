"""What does a detector cost? (multiply-adds, or latencies from a table)"""
