"""Which networks pass when latency or AP is measured? (`--verify`, `--refine`, `--ap-gate`)"""
