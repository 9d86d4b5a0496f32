"""Convolutions whose loops are written here, because Relax's own say less of them than the schedules are to know."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from dnc.graph.rewriting import attribute
from dnc.targets.tvm.emit.builder import JOINS, Array, RelaxBuilder, Tensor

__all__ = ["convolved"]


def convolved(
    b: RelaxBuilder,
    node: ir.Node,
    data: Tensor,
    weights: Array,
    term: Callable[[Any, Any], Any] = operator.mul,
    marks: Mapping[str, Any] | None = None,
) -> Tensor:
    """The sums of a Conv of one group, or of what has the attributes of one, without its bias.

    Args:
        weights: (O, I, kh, kw).
        term: what is added up, of a number of the data and one of the weights.
        marks: annotations of the block that adds up.
    """
    te, x = b.te, b.last(data)
    down, across = attribute(node, "strides", [1, 1])
    tall, wide = attribute(node, "dilations", [1, 1])
    top, left, bottom, right = attribute(node, "pads", [0] * 4)

    def conv2d(data: Any, kernel: Any) -> Any:
        from tvm import topi

        padded = topi.nn.pad(data, (0, top, left, 0), (0, bottom, right, 0), name="pad_temp")
        count, height, width, _ = padded.shape
        ky, kx, i = (te.reduce_axis((0, kernel.shape[axis]), name=name) for axis, name in enumerate(("ky", "kx", "i")))
        shape = (
            count,
            (height - (kernel.shape[0] - 1) * tall - 1) // down + 1,
            (width - (kernel.shape[1] - 1) * wide - 1) // across + 1,
            kernel.shape[3],
        )

        def at(n: Any, y: Any, x: Any, o: Any) -> Any:
            read = padded[n, y * down + ky * tall, x * across + kx * wide, i]
            return te.sum(term(read, kernel[ky, kx, i, o]), axis=[ky, kx, i])

        return te.compute(shape, at, name="conv2d", attrs=dict(marks or {}))

    kernel = b.relax.const(np.ascontiguousarray(weights.transpose(2, 3, 1, 0)))
    return b.compute(conv2d, x.expr, kernel, last=True, name="conv2d", attributes={JOINS: "sums"})
