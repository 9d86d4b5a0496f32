"""Target `tvm`: from the graph to machine code, which `dnc.runtime.runners.tvm` runs.

target      what can be asked for; common: what it has in common with back end tvm of target cuda
winograd    which convolutions are computed with fewer multiplications; minimal_filtering: how, and what that rounds
emit        the graph -> Relax, channels last
compile     the passes of TVM in order, and model.so
joining     which functions become one, where TVM does not see it; calls: functions taken apart and made anew
provenance  which nodes of the graph each function computes
schedules   how the loops of each function run
functions   exp, sigmoid, tanh, ... as polynomials on vectors
tuning      --tune: kernels chosen by measuring them; cpu_tuning: what is tried for CPUs
forms       what there is of a kernel to choose from; trials: what was measured, kept for the next time
remote      machines that measure: this one, or a device behind TVM's RPC
"""

from dnc.targets.tvm.target import Tvm

__all__ = ["Tvm"]
