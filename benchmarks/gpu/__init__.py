"""`python -m benchmarks.gpu`: target cuda on an NVIDIA GPU beside other programs; it writes benchmarks/gpu.md.

__main__    what is measured, in which order, within the time that is given
building    engines, weights and right values, made by many processes at once
peer        a process that has one of the alternatives open, and times it when it is asked to
translated  dnc's graph in PyTorch and in JAX
checking    whether a GPU computes what Darknet does
page        what was measured as tables
*.jsonl     what was measured
"""
