"""Results that are written where others want them: beside another map, whose concatenation with them is read next, or
some of the channels once more by themselves. What computes the results writes them there, and what lies beside them.
No GPU has run such kernels yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import ir, tirx

from dnc.targets.cuda.schedules.threads import scoped, when
from dnc.targets.tvm.schedules.loops import Expr, Stmt, allocate, vector
from dnc.targets.tvm.schedules.stages import Segment, Stage, dims, loads
from dnc.targets.tvm.schedules.window import affine

__all__ = ["Joint", "joined"]

_EVEN = 8
"""What channels begin at multiples of, so that vectors are not cut."""


@dataclass
class Joint(Segment):
    """A segment whose results go to the buffer of a stage behind.

    Either that is a concatenation, of which they are a part, or a part of them.
    """

    stage: Stage | None = None
    starts: tuple[tuple[Any, int], ...] = ()
    """The maps of a concatenation, and at which channel each begins; of a part of the results, these and minus the
    first."""

    @property
    def stored(self) -> bool:  # type: ignore[override]
        """Whether somebody else reads the results."""
        return len(self.starts) == 1

    @property
    def left_out(self) -> list[Any]:
        """Buffers that nothing computes any more."""
        assert self.stage is not None
        return [self.stage.buffer] if self.stored else [self.stage.buffer, self.result]

    def finish(
        self, at: Callable[[Expr], Sequence[Expr]], lanes: int, value: Callable[[Expr], Expr], into: Any = None
    ) -> Stmt:
        """The same, and all that the stage behind writes."""
        assert self.stage is not None
        buffer, given = self.stage.buffer, into
        if given is None:
            given = allocate([lanes], str(self.result.dtype), "given")
        own = dims(self.result)[-1]
        statements = []

        def put(start: int, element: Callable[[Expr], Expr], lane: Expr) -> Stmt:
            *outer, channel = at(lane)
            return tirx.BufferStore(buffer, element(lane), [*outer, channel + start])

        def result(lane: Expr) -> Expr:
            return tirx.BufferLoad(given, [lane])

        def other(source: Any, start: int, lane: Expr) -> Expr:
            *outer, channel = at(lane)
            return tirx.BufferLoad(source, [*outer, channel + start])

        for source, start in self.starts:
            if source.same_as(self.result):
                statement = vector(lanes, partial(put, start, result))
                if self.stored:
                    channel, count = at(tirx.IntImm("int64", 0))[-1], dims(buffer)[-1]
                    statement = when(tirx.all(channel >= -start, channel < count - start), statement)
                statements.append(statement)
                continue
            for part in range(0, dims(source)[-1], own):
                statements.append(vector(lanes, partial(put, start + part, partial(other, source, part))))
        held = [] if into is not None else [given]
        return scoped(held, super().finish(at, lanes, value, given), *statements)


def joined(segment: Segment, stages: Sequence[Stage]) -> Joint | None:
    """The segment with the one stage behind it that only puts its results somewhere else, with other maps or without;
    None if there is none."""
    result = segment.result
    behind = [stage for stage in stages if any(load.source.same_as(result) for load in loads(stage.value))]
    behind = [stage for stage in behind if not any(stage is own for own in segment.rest)]
    if len(behind) != 1 or not segment.rest or not behind[0].plain or len(dims(result)) != 4:
        return None
    stage = behind[0]
    if any(load.source.same_as(stage.buffer) for other in stages for load in loads(other.value)):
        return None
    starts = []
    for load in _leaves(stage.value):
        outer = all(at.same_as(axis) for at, axis in zip(load.indices[:-1], stage.axes[:-1], strict=True))
        factors = affine(load.indices[-1], stage.axes[-1])
        if not outer or factors is None or factors[0] != 1 or dims(load.source)[:-1] != dims(stage.buffer)[:-1]:
            return None
        starts.append((load.source, -factors[1]))
    if str(stage.buffer.dtype) != str(result.dtype) or any(start % _EVEN for _, start in starts):
        return None
    own, count = dims(result)[-1], dims(stage.buffer)[-1]
    if own % _EVEN or count % _EVEN or sum(source.same_as(result) for source, _ in starts) != 1:
        return None
    if len(starts) > 1:
        ends = [start + dims(source)[-1] for source, start in starts]
        # They lie one after the other, and a vector of results has as many of each beside it.
        if sorted([start for _, start in starts] + [count]) != sorted([0, *ends]):
            return None
        if any(dims(source)[-1] % own for source, _ in starts):
            return None
    elif starts[0][1] > 0 or own < count - starts[0][1]:
        return None
    return Joint(segment.anchor, segment.rest, segment.kept, segment.inner, segment.scope, stage, tuple(starts))


def _leaves(value: Expr) -> list[Any]:
    """The loads among which an expression chooses; none if it does anything else."""
    if isinstance(value, ir.TensorLoad):
        return [value]
    if isinstance(value, ir.Call) and value.op.same_as(ir.Op.get("prim.if_then_else")) and not loads(value.args[0]):
        choices = [_leaves(choice) for choice in value.args[1:]]
        return [load for choice in choices for load in choice] if all(choices) else []
    return []
