"""Which recipe fits a data set and a machine? (`adapt init`)"""
