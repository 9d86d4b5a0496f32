"""dnc's graph by the operators of PyTorch and of JAX: a faithful and plain translation, as other converters give it.

Only what the networks of the table have; anything else is a KeyError that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from dnc.graph.rewriting import attribute

__all__ = ["Jax", "Torch", "translate"]


def translate(model: ir.Model, library: Torch | Jax) -> Callable[..., list[Any]]:
    """A function of the inputs of a graph, in its order, that gives its outputs."""
    constants = {
        value: library.constant(value.const_value.numpy())
        for node in model.graph
        for value in node.inputs
        if value is not None and value.const_value is not None
    }

    def number(value: Any) -> list[Any]:
        return list(np.array(value.const_value.numpy()).ravel().tolist())

    def call(*given: Any) -> list[Any]:
        values = {**constants, **dict(zip(model.graph.inputs, given, strict=True))}

        def operands(node: Any) -> list[Any]:
            return [values[value] for value in node.inputs if value is not None]

        def compute(node: Any) -> Any:
            kind, x = node.op_type, values[node.inputs[0]]
            # Of the graph, not of x: PyTorch traces this function.
            shape = [int(side) for side in node.inputs[0].shape] if kind in ("Slice", "Reshape") else []
            if kind == "Conv":
                strides, dilations = (attribute(node, name, [1, 1]) for name in ("strides", "dilations"))
                pads, groups = attribute(node, "pads", [0, 0, 0, 0]), attribute(node, "group", 1)
                return library.convolution(operands(node), strides, pads, dilations, groups)
            if kind == "MaxPool":
                sides = (attribute(node, name, [1, 1]) for name in ("kernel_shape", "strides"))
                return library.max_pool(x, *sides, attribute(node, "pads", [0, 0, 0, 0]))
            if kind == "Slice":
                starts, ends, axes, steps = (number(value) for value in node.inputs[1:])
                places = [slice(None)] * len(shape)
                for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
                    places[axis] = slice(start, min(end, shape[axis]), step)
                return x[tuple(places)]
            if kind == "Reshape":
                return x.reshape([shape[n] if side == 0 else side for n, side in enumerate(number(node.inputs[1]))])
            if kind == "Transpose":
                return library.transpose(x, list(attribute(node, "perm", [])))
            if kind == "Resize":
                return library.enlarge(x, [int(side) for side in number(node.inputs[2])[2:]])
            if kind == "Concat":
                return library.concat(operands(node), attribute(node, "axis", 1))
            if kind == "Softmax":
                return library.softmax(x, attribute(node, "axis", -1))
            if kind == "LeakyRelu":
                return library.leaky(x, attribute(node, "alpha", 0.01))
            if kind == "Gemm":
                a, b, *c = operands(node)
                b = library.transpose(b, [1, 0]) if attribute(node, "transB", 0) else b
                return a @ b + c[0] if c else a @ b
            return library.simple[kind](*operands(node))

        for node in model.graph:
            values[node.outputs[0]] = compute(node)
        return [values[value] for value in model.graph.outputs]

    return call


class Torch:
    """PyTorch's operators, on a device and in a type; constants lie channels last."""

    def __init__(self, device: str, kind: Any) -> None:
        import torch

        self._torch, self._functional = torch, torch.nn.functional
        self._device, self._kind = device, kind
        self.simple: Mapping[str, Callable[..., Any]] = {
            "Add": torch.add,
            "Sub": torch.sub,
            "Mul": torch.mul,
            "Div": torch.div,
            "Exp": torch.exp,
            "Tanh": torch.tanh,
            "Softplus": self._functional.softplus,
            "Mish": self._functional.mish,
            "Sigmoid": torch.sigmoid,
            "Relu": torch.relu,
            "GlobalAveragePool": lambda x: x.mean((2, 3), keepdim=True),
        }

    def constant(self, array: Any) -> Any:
        tensor = self._torch.from_numpy(np.array(array))
        if not tensor.is_floating_point():
            return tensor
        tensor = tensor.to(self._device, self._kind)
        return tensor.to(memory_format=self._torch.channels_last) if tensor.dim() == 4 else tensor

    def _padded(self, x: Any, pads: Any, fill: float) -> tuple[Any, list[int]]:
        top, left, bottom, right = pads
        if (top, left) == (bottom, right):
            return x, [top, left]
        return self._functional.pad(x, [left, right, top, bottom], "constant", fill), [0, 0]

    def convolution(self, operands: Any, strides: Any, pads: Any, dilations: Any, groups: int) -> Any:
        x, sides = self._padded(operands[0], pads, 0.0)
        bias = operands[2] if len(operands) > 2 else None
        return self._functional.conv2d(x, operands[1], bias, list(strides), sides, list(dilations), groups)

    def max_pool(self, x: Any, size: Any, strides: Any, pads: Any) -> Any:
        x, sides = self._padded(x, pads, float("-inf"))
        return self._functional.max_pool2d(x, list(size), list(strides), sides)

    def enlarge(self, x: Any, factors: list[int]) -> Any:
        return self._functional.interpolate(x, scale_factor=[float(factor) for factor in factors], mode="nearest")

    def transpose(self, x: Any, order: list[int]) -> Any:
        return x.permute(order)

    def concat(self, parts: Any, axis: int) -> Any:
        return self._torch.cat(parts, axis)

    def softmax(self, x: Any, axis: int) -> Any:
        return self._torch.softmax(x, axis)

    def leaky(self, x: Any, slope: float) -> Any:
        return self._functional.leaky_relu(x, slope)


