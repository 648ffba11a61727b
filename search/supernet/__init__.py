"""How is the supernet trained until the search is finished? (steps, lambda, warnings, log)"""
