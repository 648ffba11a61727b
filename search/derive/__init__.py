"""Which networks are derived from a finished search? (arg max, budget, front, held-out images)"""
