"""Relax expressions with their layouts.

A tensor (N, C, H, W) is held as it is, or with its channels last, (N, H, W, C). `RelaxBuilder` adds expressions to a
function and knows the layout of each; a tensor is turned once, whoever asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dnc.typing import Array

__all__ = [
    "JOINS",
    "MAIN",
    "NODES",
    "PREPARE",
    "SIGNS",
    "Array",
    "RelaxBuilder",
    "Tensor",
    "Value",
    "integers",
    "variable_name",
]

MAIN, PREPARE = "main", "prepare"
"""The functions of a module: the network, and what makes its input of images, where that is a function of its own."""
NODES = "dnc.nodes"
"""The attribute of a module that has the names of nodes by their numbers."""
_NHWC = (0, 2, 3, 1)
_NCHW = (0, 3, 1, 2)
"""The permutations from one layout to the other; the second also says where in (N, H, W, C) each axis stands."""

JOINS = "dnc.joins"
"""The attribute of a function that says what it is computed with: see `dnc.targets.tvm.joining`."""
SIGNS = "signs"
"""The name of the loops that make bits of numbers: see `dnc.targets.tvm.emit.binary`."""


@dataclass(frozen=True)
class Tensor:
    """A value that is computed when the engine runs."""

    expr: Any
    """The variable of Relax."""
    shape: tuple[int, ...]
    """In ONNX's order; -1 for what is known only when the engine runs."""
    dtype: str
    last: bool = False
    """Whether its channels are the last axis."""


Value = Tensor | Array


def variable_name(node: int) -> str:
    """What variables of the node of this number are called. TVM adds numbers to names that come again, and writes them
    into CUDA's sources."""
    return f"node{node}_"


def integers(value: Value | None) -> list[int]:
    """The numbers of a constant."""
    assert isinstance(value, np.ndarray)
    return [int(number) for number in value.reshape(-1)]


