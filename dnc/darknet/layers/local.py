"""[local]: a convolution whose weights differ from place to place (local_layer.c).

    out = (in - (pad ? 1 : size)) / stride + 1, the windows start at -pad

With pad that agrees with the number of windows for size=3 and pad=1; where it does not, Darknet reads other memory than
it unrolled, so that is refused.

The .weights file has biases (outputs), then weights (locations, filters, channels, size, size)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from dnc.darknet.cfg import Section
from dnc.darknet.layers import layers
from dnc.darknet.layers.activations import activate, emit_activation, parse_activation
from dnc.darknet.layers.base import Array, Arrays, Builder, Context, Layer, Shape, States, Value, common
from dnc.darknet.layers.windows import Axis, windows


@layers.register
class Local(Layer):
    """An unshared convolution.

    Keys:
        filters: how many, the channels of the output.
        size: the height and width of the kernels.
        stride: how far a window is from the next, along both axes.
        pad: pixels of 0 around the input.
        activation: what each number of the result goes through; [activation] has the list.
    """

    name = "local"
    placed = True

    axes: tuple[Axis, Axis]
    activation: str

    @classmethod
    def parse(cls, section: Section, context: Context) -> Self:
        _, height, width = context.image()
        filters = section.integer("filters", 1, low=1)
        size, stride = section.integer("size", 1, low=1), section.integer("stride", 1, low=1)
        pad = section.integer("pad", 0, low=0)
        if size > 64:
            section.fail(f"size={size} would take {size * size} slices", "size", "at most 64 are possible")
        vertical, horizontal = (
            Axis(length, (length - (1 if pad else size)) // stride + 1, size, stride, pad) for length in (height, width)
        )
        for axis in (vertical, horizontal):
            if axis.count != (axis.length + 2 * pad - size) // stride + 1:
                section.fail(f"size={size} with pad={pad} has no defined output", "pad", "use size=3, pad=1, or pad=0")
        return cls(
            **common(context, (filters, vertical.count, horizontal.count)),
            axes=(vertical, horizontal),
            activation=parse_activation(section, "logistic"),
        )

    def weights(self) -> dict[str, Shape]:
        filters, rows, columns = self.shape
        size = self.axes[0].size
        taps = (filters, self.input_shape[0], size, size)
        return {"biases": (filters * rows * columns,), "weights": (rows * columns, *taps)}

    def emit(self, b: Builder, inputs: Sequence[Value], arrays: Arrays) -> Value:
        """Slices out every tap, stacked into (N, locations, 1, channels * size^2); MatMul with the weights; Add."""
        vertical, horizontal = self.axes
        filters, rows, columns = self.shape
        size, channels = vertical.size, self.input_shape[0]
        pads = [0, 0, vertical.begin, horizontal.begin, 0, 0, vertical.end, horizontal.end]
        x = inputs[0]
        if any(pads):
            x = b.op("Pad", x, b.constant(np.array(pads, np.int64)), b.constant(0.0))
        taps = []
        for i in range(size):
            for j in range(size):
                tap = b.slice(x, 2, i, i + (rows - 1) * vertical.stride + 1, vertical.stride)
                tap = b.slice(tap, 3, j, j + (columns - 1) * horizontal.stride + 1, horizontal.stride)
                taps.append(b.reshape(tap, [channels, 1, rows * columns]))
        stacked = b.reshape(b.op("Concat", *taps, axis=2), [1, channels * size * size, rows * columns])
        stacked = b.op("Transpose", stacked, perm=[0, 3, 1, 2])
        weights = arrays["weights"].reshape(rows * columns, filters, -1).transpose(0, 2, 1)
        y = b.op("MatMul", stacked, b.constant(weights, "weights"))
        y = b.op("Transpose", b.reshape(y, [rows * columns, filters]), perm=[0, 2, 1])
        y = b.reshape(y, self.shape)
        y = b.op("Add", y, b.constant(arrays["biases"].reshape(self.shape), "biases"))
        return emit_activation(b, y, self.activation)

    def reference(self, inputs: Sequence[Array], arrays: Arrays, states: States) -> Array:
        _, rows, columns = self.shape
        taps = windows(inputs[0], *self.axes, fill=0.0)
        weights = arrays["weights"].reshape(rows, columns, *self.weights()["weights"][1:])
        y = np.einsum("ncyxij,yxfcij->nfyx", taps, weights)
        return activate(y + arrays["biases"].reshape(self.shape), self.activation)

    def flops(self) -> float:
        return 2.0 * float(np.prod(self.weights()["weights"]))

    def describe(self) -> str:
        size = self.axes[0].size
        return f"{self.shape[0]}  {size} x {size} / {self.axes[0].stride}"
