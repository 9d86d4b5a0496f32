"""Back end `tvm` of target `cuda`: CUDA kernels made ahead of time, on machines that need no GPU.

emit        the graph in Relax; kernels of CUDA C++ for preprocessing (`prepare`) and suppression
schedules   how each function runs on blocks of threads
excitation  which functions become one around squeeze and excitation, and
places      around concatenations, with option kernels=new; both by
calls       functions that TVM has fused, taken apart
toolkit     NVIDIA's compilers: nvcc, or NVRTC, from a CUDA toolkit or from PyPI
source      what must not stand in what they are given
process     starts the processes that compile and measure, and turns what they say into errors
child       the one that compiles: an ONNX graph to model.so, by
lowering    Relax, schedules, kernels, and by
graphs      the network once more, as CUDA graphs
measure     the process that measures
serving     what the two have in common
tuning      kernels chosen by measuring

What runs model.so is `dnc.runtime.runners.cuda`: kernels (the session), device (GPUs by architecture), cudart, buffers.
"""

from dnc.targets.cuda.target import Cuda

__all__ = ["Cuda"]
