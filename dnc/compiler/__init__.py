"""Compiling: from cfg and weights to an engine.

options      what can be asked for
source       what is compiled, and what is found with it
preparing    a target's pipeline, run on a copy of the graph
choosing     the fastest of several candidates
compiling    all of it: `dnc.compile`
explaining   what each pass did
autotuning   how each grouped convolution runs fastest
comparing    an engine against the reference or Darknet's numbers
"""