class Jax:
    """JAX's operators, which XLA compiles; it chooses layouts itself."""

    def __init__(self, kind: Any) -> None:
        import jax
        from jax import lax, numpy

        self._jax, self._lax, self._numpy, self._kind = jax, lax, numpy, kind
        self.simple: Mapping[str, Callable[..., Any]] = {
            "Add": numpy.add,
            "Sub": numpy.subtract,
            "Mul": numpy.multiply,
            "Div": numpy.divide,
            "Exp": numpy.exp,
            "Tanh": numpy.tanh,
            "Softplus": jax.nn.softplus,
            "Mish": jax.nn.mish,
            "Sigmoid": jax.nn.sigmoid,
            "Relu": jax.nn.relu,
            "GlobalAveragePool": lambda x: x.mean((2, 3), keepdims=True),
        }

    def constant(self, array: Any) -> Any:
        return self._numpy.asarray(array, self._kind if np.asarray(array).dtype.kind == "f" else None)

    def convolution(self, operands: Any, strides: Any, pads: Any, dilations: Any, groups: int) -> Any:
        top, left, bottom, right = pads
        result = self._lax.conv_general_dilated(
            operands[0],
            operands[1],
            tuple(strides),
            ((top, bottom), (left, right)),
            rhs_dilation=tuple(dilations),
            dimension_numbers=("NCHW", "OIHW", "NCHW"),
            feature_group_count=groups,
        )
        return result + operands[2].reshape(1, -1, 1, 1) if len(operands) > 2 else result

    def max_pool(self, x: Any, size: Any, strides: Any, pads: Any) -> Any:
        top, left, bottom, right = pads
        sides = ((0, 0), (0, 0), (top, bottom), (left, right))
        lowest = np.array(-np.inf, x.dtype)
        return self._lax.reduce_window(x, lowest, self._lax.max, (1, 1, *size), (1, 1, *strides), sides)

    def enlarge(self, x: Any, factors: list[int]) -> Any:
        return x.repeat(factors[0], 2).repeat(factors[1], 3)

    def transpose(self, x: Any, order: list[int]) -> Any:
        return x.transpose(order)

    def concat(self, parts: Any, axis: int) -> Any:
        return self._numpy.concatenate(parts, axis)

    def softmax(self, x: Any, axis: int) -> Any:
        return self._jax.nn.softmax(x, axis)

    def leaky(self, x: Any, slope: float) -> Any:
        return self._jax.nn.leaky_relu(x, slope)
