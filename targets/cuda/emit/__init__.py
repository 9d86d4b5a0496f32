"""The graph in Relax, for GPUs: as for CPUs (`dnc.targets.tvm.emit`), but for what depends on sizes and numbers.

pixels          preprocessing of images of any size (--input u8), a function of its own: `prepare`
suppression     suppression of boxes (--decode graph+nms), to as many rows as there can be
kernels         how both say what they want of CUDA C++; their source is in the files *.cuh
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from dnc.graph.composites import NON_MAX_SUPPRESSION, PREPROCESS, attributes_of
from dnc.graph.preprocessing import Preprocess
from dnc.targets.cuda.emit.pixels import preprocessed
from dnc.targets.cuda.emit.suppression import suppressed
from dnc.targets.tvm import emit as every

__all__ = ["emit"]

_COMPOSITES = {
    PREPROCESS: lambda b, call, inputs: preprocessed(b, Preprocess.of(call), inputs[0].expr),
    NON_MAX_SUPPRESSION: lambda b, call, inputs: suppressed(b, inputs, **attributes_of(call)),
}


def emit(model: ir.Model, **options: Any) -> Any:
    """The tvm.IRModule of a model in which `unsupported` finds nothing; options as for `dnc.targets.tvm.emit.emit`.

    Where the model prepares images, `prepare` does that, and `main` takes what it gives in the place of the pixels: all
    shapes in `main` are fixed, so that CUDA graphs can be recorded of it.
    """
    return every.emit(model, gpu=True, composites=_COMPOSITES, **options)
