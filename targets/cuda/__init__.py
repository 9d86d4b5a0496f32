"""Back end `tvm` of target `cuda`: CUDA kernels made ahead of time, on machines that need no GPU.

device      GPUs by architecture, and what the schedules know of them
schedules   how each function runs on blocks of threads
toolkit     NVIDIA's compilers: nvcc, or NVRTC, from a CUDA toolkit or from PyPI
process     starts the processes that compile and measure, and turns what they say into errors
child       the one that compiles: an ONNX graph to model.so, by
lowering    Relax, schedules, kernels, and by
graphs      the network once more, as CUDA graphs
session     runs model.so on a GPU; needs TVM's runtime alone
measure     the process that measures
serving     what the two have in common
tuning      kernels chosen by measuring
"""

from dnc.targets.cuda.target import Cuda

__all__ = ["Cuda"]
