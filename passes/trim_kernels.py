"""Cuts rows and columns of zeros off the borders of kernels.

Where the first t rows of every filter and channel are zero, and the last u,

    sum over r < k of w[r] x[i s + r d - p]  =  sum over r < k - t - u of w[r + t] x[i s + r d - (p - t d)]

so the kernel loses t + u rows, the padding before t d and the padding after u d (d: dilation); the same holds for
columns. Padding cannot be negative: at most p // d rows go, which for kernels that were written larger to shift them
is all of them. Darknet pads both sides alike, so kernels of TensorFlow's SAME padding, which at stride 2 pads the end
alone, come as k + 1 or k + 2 with zeros first; pruned networks have zeros too.

The weights are looked at from the border inwards, filter after filter, up to the first number that is not 0: of most
kernels a page or two is read. Weights that an earlier pass computes would have to be computed for that, so this pass
comes before folding, which keeps zeros anyway, and refuses after it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from dnc.graph.builder import lazy
from dnc.graph.rewriting import Remarks, add_initializer, attribute, constant_array
from dnc.passes import Pass, passes

_Array = npt.NDArray[Any]


@passes.register
class TrimKernels(Pass):
    """Zero borders of kernels -> smaller kernels with asymmetric padding."""

    name: ClassVar[str] = "trim-kernels"
    tolerance: ClassVar[float] = 1e-5
    """Products with 0 leave a sum as it is, but an engine may add up a smaller kernel in another order."""

    applies_to: ClassVar[str] = "Conv whose kernels have zeros along a border, in every filter and channel"

    def rewrite(self, model: ir.Model) -> Remarks:
        remarks = Remarks()
        for node in model.graph:
            if node.op_type == "Conv":
                _trim(node, model.graph, remarks)
        return remarks


def _trim(node: ir.Node, graph: ir.Graph, remarks: Remarks) -> None:
    weights = constant_array(node.inputs[1])
    if weights is None:
        return remarks.miss(node, "its weights are no constant")
    kernel = list(weights.shape.numpy()[2:])
    if max(kernel) == 1:
        return None
    if isinstance(weights, ir.LazyTensor):
        return remarks.miss(node, "its weights are computed by an earlier pass")
    if attribute(node, "auto_pad", "NOTSET") != "NOTSET":
        return remarks.miss(node, "the engine chooses its padding")
    array, rank = weights.numpy(), len(kernel)
    pads = attribute(node, "pads", [0] * 2 * rank)
    dilations = attribute(node, "dilations", [1] * rank)
    cuts = []
    wanted = False
    for axis, size in enumerate(kernel):
        first, last = _zeros(array, axis + 2, size)
        wanted |= first + last > 0
        allowed = [min(zeros, pads[axis + end * rank] // dilations[axis]) for end, zeros in enumerate((first, last))]
        cuts.append(slice(allowed[0], size - allowed[1]))
        pads[axis] -= allowed[0] * dilations[axis]
        pads[axis + rank] -= allowed[1] * dilations[axis]
    trimmed = [cut.stop - cut.start for cut in cuts]
    if trimmed == kernel:
        return remarks.miss(node, "no padding that would shrink with its zeros") if wanted else None
    name = f"{node.inputs[1].name}.trimmed" if node.inputs[1] is not None else "trimmed"
    shape = [*weights.shape.numpy()[:2], *trimmed]
    new = add_initializer(graph, lazy(_part(weights, tuple(cuts)), weights, name, shape=shape))
    node.replace_input_with(1, new)
    node.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", trimmed)
    node.attributes["pads"] = ir.AttrInt64s("pads", pads)
    return remarks.apply(node, f"{_text(kernel)} trimmed to {_text(trimmed)}")


def _part(weights: ir.TensorProtocol, cuts: tuple[slice, ...]) -> Callable[[], _Array]:
    def part() -> _Array:
        array: _Array = weights.numpy()[(slice(None), slice(None), *cuts)]
        return array

    return part


def _zeros(array: _Array, axis: int, size: int) -> tuple[int, int]:
    """How many slices at the start and at the end are zero; one slice is left where all of them are."""
    slices = np.moveaxis(array, axis, 0)
    first = 0
    while first < size - 1 and _is_zero(slices[first]):
        first += 1
    last = 0
    while last < size - 1 - first and _is_zero(slices[size - 1 - last]):
        last += 1
    return first, last


def _is_zero(filters: _Array) -> bool:
    """Whether all is 0, decided by the first filter that is not."""
    return not any(np.any(part) for part in filters)


def _text(sizes: list[int]) -> str:
    return "x".join(map(str, sizes))
