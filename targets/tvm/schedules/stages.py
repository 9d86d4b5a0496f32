"""What a fused function computes, read as a list of stages.

TVM's legalization and fusion give functions that are blocks one after the other, each over the whole of its output:

    pad[n, y, x, c]   = if_then_else(inside, data[n, y - 1, x - 1, c], 0)
    conv[n, y, x, o] += pad[n, y + ky, x + kx, c] * weight[ky, kx, c, o]
    add[n, y, x, o]   = conv[n, y, x, o] + bias[0, 0, 0, o]
    out[n, y, x, o]   = max(add[n, y, x, o], 0)

A Segment is one stage with the element-by-element stages after it, which can be computed while what it gave is still in
registers. A function is its segments in order; what one hands to another goes through memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import tvm_ffi
from tvm import ir, s_tir, tirx
from tvm.sym import Analyzer

from dnc.targets.tvm.minimal_filtering import WINOGRAD
from dnc.targets.tvm.schedules.loops import Expr, Stmt, allocate, loop, sequence, unrolled, vector

__all__ = [
    "Segment",
    "Stage",
    "Unmatched",
    "dims",
    "in_place",
    "inlined",
    "loads",
    "read",
    "reads",
    "replaced",
    "segments",
    "with_maximum",
]


class Unmatched(Exception):
    """A function, or a block of one, has a form that no rule knows."""


@dataclass(frozen=True)
class Stage:
    """A block: `buffer[indices] = value` for all values of its axes."""

    name: str
    axes: tuple[Any, ...]
    extents: tuple[int, ...]
    reduced: tuple[bool, ...]
    """Which axes are summed over, or whatever the value does with what is there."""
    buffer: Any
    indices: tuple[Any, ...]
    value: Expr
    start: Expr | None
    """What a reduction starts from."""
    winograd: int = 0
    """The side of the tiles in which winograd.py is to compute it; 0 if it is not."""

    @property
    def plain(self) -> bool:
        """Whether it is no reduction and each axis is one of the output's, in order."""
        return not any(self.reduced) and self.straight

    @property
    def straight(self) -> bool:
        """Whether it writes each element of its buffer once, its axes that are not reduced being the buffer's."""
        kept = [axis for axis, reduced in zip(self.axes, self.reduced, strict=True) if not reduced]
        shape = [extent for extent, reduced in zip(self.extents, self.reduced, strict=True) if not reduced]
        same = len(kept) == len(self.indices) and all(a.same_as(b) for a, b in zip(kept, self.indices, strict=True))
        return same and tuple(shape) == dims(self.buffer)


def dims(buffer: Any) -> tuple[int, ...]:
    """The shape of a buffer; raises Unmatched if it is not fixed."""
    if not all(isinstance(side, tirx.IntImm) for side in buffer.shape):
        raise Unmatched("the shape is not fixed")
    return tuple(int(side) for side in buffer.shape)


def loads(value: Expr) -> list[Any]:
    """Reads of buffers in an expression."""
    reads: list[Any] = []
    tvm_ffi.structural_walk(value, (ir.TensorLoad, reads.append), order="pre")
    return reads


def replaced(
    value: Expr, axes: Sequence[Any], indices: Sequence[Expr], load: Callable[[Any], Expr] | None = None
) -> Expr:
    """The expression with indices for its axes; and `load(read)` for each read, whose indices are replaced already."""

    def variable(node: Any) -> Expr:
        for axis, wanted in zip(axes, indices, strict=True):
            if node.same_as(axis):
                return wanted
        return node

    entries: list[Any] = [(tirx.Var, variable)]
    if load is not None:
        entries.append((ir.TensorLoad, load))
    return tvm_ffi.structural_map(value, entries, order="post")


def read(function: Any) -> list[Stage]:
    """The stages of a function.

    Raises:
        Unmatched: it has another form; the message says which.
    """
    root = function.body
    if not isinstance(root, s_tir.SBlockRealize):
        raise Unmatched("it is no block")
    body = root.block.body
    statements = list(body) if isinstance(body, tirx.SeqStmt) else [body]
    return [_stage(statement) for statement in statements]