class RelaxBuilder:
    """A Relax function that is being built, for a GPU or for CPUs.

    Args:
        fill, fences: see `dnc.targets.tvm.emit.emit`.
    """

    def __init__(self, gpu: bool = False, fill: int = 0, fences: bool = True) -> None:
        from tvm import relax, te, tirx

        self.relax, self.te, self.tir = relax, te, tirx
        self.op = relax.op
        self.gpu, self.fill, self.fences = gpu, fill, fences
        self.block = relax.BlockBuilder()
        self.nodes: list[str] = []
        """Those that were written so far, by name; variables are called after the last: see provenance.py."""
        self._turned: dict[Any, Tensor] = {}
        """Tensors in their other layout, by variable."""

    def emit(self, expr: Any, last: bool = False) -> Tensor:
        """A variable for an expression, in the layout that is said."""
        return self._tensor(self.block.emit(expr, self._hint()), last)

    def compute(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        last: bool = False,
        name: str = "",
        attributes: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """The same for a tensor expression, as a function with a name and attributes."""
        variable = self.block.emit_te(
            function, *arguments, primfunc_name_hint=name or None, primfunc_attrs=attributes, name_hint=self._hint()
        )
        return self._tensor(variable, last)

    def call(
        self,
        function: Any,
        arguments: Sequence[Tensor],
        name: str,
        shape: Sequence[Any] | None = None,
        last: bool = False,
    ) -> Tensor:
        """The array that a function of loops writes: its last parameter.

        Args:
            shape: of the array; the parameter's if not given.
            last: whether that has its channels last.
        """
        return self._called(function, arguments, name, [self._kind(function.params[-1], shape)], last)[0]

    def several(self, function: Any, arguments: Sequence[Tensor], name: str, count: int) -> Sequence[Tensor]:
        """The arrays that a function writes: its last parameters, so many."""
        return self._called(function, arguments, name, [self._kind(result) for result in function.params[-count:]])

    def _kind(self, result: Any, shape: Sequence[Any] | None = None) -> Any:
        return self.relax.TensorType(list(result.shape if shape is None else shape), str(result.dtype))

    def _called(
        self, function: Any, arguments: Sequence[Tensor], name: str, kinds: Sequence[Any], last: bool = False
    ) -> Sequence[Tensor]:
        variable = self.block.add_func(function, name)
        given = self.relax.Tuple([argument.expr for argument in arguments])
        if len(kinds) == 1:
            return [self.emit(self.relax.call_tir(variable, given, kinds[0]), last)]
        results = self.block.emit(self.relax.call_tir(variable, given, list(kinds)), self._hint())
        return [self.emit(self.relax.TupleGetItem(results, place), last) for place in range(len(kinds))]

    def size(self, count: Tensor, name: str) -> Any:
        """A number (1,) int64 as a size of arrays, known when the engine runs."""
        size = self.tir.Var(name, "int64")
        shape = self.block.emit(self.op.tensor_to_shape(count.expr), self._hint())
        self.block.match_cast(shape, self.relax.ShapeType([size]), self._hint())
        return size

    def _hint(self) -> str:
        return variable_name(len(self.nodes) - 1)

    def _tensor(self, variable: Any, last: bool) -> Tensor:
        held = tuple(int(side) if isinstance(side, self.tir.IntImm) else -1 for side in variable.ty.shape)
        shape = tuple(held[axis] for axis in _NCHW) if last else held
        return Tensor(variable, shape, str(variable.ty.dtype), last)

    def first(self, value: Value | None) -> Tensor:
        """The value in ONNX's order."""
        tensor = self.tensor_of(value)
        return self._turn(tensor) if tensor.last else tensor

    def last(self, value: Value | None) -> Tensor:
        """The value (N, C, H, W) with its channels last."""
        tensor = self.tensor_of(value)
        return tensor if tensor.last else self._turn(tensor)

    def tensor_of(self, value: Value | None) -> Tensor:
        """The value, a constant as well."""
        if isinstance(value, Tensor):
            return value
        assert value is not None
        return Tensor(self.relax.const(value), value.shape, value.dtype.name)

    def _turn(self, tensor: Tensor) -> Tensor:
        if tensor.expr not in self._turned:
            channels, *sides = tensor.shape[1:]
            goal = not tensor.last
            order = _NHWC if goal else _NCHW
            shape = tuple(tensor.shape[axis] for axis in _NHWC) if goal else tensor.shape
            # Where either the channels or the pixels are one, both layouts have the same memory.
            same = channels == 1 or max(sides) == 1
            expr = self.op.reshape(tensor.expr, shape) if same else self.op.permute_dims(tensor.expr, order)
            turned = self.emit(expr, goal)
            self._turned[tensor.expr], self._turned[turned.expr] = turned, tensor
        return self._turned[tensor.expr]

    def constant(self, value: Array, dtype: str, last: bool) -> Any:
        """A constant that broadcasts to tensors of a layout; numbers that are not whole have this type."""
        array = value.astype(dtype) if value.dtype.kind == "f" else value
        if last and array.ndim:
            array = array.reshape((1,) * (4 - array.ndim) + array.shape).transpose(_NHWC)
        return self.relax.const(np.ascontiguousarray(array).reshape(array.shape))

    def broadcast(self, values: Sequence[Value | None]) -> tuple[list[Any], bool]:
        """What is computed element by element, in one layout; and whether that has its channels last."""
        known = [value for value in values if value is not None]
        tensors = [value for value in known if isinstance(value, Tensor)]
        rank = max(len(value.shape) for value in known)
        last = rank == 4 and any(tensor.last for tensor in tensors)
        # Where constants alone are real, as those of Where, they say in how many bits.
        arrays = [value for value in known if isinstance(value, np.ndarray)]
        types = [*(tensor.dtype for tensor in tensors), *(array.dtype.name for array in arrays)]
        dtype = next((dtype for dtype in types if dtype.startswith("float")), "float32")
        expressions = []
        for value in known:
            if isinstance(value, np.ndarray):
                expressions.append(self.constant(value, dtype, last))
            elif last:
                missing = 4 - len(value.shape)
                if missing:
                    value = self.emit(self.op.reshape(value.expr, (1,) * missing + value.shape))
                expressions.append(self.last(value).expr)
            else:
                expressions.append(self.first(value).expr)
        return expressions, last

    def axis(self, tensor: Tensor, axis: int) -> int:
        """Where an axis of ONNX's order stands in the tensor."""
        axis %= len(tensor.shape)
        return _NCHW[axis] if tensor.last else axis
