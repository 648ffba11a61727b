"""WHAT is adapted: search spaces, operations, supernet, cost, mapping, detectors, data, mAP."""