def inlined(stages: Sequence[Stage], given: Sequence[Any], further: bool = False) -> list[Stage]:
    """The stages without those whose elements are better computed where they are read.

    1. A stage that only moves elements, if no reduction reads it.
    2. Any other, if one element of it is read for one of the reader, elsewhere than where that writes.

    Args:
        further: what 2. makes readable elsewhere, is looked at again; and what can be computed along with a reduction,
            stays there.
    """
    left = list(stages)
    for buffer in [stage.buffer for stage in stages]:
        stage = next(stage for stage in left if stage.buffer.same_as(buffer))
        if not stage.plain or _among(buffer, given) or (further and _follows_reduction(stage, left)):
            continue
        readers = [(reader, [load for load in loads(reader.value) if load.source.same_as(buffer)]) for reader in left]
        readers = [(reader, reads) for reader, reads in readers if reads]
        if not readers or not all(reader.plain for reader, _ in readers):
            continue
        reader, reads = readers[0]
        elsewhere = not in_place(reads[0], reader) or (further and dims(buffer) != dims(reader.buffer))
        once = len(readers) == len(reads) == 1 and elsewhere
        if not once and not _moves(stage.value):
            continue
        left = [_with(other, stage) for other in left if other is not stage]
    return inlined(left, given, True) if further and len(left) < len(stages) else left


def _follows_reduction(stage: Stage, stages: Sequence[Stage]) -> bool:
    """Whether a stage can be computed while a sum is still in registers."""
    read = [load for load in loads(stage.value) if in_place(load, stage) and dims(load.source) == dims(stage.buffer)]
    made = [other for other in stages if any(load.source.same_as(other.buffer) for load in read)]
    return any(any(other.reduced) or _follows_reduction(other, stages) for other in made)


def _moves(value: Expr) -> bool:
    """Whether an expression is an element of a buffer, or a choice of some."""
    if isinstance(value, ir.TensorLoad | tirx.FloatImm | tirx.IntImm):
        return True
    chooses = isinstance(value, ir.Call) and value.op.same_as(ir.Op.get("prim.if_then_else"))
    return chooses and all(_moves(choice) for choice in value.args[1:])


def _with(reader: Stage, stage: Stage) -> Stage:
    """A stage with the value of another in place of its reads."""
    analyzer = Analyzer()
    for axis, extent in zip(reader.axes, reader.extents, strict=True):
        analyzer.bind(axis, ir.Range(tirx.IntImm("int64", 0), tirx.IntImm("int64", extent)))

    def load(read: Any) -> Expr:
        if not read.source.same_as(stage.buffer):
            return read
        return replaced(stage.value, stage.axes, [analyzer.simplify(at) for at in read.indices])

    if not any(read.source.same_as(stage.buffer) for read in loads(reader.value)):
        return reader
    return replace(reader, value=analyzer.simplify(replaced(reader.value, (), (), load)))


def with_maximum(stage: Stage) -> Stage:
    """Writes `x if x > 0 else slope x` as the larger of both, which is the same for slopes from 0 to 1 and NaN, and an
    instruction less for each vector, or two."""

    def choice(select: Any) -> Expr:
        condition, x, other = select.condition, select.true_value, select.false_value
        if not isinstance(condition, tirx.LT | tirx.GT) or not isinstance(other, tirx.Mul):
            return select
        low, high = (condition.a, condition.b) if isinstance(condition, tirx.LT) else (condition.b, condition.a)
        zero = isinstance(low, tirx.FloatImm) and float(low.value) == 0
        within = isinstance(other.b, tirx.FloatImm) and 0 <= float(other.b.value) <= 1
        if zero and within and all(tvm_ffi.structural_equal(value, x) for value in (high, other.a)):
            return tirx.Max(x, other)
        return select

    return replace(stage, value=tvm_ffi.structural_map(stage.value, [(tirx.Select, choice)], order="post"))


