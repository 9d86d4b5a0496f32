"""How a convolution or product is divided among blocks: of the tiles that a kind of kernel lists, and the ways to share
them, that one is taken which keeps the GPU busy for the shortest time, by a formula.

Threads, registers and shared memory of each tile are within the limits of all GPUs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dnc.runtime.runners.cuda.device import Device
from dnc.targets.cuda.schedules.helpers import TILES
from dnc.targets.tvm.schedules.kernel import Kernel
from dnc.targets.tvm.schedules.window import Window

__all__ = ["Form", "Kind", "Tile", "form_of", "forms_of", "ranked"]

_LATENCY = 800.0
"""Cycles until memory answers."""
_BANDWIDTH = 40.0
"""Bytes that a multiprocessor gets in a cycle, from a cache that all share."""
_STEP = 60.0
"""Cycles of a step besides its work: the barrier, and what it takes to find the strips."""
_RESIDENT = 512
"""Threads that a multiprocessor has at once, of kernels with many registers."""
_ARRIVAL = 2500.0
"""Cycles until the last of the blocks that share a tile knows that it is, and has read what the others have."""
_PARTS = (1, 2, 3, 4, 6, 8, 12, 16, 24)
_SCRATCH = 32 << 20
"""Bytes for the sums of blocks that share tiles, at most."""


@dataclass(frozen=True)
class Tile:
    """Outputs that one block computes, and its threads."""

    rows: int
    columns: int
    threads: int
    depth: int
    """How many k there are in a step."""
    cost: float
    """How long one number of the tile takes, compared to those of the other tiles of the list."""


@dataclass(frozen=True)
class Form:
    """A tile, and how many blocks share it."""

    tile: Tile
    parts: int = 1


@dataclass(frozen=True)
class Kind:
    """A kind of kernel for one function."""

    write: Callable[[Form], Kernel]
    forms: Sequence[tuple[float, Form]]
    """See `forms_of`."""
    new: bool = False
    """Whether no GPU has run it yet."""


def form_of(window: Window, tiles: Sequence[Tile], rate: float, device: Device) -> Form:
    """The form of the device's rank: that with which all blocks are done first, or one of the next."""
    forms = [form for _, form in forms_of(window, tiles, rate, device)]
    return forms[min(device.rank, len(forms) - 1)]


def forms_of(window: Window, tiles: Sequence[Tile], rate: float, device: Device) -> list[tuple[float, Form]]:
    """All forms, that with which all blocks are done first before the others, and by the formula how many cycles each
    takes.

    Args:
        rate: multiplications that a multiprocessor does in a cycle with the best of them.
    """
    pixels, channels = math.prod(window.output[:3]), window.output[3] // window.groups
    terms = math.prod(window.size) * window.source[3] // window.groups
    size = 2 if str(window.data.dtype) == "float16" else 4

    def time(form: Form) -> float:
        tile = form.tile
        area = tile.rows * tile.columns
        blocks = _tiles(tile) * form.parts
        steps = -(-terms // tile.depth // form.parts)
        here, resident = -(-blocks // device.processors), max(1, _RESIDENT // tile.threads)
        work = area * tile.depth * tile.cost / rate
        bring = (tile.rows + tile.columns) * tile.depth * size / _BANDWIDTH
        # A warp is on one of four schedulers.
        alone = max(work * max(1.0, 128 / tile.threads), bring, _LATENCY / (3 if device.copies else 1)) + _STEP
        finish = area * 4 / _BANDWIDTH * (1 if form.parts == 1 else form.parts + 1)
        turns = -(-here // resident)
        return (
            steps * max(here * max(work, bring), turns * alone)
            + turns * (_LATENCY + finish)
            + (_ARRIVAL if form.parts > 1 else 0.0)
        )

    def _tiles(tile: Tile) -> int:
        return -(-pixels // tile.rows) * -(-channels // tile.columns) * window.groups

    def fits(form: Form) -> bool:
        tile, parts = form.tile, form.parts
        scratch = _tiles(tile) * parts * tile.rows * tile.columns * 4
        return parts == 1 or (_tiles(tile) <= TILES and terms >= parts * 2 * tile.depth and scratch <= _SCRATCH)

    forms = [form for tile in tiles for parts in _PARTS if fits(form := Form(tile, parts))]
    return sorted(((time(form), form) for form in forms), key=lambda timed: timed[0])


def ranked(kinds: Sequence[Kind], device: Device) -> tuple[Kind, Form]:
    """The kind and the form of the device's rank, among all of some kinds.

    Those that a GPU has run come kind by kind. Those that none has run are in the order of the formula, before the
    others if the device wants them, else behind them.
    """
    measured = [(kind, form) for kind in kinds if not kind.new for _, form in kind.forms]
    unmeasured = [(cycles, kind, form) for kind in kinds if kind.new for cycles, form in kind.forms]
    new = [(kind, form) for _, kind, form in sorted(unmeasured, key=lambda timed: timed[0])]
    order = [*new, *measured] if device.new else [*measured, *new]
    return order[min(device.rank, len(order) - 1)]
