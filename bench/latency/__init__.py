"""How is the latency of a unit or a detector measured? (graph, runtime, process, protocol)"""
