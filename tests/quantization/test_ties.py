"""Equal ranges through layers that compute nothing."""

from __future__ import annotations

from dnc.darknet.network import Network
from dnc.quantization.calibration import Range
from dnc.quantization.ties import tie

CFG = """[net]
width=16
height=16
channels=3
[convolutional]
filters=4
size=3
pad=1
[maxpool]
size=2
stride=1
[convolutional]
filters=4
size=1
[upsample]
stride=1
[route]
layers=-1,1
[shortcut]
from=-4
[convolutional]
filters=4
"""
"""The shortcut adds layers of other depths: the channels that both have."""


def _network() -> Network:
    return Network.parse(CFG)


def _ranges(**thresholds: float) -> dict[str, Range]:
    return {name: Range.symmetric(float(t), -t / 2, t * 2) for name, t in thresholds.items()}


def _thresholds(ranges: dict[str, Range]) -> dict[str, int]:
    return {name: round(entry.threshold) for name, entry in ranges.items()}


RANGES = _ranges(input=1, layer000=2, layer001=9, layer002=5, layer003=1, layer004=3, layer005=8, layer006=4)


def test_pools_routes_and_upsampling() -> None:
    """The pool's own 9 says nothing: its input is clipped at 2. The route's inputs have the widest of 2 and 5."""
    tied = tie(_network(), RANGES)
    wanted = {"input": 1, "layer000": 5, "layer001": 5, "layer002": 5, "layer003": 5, "layer004": 5}
    assert _thresholds(tied) == {**wanted, "layer005": 8, "layer006": 4}
    assert all((tied[n].minimum, tied[n].maximum) == (RANGES[n].minimum, RANGES[n].maximum) for n in RANGES)
    assert len({(tied[f"layer00{i}"].low, tied[f"layer00{i}"].high) for i in range(5)}) == 1


def test_shortcuts() -> None:
    """layer003 adds layer002 and layer001, which has the range of layer000."""
    network = Network.parse(CFG.partition("[upsample]")[0] + "[shortcut]\nfrom=-2")
    ranges = _ranges(layer000=2, layer001=9, layer002=5, layer003=7)
    assert _thresholds(tie(network, ranges)) == {"layer000": 2, "layer001": 2, "layer002": 5, "layer003": 7}
    wanted = {"layer000": 5, "layer001": 5, "layer002": 5, "layer003": 7}
    assert _thresholds(tie(network, ranges, shortcuts=True)) == wanted


def test_ranges_that_are_missing() -> None:
    """As in a table that has those of convolutions' inputs alone: layer002 is tied to none that is there."""
    network = Network.parse(CFG.partition("[upsample]")[0])
    ranges = _ranges(input=1, layer001=9)
    assert _thresholds(tie(network, ranges)) == {"input": 1, "layer000": 9, "layer001": 9}
    assert _thresholds(tie(network, _ranges(layer000=2))) == {"layer000": 2, "layer001": 2}


def test_scaled_and_summing_upsampling_computes() -> None:
    for line in ("scale=2", "stride=-2"):
        text = CFG.partition("[route]")[0].replace("[upsample]\nstride=1", f"[upsample]\n{line}")
        ranges = _ranges(layer002=5, layer003=1)
        assert tie(Network.parse(text), ranges) == ranges