def _stage(statement: Stmt) -> Stage:
    variables: list[Any] = []
    while isinstance(statement, tirx.For):
        variables.append(statement.loop_var)
        statement = statement.body
    if not isinstance(statement, s_tir.SBlockRealize):
        raise Unmatched("loops without a block")
    block = statement.block
    bound = list(statement.iter_values)
    whole = all(any(value.same_as(variable) for variable in variables) for value in bound if not _is_number(value))
    if not whole or not isinstance(block.body, tirx.BufferStore):
        raise Unmatched(f"block {block.name_hint} is no single store over loops of its own")
    extents = []
    for axis in block.iter_vars:
        if not isinstance(axis.dom.extent, tirx.IntImm) or int(axis.dom.min) != 0:
            raise Unmatched("the shape is not fixed")
        extents.append(int(axis.dom.extent))
    store = block.body
    return Stage(
        block.name_hint,
        tuple(axis.var for axis in block.iter_vars),
        tuple(extents),
        tuple(axis.iter_type == tirx.IterVar.CommReduce for axis in block.iter_vars),
        store.buffer,
        tuple(store.indices),
        store.value,
        None if block.init is None else block.init.value,
        int(block.annotations.get(WINOGRAD, 0)),
    )


def _is_number(value: Expr) -> bool:
    return isinstance(value, tirx.IntImm)


@dataclass
class Segment:
    """A stage and what follows it element by element."""

    anchor: Stage
    rest: list[Stage] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)
    """Buffers that other segments or the caller read."""
    inner: bool = False
    """Whether it reads what another segment of the function gives. TVM may then let it write where it reads, and no
    element must be computed twice."""
    stored: ClassVar[bool] = True
    """Whether the result itself goes to memory."""
    scope: str = "local"
    """Where TVM puts what is held between two stages."""

    @property
    def result(self) -> Any:
        """The buffer that it is computed for."""
        return (self.rest or [self.anchor])[-1].buffer

    @property
    def buffers(self) -> list[Any]:
        """Buffers that it gives a value to."""
        return [self.anchor.buffer, *(stage.buffer for stage in self.rest)]

    @property
    def long(self) -> bool:
        """Whether a function is called after the anchor: exp, say, which is some twenty instructions."""
        calls: list[Any] = []
        short = [ir.Op.get(name) for name in ("prim.if_then_else", "tirx.reinterpret", "tirx.call_llvm_pure_intrin")]
        for stage in self.rest:
            tvm_ffi.structural_walk(stage.value, (ir.Call, calls.append), order="pre")
        return any(not any(call.op.same_as(op) for op in short) for call in calls)

    def finish_tile(
        self, sums: Sequence[Any], at: Callable[[Expr, int], Callable[[Expr], Sequence[Expr]]], width: int, lanes: int
    ) -> Stmt:
        """`finish` for a tile of pixels by blocks of channels: written out, or if it is long, as a loop over pixels.

        Args:
            sums: the anchor's values: for each block a buffer with a vector for each pixel.
            at: where the elements of a pixel and a block stand.
        """

        def one(pixel: Expr, buffers: Sequence[Any]) -> Stmt:
            return sequence(
                *(
                    self.finish(at(pixel, block), lanes, partial(_element, buffer, pixel * lanes))
                    for block, buffer in enumerate(buffers)
                )
            )

        if width == 1 or not self.long:
            return unrolled(width, lambda pixel: one(pixel, sums))
        # A loop can count through memory, not through registers.
        dtype = self.anchor.buffer.dtype
        tile = [allocate([width * lanes], dtype, f"tile{block}", self.scope) for block in range(len(sums))]

        def copy(pixel: Expr) -> Stmt:
            return sequence(
                *(vector(lanes, partial(_move, s, t, pixel * lanes)) for s, t in zip(sums, tile, strict=True))
            )

        return sequence(
            *(tirx.AllocBuffer(buffer) for buffer in tile),
            unrolled(width, copy),
            loop(width, lambda pixel: one(pixel, tile)),
        )

    def keeps(self, buffer: Any) -> bool:
        """Whether a buffer has to be written to memory."""
        return _among(buffer, self.kept)

    def finish(
        self, at: Callable[[Expr], Sequence[Expr]], lanes: int, value: Callable[[Expr], Expr], into: Any = None
    ) -> Stmt:
        """Writes everything that follows the anchor, for `lanes` elements, and the stores.

        Args:
            at: where one of them stands in the result, by its number.
            lanes: how many at once.
            value: the anchor's value of one of them.
            into: a buffer of `lanes` that is given the results, too.
        """
        held: list[tuple[Any, Any]] = []
        truths: list[Stage] = []
        statements: list[Stmt] = []

        def element(stage: Stage, lane: Expr) -> Expr:
            def load(read: Any) -> Expr:
                for truth in truths:
                    if read.source.same_as(truth.buffer):
                        return element(truth, lane)
                local = next((local for buffer, local in held if read.source.same_as(buffer)), None)
                return read if local is None else tirx.BufferLoad(local, [lane])

            return value(lane) if stage is self.anchor else replaced(stage.value, stage.axes, at(lane), load)

        stages = (self.anchor, *self.rest)
        for stage in stages[:-1]:
            if str(stage.buffer.dtype) == "bool" and not self.keeps(stage.buffer):
                # Vectors of truths have no form in memory that TVM reads as it wrote them, for GPUs.
                truths.append(stage)
                continue
            local = allocate([lanes], stage.buffer.dtype, stage.name, self.scope)
            statements.append(tirx.AllocBuffer(local))
            statements.append(vector(lanes, partial(_store, local, partial(element, stage))))
            held.append((stage.buffer, local))
            if self.keeps(stage.buffer):
                statements.append(vector(lanes, partial(_copy, local, stage.buffer, at)))
        last = stages[-1]
        if into is not None:
            statements.append(vector(lanes, partial(_store, into, partial(element, last))))
            return sequence(*statements, vector(lanes, partial(_copy, into, last.buffer, at)) if self.stored else None)
        statements.append(
            vector(lanes, lambda lane: tirx.BufferStore(last.buffer, element(last, lane), list(at(lane))))
        )
        return sequence(*statements)


