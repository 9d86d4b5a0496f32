"""`python -m benchmarks.cpu`: dnc's engines on the CPU beside other programs; it writes benchmarks/cpu.md.

__main__         what is measured, and how
peers            the other programs
page             what was measured as tables
measured.jsonl   what was measured
"""
