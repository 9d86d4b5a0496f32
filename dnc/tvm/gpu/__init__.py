"""Back end `tvm` of target `cuda`: CUDA kernels made ahead of time, on machines that need no GPU.

    device      GPUs by architecture, and what the schedules know of them
    schedules   how each function runs on blocks of threads
    toolkit     NVIDIA's compilers: nvcc, or NVRTC, from a CUDA toolkit or from PyPI
    process     starts the process that compiles, and turns what it says into errors
    child       that process: Relax, schedules, kernels, model.so
    session     runs model.so on a GPU; needs TVM's runtime alone
"""
