"""Options of target `cuda`: those that what runs its engines reads too, and those of compiling kernels."""

from __future__ import annotations

from collections.abc import Sequence

from dnc.runtime.options import Option, one_of
from dnc.runtime.runners.cuda import OPTIONS as RUNNING

__all__ = ["KERNELS", "OPTIONS"]

KERNELS: Sequence[Option] = (
    Option("compiler", "", "tvm: nvcc, nvrtc, or the path of either; the first that is found if not given"),
    Option("triple", "", "tvm: the machine with the GPU, as aarch64-linux-gnu; this one's if not given"),
    Option("cc", "", "tvm: the C++ compiler that links for it; g++, or aarch64-linux-gnu-g++, if not given"),
    Option(
        "runtime",
        "bundled",
        "tvm: bundled: TVM's runtime is in the engine; system: an installed TVM's is used",
        one_of("bundled", "system"),
    ),
    Option(
        "kernels",
        "measured",
        "tvm: measured: the kinds of kernels that were right and fast on a GPU; new: those too that no GPU has run yet",
        one_of("measured", "new"),
    ),
)
"""Of back end tvm alone."""
OPTIONS: Sequence[Option] = (*RUNNING, *KERNELS)
