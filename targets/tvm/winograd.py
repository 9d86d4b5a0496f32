"""Which convolutions target `tvm` computes by Winograd's form, where the user allows its rounding.

    --option winograd=1e-5      each may be off by 1e-5 of its largest output

Of each convolution of 3 x 3 taps, stride 1, no dilation and one group, in float32, both forms of
`dnc.targets.tvm.minimal_filtering` are considered that promise to be faster than the definition by a tenth
(`dnc.targets.tvm.schedules.gain`), the faster one first. Their error is measured on what the convolution reads
when the network runs on noise and on a photograph, the same that prove passes; the first one with a fourth of the error
that is allowed, or less, is taken: of 56 other photographs the worst had 2.3 times as much in a layer of yolov3-tiny.

What is chosen is metadata of the node, which stays the Conv that it is: other readers compute it by its definition, and
the proof of passes sees no difference. The remarks say what was chosen, what its error is, and why others stay.

The pass is this target's own, not one of `dnc.passes`: it depends on the processor, and the option switches it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import onnx_ir as ir

from dnc.graph.rewriting import Pass, Remarks, attribute, constant_array, producer_of
from dnc.graph.running import Running
from dnc.graph.verification import feeds_for
from dnc.runtime.preprocessing import Preprocessing
from dnc.targets.tvm.emit.halves import convolutions
from dnc.targets.tvm.minimal_filtering import FORMS, WINOGRAD, Form
from dnc.typing import Array

if TYPE_CHECKING:
    from dnc.targets.tvm.schedules import Machine

__all__ = ["OFF", "ChooseWinograd", "allowed"]

OFF = "off"
_LARGEST = 1e-2
_GAIN = 1.1
_MARGIN = 4.0


def allowed(text: str) -> float:
    """For `Option.parse`: the error that is allowed, relative to a layer's largest output; 0 for none."""
    if text == OFF:
        return 0.0
    try:
        error = float(text)
    except ValueError:
        error = math.nan
    if not 0 < error <= _LARGEST:
        raise ValueError(
            f"{OFF}, or the error allowed to a layer, of its largest output: 1e-5, at most {_LARGEST}", OFF
        )
    return error


class ChooseWinograd(Pass):
    """Marks convolutions.

    Args:
        allowed: the largest error of a layer, relative to its largest output.
        machine: what the engine is compiled for.
        bfloat16: whether it multiplies in bfloat16 where that pays.
    """

    name: ClassVar[str] = "winograd"
    applies_to: ClassVar[str] = "Conv of 3x3 taps"

    def __init__(self, allowed: float, machine: Machine, bfloat16: bool = False) -> None:
        super().__init__()
        self._allowed, self._machine, self._bfloat16 = allowed, machine, bfloat16

    def rewrite(self, model: ir.Model) -> Remarks:
        remarks = Remarks()
        halves = convolutions(model.graph) if self._bfloat16 else ()
        found = {node: self._forms(node, halves) for node in model.graph if _is_square(node)}
        wanted = {node.inputs[0].name or "" for node, forms in found.items() if not isinstance(forms, str)}  # type: ignore[union-attr]
        values = _values(model, wanted) if wanted else {}
        for node, forms in found.items():
            if isinstance(forms, str):
                remarks.miss(node, forms)
            else:
                self._choose(node, forms, values, remarks)
        return remarks

    def _forms(self, node: ir.Node, halves: Collection[ir.Node]) -> Mapping[Form, float] | str:
        """The forms that are faster, the fastest first, and how many times; or why there are none."""
        from dnc.targets.tvm import schedules

        data, weights, result = node.inputs[0], node.inputs[1], node.outputs[0]
        if WINOGRAD in node.metadata_props:
            return "it is chosen already"
        if node in halves:
            return "it multiplies in bfloat16"
        if producer_of(weights, "DequantizeLinear") is not None:
            return "it multiplies in 8 bits"
        tensor = constant_array(weights)
        if tensor is None or data is None or data.dtype != ir.DataType.FLOAT or tensor.dtype != ir.DataType.FLOAT:
            return "it does not multiply constant weights in float32"
        assert result.shape is not None
        # Of a free batch, the code is for one image.
        images, _, rows, columns = (side if isinstance(side, int) else 1 for side in result.shape)
        outputs, inputs = tensor.shape.numpy()[:2]
        shape = (images, rows, columns, outputs)
        gains = {form: schedules.gain(form, shape, inputs, self._machine) for form in FORMS.values()}
        faster = {form: times for form, times in gains.items() if times >= _GAIN}
        if not faster:
            form = max(gains, key=gains.__getitem__)
            return f"{form} promises {gains[form]:.2f} times the speed, less than {_GAIN}"
        return dict(sorted(faster.items(), key=lambda item: -item[1]))

    def _choose(
        self, node: ir.Node, forms: Mapping[Form, float], values: Mapping[str, Array], remarks: Remarks
    ) -> None:
        weights, bias = (constant_array(value) for value in (*node.inputs, None)[1:3])
        assert weights is not None
        data = values[node.inputs[0].name or ""]  # type: ignore[union-attr]
        pads = attribute(node, "pads", [0] * 4)
        refused = []
        for form, times in forms.items():
            error = form.error(data, weights.numpy(), pads, None if bias is None else bias.numpy())
            if error * _MARGIN <= self._allowed:
                node.metadata_props[WINOGRAD] = str(form.outputs)
                remarks.apply(node, f"{form}: off by {error:.1e} of its largest output, {times:.1f} times the speed")
                return
            refused.append(f"{form} is off by {error:.1e} of its largest output")
        remarks.miss(node, f"{', '.join(refused)}: {_MARGIN:g} times that is more than {self._allowed:.1e}")


def _is_square(node: ir.Node) -> bool:
    """Whether a node is a convolution of the kind that the forms are for."""
    weights = node.inputs[1] if node.op_type == "Conv" and not node.domain else None
    return (
        weights is not None
        and weights.shape is not None
        and list(weights.shape[2:]) == [3, 3]
        and set(attribute(node, "strides", [1])) == {1}
        and set(attribute(node, "dilations", [1])) == {1}
        and attribute(node, "group", 1) == 1
    )


def _values(model: ir.Model, names: Collection[str]) -> Mapping[str, Array]:
    """These values, where the network runs on noise and on the photograph."""
    preprocessing = None
    given = next((value for value in model.graph.inputs if value.name == "input"), None)
    if given is not None and given.shape is not None and len(given.shape) == 4:
        pixels = given.dtype == ir.DataType.UINT8
        sides = list(given.shape[1:])
        channels, height, width = (sides[2], 416, 416) if pixels else sides
        if isinstance(channels, int) and isinstance(height, int) and isinstance(width, int):
            color = "gray" if channels == 1 else "rgb"
            preprocessing = Preprocessing(width, height, channels, color=color)
    feeds = feeds_for(model, preprocessing, images=1)
    outputs = Running(model, watch=names)(feeds)
    # Of a batch that is fixed, the last is the photograph.
    return {name: np.asarray(feeds.get(name, outputs.get(name)))[-2:] for name in names}
