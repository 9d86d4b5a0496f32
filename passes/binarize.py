"""Writes the convolutions of xnor=1, sign times sign, in the form that an engine runs fastest.

Darknet convolves s = sign(x), +1 where x > 0 and else -1, with the weights' signs w, and pads s by -1. Lowered:

    y = Conv(Pad(Where(x > 0, 1, -1), -1), w) * mean + bias

With bits b = (x > 0) in {0, 1}, s = 2 b - 1, and padding b by 0 is padding s by -1. So the Pad goes:

    Conv(s, w) = Conv(b, 2 w) - sum(w),    the sum over a filter's channels and taps

`form` says how that is computed:

1. `bits`: Conv on float32, with 2 w as weights and -sum(w) as biases. Any engine runs it. On OpenVINO a layer is 1.0 to
   1.07 times as fast as lowered, on ONNX Runtime's CPU 1.03 to 1.25 times (yolov3-tiny, all but its first layer xnor:
   1.04); but with 5 x 5 taps on small maps, where that engine's kernel is slow along padded borders, 0.8.
2. `integer`: ConvInteger on uint8, then -sum(w) is added in float32. The weights are uint8 with the zero point 2, hence
   0 and 4, because ONNX Runtime's kernel for int8 weights is 4 to 6 times slower. On its CPU a layer is 1.05 to 1.7
   times as fast as lowered (yolov3-tiny 1.23, Darknet-19 1.18, EfficientNet-B0 1.16), on a 7 x 7 map 0.97; with fewer
   than 24 channels `bits` is faster, and is taken. OpenVINO gains nothing by it, TVM does not import it, and on CUDA
   and Myriad X it was not tried.

All sums are of whole numbers below 2^24, so both forms give what was lowered to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from dnc.graph.builder import lazy
from dnc.graph.rewriting import Remarks, add_initializer, add_node, attribute, constant_array, replace_uses
from dnc.passes import Pass, passes
from dnc.passes.shared.patterns import Value, X, match
from dnc.runtime.options import Option, one_of

_Array = npt.NDArray[Any]
_FEWEST = 24
"""Input channels from which on integers pay: with 16, on bits a layer is 1.1 times as fast, with 24 0.84."""
_PLAIN = ("Where", Value("positive", ("Greater", X, 0.0)), 1.0, -1.0)
_PADDED = ("Pad", _PLAIN, Value("pads"), -1.0)
"""Signs, as they are lowered."""
_ZERO = 2
"""The zero point of the weights; 2 w is -2 or 2."""


@passes.register
class Binarize(Pass):
    """Conv of padded signs with signs -> Conv of bits, on floats or on integers."""

    name: ClassVar[str] = "binarize"
    tolerance: ClassVar[float] = 0.0

    applies_to: ClassVar[str] = "convolutions of signs with signs (xnor=1)"
    known_options: ClassVar[Sequence[Option]] = (
        Option("form", "bits", "what is multiplied: bits, integer", one_of("bits", "integer")),
    )

    def rewrite(self, model: ir.Model) -> Remarks:
        remarks = Remarks()
        for node in list(model.graph):
            signs = _signs(node) if node.op_type == "Conv" else None
            if signs is None:
                continue
            reason = _unsuitable(node)
            if reason:
                remarks.miss(node, reason)
                continue
            integer = self.options["form"] == "integer" and _weights(node).shape.numpy()[1] >= _FEWEST
            (_to_integers if integer else _to_bits)(node, signs, model.graph)
            remarks.apply(node, "on integers" if integer else "on bits")
        return remarks


class _Signs(NamedTuple):
    """What a convolution of signs reads."""

    positive: ir.Value
    """Where its input is positive: bool."""
    pads: list[int]
    """How it is padded by -1, as Conv's attribute."""
    nodes: Sequence[ir.Node]
    """What makes the signs, last first."""


