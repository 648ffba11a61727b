"""Which way to a network is better, and how sure is that? (`adapt study`: arms, seeds, verdicts)"""
