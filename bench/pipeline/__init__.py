"""How does a recipe become a benchmarked detector? (`adapt run`: all stages, one by one)"""