def _signs(conv: ir.Node) -> _Signs | None:
    """The padded signs that a Conv reads; None where it reads anything else."""
    found = match(_PADDED, conv.inputs[0]) or match(_PLAIN, conv.inputs[0])
    if found is None:
        return None
    pads = [0] * 4
    if "pads" in found.values:
        wide = constant_array(found.values["pads"])
        if wide is None or wide.size != 8 or attribute(found.nodes[0], "mode", "constant") != "constant":
            return None
        numbers = wide.numpy().tolist()
        pads = [*numbers[2:4], *numbers[6:8]]
        if [*numbers[:2], *numbers[4:6]] != [0] * 4 or min(pads) < 0:
            return None
    return _Signs(found.values["positive"], pads, found.nodes)


def _unsuitable(conv: ir.Node) -> str:
    """Why a convolution of signs stays as it is; empty where it need not."""
    weights = constant_array(conv.inputs[1])
    if weights is None or not np.all(np.abs(weights.numpy()) == 1):
        return "its weights are no signs"
    if len(conv.inputs) > 2 and conv.inputs[2] is not None:
        return "it has biases, which are not whole numbers"
    if any(attribute(conv, "pads", [0])) or attribute(conv, "auto_pad", "NOTSET") != "NOTSET":
        return "padding counts as 0, which is no sign"
    return ""


def _to_bits(conv: ir.Node, signs: _Signs, graph: ir.Graph) -> None:
    """Form 1."""
    weights, total = _weights(conv), _total(conv)
    name = weights.name or "weights"
    bits = _cast(signs.positive, ir.DataType.FLOAT, conv, graph)

    def doubled() -> _Array:
        result: _Array = 2 * weights.numpy()
        return result

    conv.resize_inputs(3)
    conv.replace_input_with(0, bits)
    conv.replace_input_with(1, add_initializer(graph, lazy(doubled, weights, f"{name}.doubled")))
    conv.replace_input_with(2, add_initializer(graph, ir.Tensor(-total, name=f"{name}.total")))
    conv.attributes["pads"] = ir.AttrInt64s("pads", signs.pads)
    _remove_dead(signs, graph)


def _to_integers(conv: ir.Node, signs: _Signs, graph: ir.Graph) -> None:
    """Form 2."""
    weights, total = _weights(conv), _total(conv)
    name = weights.name or "weights"
    bits = _cast(signs.positive, ir.DataType.UINT8, conv, graph)
    stored = lazy(_stored(weights), weights, f"{name}.integers", dtype=ir.DataType.UINT8)
    zeros = [ir.tensor(number, ir.DataType.UINT8, name=f"constant_uint8__{number}") for number in (0, _ZERO)]
    constants = [add_initializer(graph, tensor) for tensor in (stored, *zeros)]
    attributes = {**conv.attributes, "pads": ir.AttrInt64s("pads", signs.pads)}
    whole = add_node(graph, conv, "ConvInteger", [bits, *constants], attributes)
    floats = _cast(whole.outputs[0], ir.DataType.FLOAT, conv, graph)
    shift = add_initializer(graph, ir.Tensor(-total.reshape(1, -1, 1, 1), name=f"{name}.total"))
    replace_uses(conv.outputs[0], add_node(graph, conv, "Add", [floats, shift]).outputs[0], graph)
    graph.remove(conv, safe=True)
    _remove_dead(signs, graph)


def _stored(weights: ir.TensorProtocol) -> Callable[[], _Array]:
    def stored() -> _Array:
        return (2 * weights.numpy() + _ZERO).astype(np.uint8)

    return stored


def _weights(conv: ir.Node) -> ir.TensorProtocol:
    weights = constant_array(conv.inputs[1])
    assert weights is not None
    return weights


def _total(conv: ir.Node) -> npt.NDArray[np.float32]:
    """The sum of each filter: a whole number."""
    total: npt.NDArray[np.float32] = _weights(conv).numpy().sum(axis=(1, 2, 3), dtype=np.float32)
    return total


def _cast(value: ir.Value, dtype: ir.DataType, before: ir.Node, graph: ir.Graph) -> ir.Value:
    return add_node(graph, before, "Cast", [value], {"to": int(dtype)}).outputs[0]


def _remove_dead(signs: _Signs, graph: ir.Graph) -> None:
    """Removes what made the signs, unless something else reads them."""
    for node in signs.nodes:
        if not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
            graph.remove(node, safe=True)
