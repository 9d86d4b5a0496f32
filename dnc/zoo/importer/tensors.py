"""What a checkpoint of another framework holds: tensors, and units of them that are layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dnc.darknet.layers.base import Shape
from dnc.errors import WeightsError, tolerate
from dnc.typing import Array

__all__ = ["FLOATS", "MOST_AXES", "SIZES", "Checkpoint", "Floats", "Pads", "Tensor", "Unit", "checked_name"]

Floats = npt.NDArray[np.floating[Any]]
Pads = tuple[int, int, int, int] | Literal["SAME_UPPER", "SAME_LOWER", "COMPUTED"]
"""Rows before, columns before, rows after, columns after; or ONNX's auto_pad, of which TensorFlow's is SAME_UPPER; or
that the model itself computes them."""

FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""The types that weights may have, by the names of safetensors, and how they are stored."""
SIZES = {
    **{"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2},
    **{"I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8},
}
"""Bytes of an element of every type that may stand in a file."""
MOST_AXES = 64
"""Of a tensor: what numpy takes."""

_LONGEST_NAME = 1000
"""Characters. Names are taken apart, compared and shown."""


def checked_name(name: str, path: Path) -> str:
    """The name of a tensor or a node; raises WeightsError if no framework would give it, for its length or because a
    terminal would obey it."""
    if len(name) > _LONGEST_NAME:
        message = f"a name of the source has {len(name):,} characters: {name[:60]!r}…"
        raise WeightsError(message, path, f"{_LONGEST_NAME:,} at most")
    if not name.isprintable():
        raise WeightsError(f"a name of the source cannot be shown: {name[:60]!r}", path, "the file is damaged")
    return name


@dataclass(frozen=True)
class Tensor:
    """A stored array, which is read when it is asked for."""

    name: str
    shape: Shape
    dtype: str
    fetch: Callable[[], Array] = field(repr=False, compare=False)
    """The elements as they are stored, in `shape`; bfloat16 as its 16 bits."""

    def unchecked(self) -> Floats:
        """The values, half precision widened to float32."""
        stored = self.fetch()
        if self.dtype == "BF16":
            stored = (stored.astype(np.uint32) << 16).view(np.float32)
        values: Floats = stored if stored.dtype.itemsize >= 4 else stored.astype(np.float32)
        return values

    def array(self, lenient: bool = False) -> Floats:
        """The same; raises WeightsError for NaN and infinities, or warns if `lenient`."""
        values = self.unchecked()
        bad = ~np.isfinite(values)
        if bad.any():
            where = tuple(map(int, np.argwhere(bad)[0]))
            value = float(values[where])
            problem = WeightsError(
                f"'{self.name}' of the source holds {value} at {list(where)}",
                hint="the file is damaged, or comes from a training run that diverged",
            )
            tolerate(problem, lenient)
        return values


@dataclass(frozen=True)
class Unit:
    """The tensors of one layer: a convolution (out, in / groups, rows, columns), a linear layer (out, in), or a
    batch normalisation, whose `weights` are its scales.
    """

    name: str
    kind: Literal["convolution", "linear", "batchnorm"]
    weights: Tensor | None
    bias: Tensor | None = None
    mean: Tensor | None = None
    variance: Tensor | None = None
    epsilon: float | None = None
    """None where the file does not say it."""
    pads: Pads | None = None
    strides: tuple[int, int] | None = None
    dilations: tuple[int, int] | None = None

    @property
    def channels(self) -> int:
        """Number of outputs."""
        first = self.mean if self.kind == "batchnorm" else self.weights
        assert first is not None
        return first.shape[0]

    @property
    def kernel(self) -> Shape:
        """(out, in / groups, rows, columns) of a convolution or a linear layer."""
        assert self.weights is not None
        return self.weights.shape if self.kind == "convolution" else (*self.weights.shape, 1, 1)

    @property
    def parent(self) -> str:
        """The module that it is a part of."""
        return self.name.rpartition(".")[0]

    def tensors(self) -> Iterator[Tensor]:
        """Tensors that belong to it."""
        for tensor in (self.weights, self.bias, self.mean, self.variance):
            if tensor is not None:
                yield tensor


@dataclass(frozen=True)
class Checkpoint:
    """A source's units in the order of the file; their names are unique."""

    path: Path
    format: str
    units: tuple[Unit, ...]
    ordered: bool
    """Whether the order of the file is that of execution, as far as such files know it."""
    norms: Mapping[str, str] = field(default_factory=dict)
    """Which batch normalisation follows a convolution; empty where neither order nor graph says so."""
    rest: tuple[str, ...] = ()
    """Names of what is no unit."""
    prefix: str = ""
    """What stood before every name."""
    notes: tuple[str, ...] = ()

    def find(self, name: str) -> Unit | None:
        """The unit called `name`, with the prefix or without it."""
        names = (name, name.removeprefix(self.prefix))
        return next((unit for unit in self.units if unit.name in names), None)
