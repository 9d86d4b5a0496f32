"""Tiles and vectors: what fits into registers, and that all pixels and channels are covered."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("tvm.relax", exc_type=ImportError)

from dnc.targets.tvm.compile import machine_for
from dnc.targets.tvm.schedules.machine import Machine
from dnc.targets.tvm.schedules.tiles import Band, Channels, choose
from dnc.targets.tvm.schedules.window import Window, spans

MACHINES = {"AVX-512": Machine(16, 32), "AVX": Machine(8, 16), "NEON": Machine(4, 32, loads=1), "SSE": Machine(4, 16)}


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES.keys())
@pytest.mark.parametrize("columns", [1, 7, 13, 100, 2704])
@pytest.mark.parametrize("vectors", [1, 2, 3, 5, 16, 64])
@pytest.mark.parametrize("spare", [0, 1])
def test_a_tile_fits_into_the_registers(machine: Machine, columns: int, vectors: int, spare: int) -> None:
    tiling = choose(columns, vectors, machine, spare)
    most = max(band.blocks for band in tiling.bands)
    assert most * tiling.width + most + 1 + spare <= machine.registers
    assert tiling.width <= columns
    covered = [v for band in tiling.bands for v in range(band.first, band.first + band.count * band.blocks)]
    assert covered == list(range(vectors))


def test_large_layers_use_nearly_all_registers() -> None:
    tiling = choose(2704, 16, MACHINES["AVX-512"])
    assert tiling.bands[0].blocks * tiling.width >= 24


@pytest.mark.parametrize(
    ("columns", "vectors", "depth", "width", "blocks", "first"),
    [
        (13, 64, 2304, 5, 2, 4),
        (52, 16, 576, 6, 2, 6),
        (104, 4, 288, 6, 2, 4),
        (8, 128, 4608, 4, 3, 4),
    ],
)
def test_rows_for_16_registers(columns: int, vectors: int, depth: int, width: int, blocks: int, first: int) -> None:
    """Ten to twelve sums, with few pixels computed twice: 13 are no tile of 13, nor three of 6."""
    tiling = choose(columns, vectors, MACHINES["AVX"], depth=depth)
    assert (tiling.width, tiling.bands[0].blocks, tiling.first) == (width, blocks, first)


def test_weights_from_the_second_level_cache() -> None:
    """Three vectors, each for two or three pixels, would wait for them."""
    near, far = (choose(11, 63, MACHINES["AVX"], depth=depth).bands[0].blocks for depth in (27, 2304))
    assert (near, far) == (3, 2)


def test_fewer_loads_where_one_is_started_at_once() -> None:
    """14 pixels by 2 vectors are 16 loads for 28 products."""
    tiling = choose(2704, 64, MACHINES["NEON"])
    blocks = tiling.bands[0].blocks
    assert 2 * (blocks + tiling.width) <= blocks * tiling.width


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES.keys())
@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 15, 16, 17, 24, 255])
def test_vectors_cover_all_channels(machine: Machine, count: int) -> None:
    channels = Channels.of(count, machine)
    starts = [channels.start(vector) for vector in range(channels.vectors)]
    assert {start + lane for start in starts for lane in range(channels.lanes)} == set(range(count))
    assert channels.lanes <= machine.lanes


def test_packed_weights() -> None:
    """Vector by vector for each step of the reduction; the last vector begins earlier."""
    weights = np.arange(2 * 3 * 10, dtype=np.float32).reshape(2, 3, 10)
    packed = Channels(10, 4).pack(weights, [Band(0, 2, 1), Band(2, 1, 1)])
    first, second = packed.reshape(2, -1)[:, :24].reshape(2, 3, 8), packed.reshape(2, -1)[:, 24:].reshape(2, 3, 4)
    np.testing.assert_array_equal(first, weights[:, :, :8])
    np.testing.assert_array_equal(second, weights[:, :, 6:])


@pytest.mark.parametrize("columns", [1, 5, 13, 14, 40])
@pytest.mark.parametrize("width", [1, 4, 13])
@pytest.mark.parametrize(("size", "stride", "padding"), [(3, 1, 1), (5, 2, 2), (1, 1, 0), (7, 1, 3)])
@pytest.mark.parametrize("first", [None, 1, 3])
def test_tiles_cover_a_row(columns: int, width: int, size: int, stride: int, padding: int, first: int | None) -> None:
    """With a first tile of another width no pixel twice."""
    first = None if first is None else min(first, columns)
    source = (columns - 1) * stride + size - 2 * padding
    window = Window(
        None,
        None,
        True,
        (size, size),
        (stride, stride),
        (1, 1),
        (padding, padding),
        1,
        (1, source, source, 8),
        (1, columns, columns, 8),
        None,
    )
    covered: list[int] = []
    for span in spans(window, width, first):
        for tile in range(span.count):
            pixels = range(span.start + tile * span.width, span.start + (tile + 1) * span.width)
            covered += pixels
            assert not span.inside or all(all(window.columns(pixel)) for pixel in pixels)
    assert set(covered) == set(range(columns))
    assert first is None or len(covered) == columns


@pytest.mark.parametrize(
    ("triple", "mcpu", "lanes", "registers"),
    [
        ("x86_64", "znver4", 16, 32),
        ("x86_64", "x86-64-v3", 8, 16),
        ("x86_64", "x86-64", 4, 16),
        ("aarch64", "cortex-a72", 4, 32),
    ],
)
def test_what_a_processor_has(triple: str, mcpu: str, lanes: int, registers: int) -> None:
    machine = Machine.of(machine_for(triple, mcpu).target)
    assert (machine.lanes, machine.registers) == (lanes, registers)