def _element(buffer: Any, first: Expr, lane: Expr) -> Expr:
    return tirx.BufferLoad(buffer, [first + lane])


def _move(source: Any, buffer: Any, first: Expr, lane: Expr) -> Stmt:
    return tirx.BufferStore(buffer, tirx.BufferLoad(source, [first + lane]), [first + lane])


def _store(buffer: Any, value: Callable[[Expr], Expr], lane: Expr) -> Stmt:
    return tirx.BufferStore(buffer, value(lane), [lane])


def _copy(source: Any, buffer: Any, at: Callable[[Expr], Sequence[Expr]], lane: Expr) -> Stmt:
    return tirx.BufferStore(buffer, tirx.BufferLoad(source, [lane]), list(at(lane)))


def segments(stages: Sequence[Stage], given: Sequence[Any]) -> list[Segment]:
    """The stages in segments; `given` are the function's parameters, its results among them."""
    cut: list[Segment] = []
    for stage in stages:
        if cut and _follows(stage, cut[-1], given):
            cut[-1].rest.append(stage)
        else:
            cut.append(Segment(stage))
    for place, segment in enumerate(cut):
        outside = [load.source for other in cut[:place] + cut[place + 1 :] for load in reads(other)]
        segment.kept = [buffer for buffer in segment.buffers if _among(buffer, outside) or _among(buffer, given)]
        known = [*segment.buffers, *given]
        segment.inner = any(not _among(load.source, known) for load in reads(segment))
    return cut


def _among(buffer: Any, buffers: Sequence[Any]) -> bool:
    return any(buffer.same_as(other) for other in buffers)


def reads(segment: Segment) -> list[Any]:
    """Reads of buffers in a segment."""
    return [load for stage in (segment.anchor, *segment.rest) for load in loads(stage.value)]


def _follows(stage: Stage, segment: Segment, given: Sequence[Any]) -> bool:
    """Whether a stage can be computed element by element along with a segment."""
    if not stage.plain or not segment.anchor.straight or dims(stage.buffer) != dims(segment.anchor.buffer):
        return False
    own = [load for load in loads(stage.value) if _among(load.source, segment.buffers)]
    others = [load for load in loads(stage.value) if not _among(load.source, [*segment.buffers, *given])]
    if others and not segment.anchor.plain:
        return False
    return bool(own) and all(in_place(load, stage) for load in own)


def in_place(load: Any, stage: Stage) -> bool:
    """Whether a stage reads the element that it writes."""
    return len(load.indices) == len(stage.axes) and all(
        at.same_as(axis) or (extent == 1 and _is_number(at) and int(at) == 0)
        for at, axis, extent in zip(load.indices, stage.axes, stage.extents, strict=True)
    )
