"""Stages that slide a window over (N, H, W, C): convolutions and pools, as TVM's legalization writes them.

    out[n, y, x, o] += data[n, y sy + ky dy, x sx + kx dx, channel] * weight[ky, kx, i, o]
    out[n, y, x, c]  = max(out[n, y, x, c], data[n, y sy + ky dy, x sx + kx dx, c])

Where `data` is a border put around a tensor by a stage before, the tensor itself is read: the schedules leave out what
the border would add. That needs a border of zeros for a sum, of numbers that are never the largest for a maximum.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tvm import ir, tirx
from tvm.sym import detect_linear_equation

from dnc.targets.tvm.schedules.loops import Expr
from dnc.targets.tvm.schedules.stages import Segment, Stage, dims, loads, replaced

__all__ = ["Span", "Window", "affine", "match", "spans", "uncast"]

_EIGHT = ("int8", "uint8", "int16")


@dataclass(frozen=True)
class Window:
    """A convolution or a pool. Pairs are (vertical, horizontal)."""

    data: Any
    """The tensor inside the border."""
    weight: Any | None
    """(kh, kw, I, O); None for a pool."""
    maximum: bool
    size: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]
    """Above and at the left; what is below and at the right follows from the shapes."""
    groups: int
    source: tuple[int, int, int, int]
    """The shape of `data`: (N, H, W, C)."""
    output: tuple[int, int, int, int]
    border: Stage | None
    """The stage that is not needed any more."""
    scales: Any | None = None
    """(N, 1, 1, C): what the data are multiplied with as they are read; only schedules for GPUs do that."""

    @property
    def work(self) -> int:
        """Multiplications, or comparisons."""
        inputs = 1 if self.weight is None else self.source[3] // self.groups
        return math.prod(self.output) * math.prod(self.size) * inputs

    def rows(self, y: Expr) -> tuple[Expr, Expr]:
        """Rows of the window that lie inside the tensor, for a row of the output: the first, and how many."""
        size, stride, dilation, before = self.size[0], self.stride[0], self.dilation[0], self.padding[0]
        height, rows = self.source[1], self.output[1]
        first: Expr = 0
        last: Expr = size
        if before > 0:
            first = tirx.max((before - y * stride + dilation - 1) // dilation, tirx.IntImm("int64", 0))
        if (rows - 1) * stride - before + (size - 1) * dilation >= height:
            last = tirx.min((height + before - y * stride + dilation - 1) // dilation, tirx.IntImm("int64", size))
        if isinstance(first, int) and isinstance(last, int):
            return 0, size
        return first, tirx.max(last - first, tirx.IntImm("int64", 0))

    def columns(self, x: int) -> list[bool]:
        """Columns of the window that lie inside the tensor, for a column of the output."""
        places = (x * self.stride[1] - self.padding[1] + k * self.dilation[1] for k in range(self.size[1]))
        return [0 <= place < self.source[2] for place in places]


@dataclass(frozen=True)
class Span:
    """Tiles of a row of the output: `count` of them, `width` columns each, from column `start` on, `step` apart."""

    start: int
    width: int
    count: int
    inside: bool
    """Whether their windows lie inside the tensor; if not, count is 1."""

    def column(self, tile: Expr) -> Expr:
        """The first column of a tile."""
        return self.start + tile * self.width

    def continued(self, start: int, width: int) -> bool:
        """Whether a tile is the next one."""
        return width == self.width and start == self.column(self.count)


def spans(window: Window, width: int, first: int | None = None) -> list[Span]:
    """Cuts a row into tiles of one width.

    Args:
        first: the width of the first tile; the last one is what is left. If not given, the last one may overlap the one
            before: what both compute is equal.
    """
    columns = window.output[2]
    width = min(width, columns)
    if first is None:
        tiles = [(min(start, columns - width), width) for start in range(0, columns, width)]
    else:
        tiles = [(0, first), *((start, min(width, columns - start)) for start in range(first, columns, width))]
    cut: list[Span] = []
    for start, wide in tiles:
        inside = all(all(window.columns(x)) for x in range(start, start + wide))
        before = cut[-1] if cut else None
        if inside and before is not None and before.inside and before.continued(start, wide):
            cut[-1] = replace(before, count=before.count + 1)
        else:
            cut.append(Span(start, wide, 1, inside))
    return cut


def match(segment: Segment, before: Sequence[Stage], bits: bool = False) -> Window | None:
    """The window that the segment's anchor slides; None if it does something else.

    Args:
        before: the stages of the function, among which may be the one that made the border.
        bits: whether it counts the bits in which data and weights differ, eight of them at each index, instead.
    """
    stage = segment.anchor
    kept = [axis for axis, reduced in zip(stage.axes, stage.reduced, strict=True) if not reduced]
    summed = [axis for axis, reduced in zip(stage.axes, stage.reduced, strict=True) if reduced]
    if len(kept) != 4 or len(summed) not in (2, 3) or not stage.straight or stage.start is None:
        return None
    maximum = isinstance(stage.value, tirx.Max)
    if not isinstance(stage.value, tirx.Add | tirx.Max) or not _reads_itself(stage.value.a, stage):
        return None
    term = stage.value.b
    if len(summed) == 3:
        factors = _differing(term) if bits else (term.a, term.b) if isinstance(term, tirx.Mul) else None
        if maximum or factors is None:
            return None
        data, weight = map(uncast, factors)
        weight_axes = (*summed, kept[3])
        if not _reads(weight) or not _same(weight.indices, weight_axes):
            return None
    else:
        data, weight = term, None
    if not _reads(data) or len(data.indices) != 4 or not data.indices[0].same_as(kept[0]):
        return None
    vertical = affine(data.indices[1], kept[1], summed[0])
    horizontal = affine(data.indices[2], kept[2], summed[1])
    if vertical is None or horizontal is None:
        return None
    sizes = [extent for extent, reduced in zip(stage.extents, stage.reduced, strict=True) if reduced]
    inner, border = _without_border(data.source, before, maximum)
    source = dims(inner.data)
    output = dims(stage.buffer)
    groups = 1
    if weight is not None:
        groups = source[3] // sizes[2]
        if not _channel(data.indices[3], kept[3], summed[2], groups, source[3], output[3]):
            return None
    elif not data.indices[3].same_as(kept[3]):
        return None
    padding = (inner.top - vertical[2], inner.left - horizontal[2])
    return Window(
        inner.data,
        None if weight is None else weight.source,
        maximum,
        (sizes[0], sizes[1]),
        (vertical[0], horizontal[0]),
        (vertical[1], horizontal[1]),
        padding,
        groups,
        (source[0], source[1], source[2], source[3]),
        (output[0], output[1], output[2], output[3]),
        border,
    )


@dataclass(frozen=True)
class _Inner:
    data: Any
    top: int
    left: int


def _reads(value: Expr) -> bool:
    return isinstance(value, ir.TensorLoad)


def _same(indices: Sequence[Expr], axes: Sequence[Any]) -> bool:
    return len(indices) == len(axes) and all(a.same_as(b) for a, b in zip(indices, axes, strict=True))


def _reads_itself(value: Expr, stage: Stage) -> bool:
    return _reads(value) and value.source.same_as(stage.buffer) and _same(value.indices, stage.indices)


def uncast(value: Expr) -> Expr:
    """Factor of a product, where an 8-bit number is cast to the type of the sums, or a bfloat16, held as an integer, is
    shifted to its place in a float32."""
    if isinstance(value, tirx.Cast) and str(value.value.ty) in _EIGHT:
        return value.value
    if isinstance(value, ir.Call) and value.op.same_as(ir.Op.get("tirx.reinterpret")):
        shifted = value.args[0]
        bits = shifted.a if isinstance(shifted, tirx.LShift) else None
        if isinstance(bits, tirx.Cast) and str(bits.value.ty) == "uint16":
            return bits.value
    return value


def _differing(value: Expr) -> tuple[Expr, Expr] | None:
    """What is compared where an expression counts the bits that differ."""
    counted = value.value if isinstance(value, tirx.Cast) else value
    if not isinstance(counted, ir.Call) or not counted.op.same_as(ir.Op.get("tirx.popcount")):
        return None
    bits = counted.args[0]
    return (bits.a, bits.b) if isinstance(bits, tirx.BitwiseXor) else None


def affine(value: Expr, *axes: Any) -> tuple[int, ...] | None:
    """The factors of the axes, and what is added, if the expression is that."""
    factors = list(detect_linear_equation(value, list(axes)))
    if len(factors) != len(axes) + 1 or not all(isinstance(part, tirx.IntImm) for part in factors):
        return None
    return tuple(int(part) for part in factors)


def _channel(index: Expr, output: Any, summed: Any, groups: int, inputs: int, outputs: int) -> bool:
    """Whether an index is the input channel of a convolution with these groups."""
    if groups == 1:
        return bool(index.same_as(summed))
    from tvm.sym import Analyzer

    wanted = output // (outputs // groups) * (inputs // groups) + summed
    analyzer = Analyzer()
    for axis, extent in ((output, outputs), (summed, inputs // groups)):
        analyzer.bind(axis, ir.Range(tirx.IntImm("int64", 0), tirx.IntImm("int64", extent)))
    return bool(analyzer.can_prove_equal(index, wanted))


def _without_border(buffer: Any, before: Sequence[Stage], maximum: bool) -> tuple[_Inner, Stage | None]:
    """Finds what lies inside a buffer that a stage made by putting a border around it, and that stage."""
    outside = _Inner(buffer, 0, 0)
    stage = next((stage for stage in before if stage.buffer.same_as(buffer)), None)
    if stage is None or not stage.plain or len(stage.axes) != 4:
        return outside, None
    value = stage.value
    if _reads(value) and _same(value.indices, stage.axes) and dims(value.source) == dims(buffer):
        return _Inner(value.source, 0, 0), stage
    if not isinstance(value, ir.Call) or not value.op.same_as(ir.Op.get("prim.if_then_else")):
        return outside, None
    condition, read, filling = value.args
    if not _reads(read) or not isinstance(filling, tirx.FloatImm | tirx.IntImm) or loads(condition):
        return outside, None
    number = float(filling.value)
    if number > float(tirx.min_value(str(buffer.dtype)).value) if maximum else number != 0:
        return outside, None
    offsets = [affine(at, axis) for at, axis in zip(read.indices, stage.axes, strict=True)]
    if any(offset is None or offset[0] != 1 for offset in offsets):
        return outside, None
    first = [-offset[1] for offset in offsets if offset is not None]
    inner = dims(read.source)
    outer = dims(stage.buffer)
    if first[0] or first[3] or inner[0] != outer[0] or inner[3] != outer[3]:
        return outside, None
    if not _is_inside(condition, stage, first, inner):
        return outside, None
    return _Inner(read.source, first[1], first[2]), stage


def _is_inside(condition: Expr, stage: Stage, first: Sequence[int], inner: Sequence[int]) -> bool:
    """Whether a condition says that an index lies inside, and nothing else: tried at the edges."""
    from tvm.sym import Analyzer

    analyzer = Analyzer()
    edges = []
    for low, size, outer in zip(first[1:3], inner[1:3], stage.extents[1:3], strict=True):
        edges.append([at for at in {0, low - 1, low, low + size - 1, low + size, outer - 1} if 0 <= at < outer])
    for y, x in itertools.product(*edges):
        at = [tirx.IntImm("int64", place) for place in (0, y, x, 0)]
        truth = analyzer.simplify(replaced(condition, stage.axes, at))
        wanted = first[1] <= y < first[1] + inner[1] and first[2] <= x < first[2] + inner[2]
        if not isinstance(truth, tirx.IntImm) or bool(int(truth)) != wanted:
            return False
    return True
