"""The formula that picks tiles, against kernels that an H200 ran (benchmarks/forms.py compares it with all of them)."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("tvm.relax", exc_type=ImportError)

from dnc.runtime.runners.cuda.device import Device
from dnc.targets.cuda.schedules import tensors, tiled
from dnc.targets.cuda.schedules.forms import Form, Kind, cycles, forms_of, ranked
from dnc.targets.cuda.schedules.mma import MMA_RATE, mma_tiles

_CYCLES = 1755
"""In a microsecond."""
_MEASURED = [
    # Input and output (images, height, width, channels), side of the window; tile: rows, columns, threads, depth;
    # blocks that share it; microseconds. All in float16.
    ((1, 56, 56, 96), (1, 56, 56, 24), 1, (32, 32, 128, 64), 1, 2.14),
    ((1, 14, 14, 384), (1, 14, 14, 112), 1, (32, 32, 128, 64), 1, 2.48),
    ((1, 7, 7, 960), (1, 7, 7, 192), 1, (32, 32, 128, 64), 6, 4.40),
    ((1, 104, 104, 64), (1, 104, 104, 64), 3, (64, 64, 128, 32), 1, 9.55),
    ((1, 13, 13, 512), (1, 13, 13, 512), 3, (64, 32, 128, 64), 8, 17.58),
    ((16, 208, 208, 16), (16, 208, 208, 96), 1, (128, 128, 128, 32), 1, 137.66),
    ((16, 26, 26, 576), (16, 26, 26, 112), 1, (64, 64, 128, 32), 1, 15.39),
]


def _window(source: tuple[int, ...], output: tuple[int, ...], size: int, dtype: str) -> Any:
    return SimpleNamespace(source=source, output=output, size=(size, size), groups=1, data=SimpleNamespace(dtype=dtype))


def test_cycles() -> None:
    """Each within a factor of 1.5, which is two standard deviations of all; on the whole, within 15 %."""
    device = Device.of(["sm_90"])
    logs = []
    for source, output, size, sides, parts, microseconds in _MEASURED:
        tile = next(each for each in tensors._TILES if (each.rows, each.columns, each.threads, each.depth) == sides)
        window = _window(source, output, size, "float16")
        predicted = cycles(window, Form(tile, parts), tensors._RATE, device) / _CYCLES
        logs.append(math.log(microseconds / predicted))
    assert max(map(abs, logs)) < math.log(1.5)
    assert abs(sum(logs) / len(logs)) < math.log(1.15)


def test_forms_of() -> None:
    """All forms in the order of the formula; no block shares a tile that has steps for one alone."""
    device = Device.of(["sm_90"])
    forms = forms_of(_window((1, 13, 13, 16), (1, 13, 13, 32), 1, "float32"), tiled.SCALAR_TILES, tiled._RATE, device)
    times = [time for time, _ in forms]
    assert times == sorted(times)
    assert {form.parts for _, form in forms} == {1}
    # What tuning on an H200 found better than the form that the formula took before.
    forms = forms_of(_window((1, 104, 104, 32), (1, 104, 104, 32), 3, "float16"), tensors._TILES, tensors._RATE, device)
    assert (forms[0][1].tile.rows, forms[0][1].tile.columns) == (128, 32)


@pytest.mark.parametrize("new", [False, True])
def test_kinds_take_turns(new: bool) -> None:
    """What no GPU has run is the first one only where it is wanted; tuning, which tries some sixty, comes to either."""
    device = replace(Device.of(["sm_90"]), new=new)
    window: Any = _window((1, 26, 26, 256), (1, 26, 26, 256), 3, "float16")
    forms = {
        "measured": forms_of(window, tensors._TILES, tensors._RATE, device),
        "new": forms_of(window, mma_tiles(window, device), MMA_RATE, device),
    }
    kinds = [Kind(lambda _: None, each, name == "new") for name, each in forms.items()]  # type: ignore[arg-type,return-value]
    assert all(len(each) > 60 for each in forms.values())
    count = sum(map(len, forms.values()))
    found = [ranked(kinds, replace(device, rank=rank)) for rank in range(count + 1)]
    assert found[0] == (kinds[new], forms["new" if new else "measured"][0][1])
    assert {kind.new for kind, _ in found[1:3]} == {False, True}
    assert len({(kind.new, form) for kind, form in found}) == count
    assert ranked(kinds[:1], device)[0] is kinds[0]
    assert ranked(kinds[1:], device)[0] is kinds[1]
