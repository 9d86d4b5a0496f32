"""How a convolution or product is divided among blocks: of the tiles that a kind of kernel lists, and the ways to share
them, that one is taken which keeps the GPU busy for the shortest time, by a formula.

Threads, registers and shared memory of each tile are within the limits of all GPUs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from dnc.runtime.runners.cuda.device import Device
from dnc.targets.cuda.schedules.helpers import TILES
from dnc.targets.tvm.schedules.kernel import Kernel
from dnc.targets.tvm.schedules.window import Window

__all__ = ["Costs", "Form", "Kind", "Tile", "cycles", "form_of", "forms_of", "ranked"]


@dataclass(frozen=True)
class Costs:
    """What the parts of a kernel take, in cycles. The numbers are fitted to kernels of an H200 (benchmarks/forms.py),
    whose times the formula then gives with a standard deviation of a factor of 1.2."""

    launch: float = 2200.0
    """Until the first block begins, and from the end of the last one to the next kernel."""
    latency: float = 730.0
    """Until memory answers."""
    step: float = 260.0
    """A step at least, whose strips were asked for some steps before."""
    bandwidth: float = 24.4
    """Bytes that a multiprocessor gets in a cycle, from a cache that all share."""
    vector: float = 0.27
    """For a vector of the strip of data: where it is, has to be found."""
    finish: float = 0.33
    """What follows the sums, for each of them."""
    arrival: float = 2250.0
    """Until the last of the blocks that share a tile knows that it is, and has read what the others have."""


_RESIDENT = 512
"""Threads that a multiprocessor has at once, of kernels with many registers."""
_BYTES = {"float16": 2, "uint16": 2, "int8": 1, "uint8": 1}
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


_COSTS = Costs()


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
    terms = math.prod(window.size) * window.source[3] // window.groups

    def fits(form: Form) -> bool:
        tile, parts = form.tile, form.parts
        count = _count(window, tile)
        scratch = count * parts * tile.rows * tile.columns * 4
        return parts == 1 or (count <= TILES and terms >= parts * 2 * tile.depth and scratch <= _SCRATCH)

    forms = [form for tile in tiles for parts in _PARTS if fits(form := Form(tile, parts))]
    return sorted(((cycles(window, form, rate, device), form) for form in forms), key=lambda timed: timed[0])


def cycles(window: Window, form: Form, rate: float, device: Device, costs: Costs = _COSTS) -> float:
    """How long a form takes, by the formula.

    A multiprocessor has `here` blocks, some at a time. In each step it multiplies and brings strips for all that it
    has, unless these are too few to fill the time until a step's strips are there.
    """
    tile, parts = form.tile, form.parts
    inputs, area = window.source[3] // window.groups, tile.rows * tile.columns
    size = _BYTES.get(str(window.data.dtype), 4)
    here = -(-_count(window, tile) * parts // device.processors)
    turns = -(-here // max(1, _RESIDENT // tile.threads))
    steps = -(-math.prod(window.size) * inputs // tile.depth // parts)
    work = area * tile.depth * tile.cost / rate
    bring = (tile.rows + tile.columns) * tile.depth * size / costs.bandwidth
    bring += tile.rows * tile.depth / math.gcd(inputs, 16 // size) * costs.vector
    # A warp is on one of four schedulers.
    alone = max(work * max(1.0, 128 / tile.threads), bring, costs.step if device.copies else costs.latency)
    shared = 0.0 if parts == 1 else costs.arrival + here * area * 4 * (parts + 1) / costs.bandwidth
    return (
        costs.launch
        + turns * costs.latency
        + steps * max(here * max(work, bring), turns * alone)
        + here * area * costs.finish
        + shared
    )


def _count(window: Window, tile: Tile) -> int:
    """Tiles of a convolution."""
    pixels, channels = math.prod(window.output[:3]), window.output[3] // window.groups
    return -(-pixels // tile.rows) * -(-channels // tile.columns) * window.groups


def ranked(kinds: Sequence[Kind], device: Device) -> tuple[Kind, Form]:
    """The kind and the form of the device's rank, among all of some kinds.

    Those that a GPU has run come kind by kind; those that none has run are in the order of the formula. The first one
    is of the latter if the device wants them, else of the former. Then they come by turns: not all ranks are tried, and
    either may be the faster one.
    """
    measured = [(kind, form) for kind in kinds if not kind.new for _, form in kind.forms]
    unmeasured = [(cycles, kind, form) for kind in kinds if kind.new for cycles, form in kind.forms]
    new = [(kind, form) for _, kind, form in sorted(unmeasured, key=lambda timed: timed[0])]
    first, others = (new, measured) if device.new else (measured, new)
    turns = zip_longest(others, first[1:])
    order = [*first[:1], *(one for pair in turns for one in pair if one is not None)]
    return order[min(device.rank, len(order) - 1)]
