"""Target `tvm`: from the graph to machine code (`compile`), and from there to numbers (`session`).

emit        the graph -> Relax, channels last
joining     which functions become one, where TVM does not see it
provenance  which nodes of the graph each function computes
schedules   how the loops of each function run
winograd    which convolutions are computed with fewer multiplications; transforms: how, and what that rounds
functions   exp, sigmoid, tanh, ... as polynomials on vectors
processor   what machine code may use, and whether a processor has it
compile     the passes of TVM in order, and model.so
session     runs model.so; needs TVM's runtime alone
instrument  times of single functions
tuning      --tune: kernels chosen by measuring them; cpu_tuning: what is tried for CPUs
gpu         the same for NVIDIA's GPUs
target      what both are as targets
remote      machines that measure: this one, or a device behind TVM's RPC
"""

from dnc.targets.tvm.target import Tvm

__all__ = ["Tvm"]
