"""Times of nodes become times of sections; nothing is scaled, and what is missing is listed."""

from __future__ import annotations

from pathlib import Path

import pytest

import dnc
from dnc.bench.layers import Layers, attribute, profile
from dnc.bench.peaks import Peaks, bandwidth, compute, peaks
from dnc.bench.report import Report, layers_report
from dnc.bench.subject import Subject
from dnc.darknet.network import Network
from dnc.errors import TargetError
from dnc.graph.composites import BINARY_CONVOLUTION
from dnc.graph.work import Work, place_of
from dnc.runtime.runners import Session
from dnc.targets import targets
from dnc.targets.onnx import Onnx
from dnc.targets.openvino import Openvino
from tests.networks import TINY, write_network

PEAKS = Peaks(compute=1e9, bandwidth=1e9, threads=1, precision="fp32")
WORK = [
    Work("#0", "a.cfg:3 [convolutional] #0", 4e6, 1e6),
    Work("#1", "[shortcut] #1", 1e3, 2e3),
    Work("#2", "[yolo] #2", 1e3, 2e6),
    Work("nms", "nms", 0.0, 0.0),
]


def test_nodes_are_added_up() -> None:
    nodes = [
        ("000_convolutional/Conv", 0.005),
        ("ReorderOutput_token_3 layer000", 0.003),
        ("layer002_nchwc", 0.004),
        ("Memcpy_1", 0.001),
    ]
    layers = attribute("e", WORK, [(0.020, nodes)], PEAKS, {"#2": "b.cfg:9 [yolo] #2"})
    assert [row.where for row in layers.rows] == [WORK[0].where, "b.cfg:9 [yolo] #2", "made by the engine"]
    assert [row.seconds for row in layers.rows] == pytest.approx([0.008, 0.004, 0.001])
    assert layers.between == pytest.approx(0.007)
    assert sum(row.seconds for row in layers.rows) + layers.between == pytest.approx(layers.seconds)
    # A section that moves nothing and has no time, like nms, is no news.
    assert layers.joined == ("[shortcut] #1",)
    first, second, made = layers.rows
    assert (first.bound, second.bound, made.bound) == ("compute", "memory", "")
    # 4 MFLOP in 8 ms where 4 ms would do; 2 MB in 4 ms where 2 would.
    assert (first.roof, second.roof) == pytest.approx((0.5, 0.5))
    assert (first.operations_per_second, second.bytes_per_second) == pytest.approx((5e8, 5e8))
    assert first.share == pytest.approx(0.4)


def test_order_is_that_of_the_cfg() -> None:
    """Whatever the order of the engine's nodes; what belongs to no section comes last."""
    work = [Work(place, place, 1e6, 1e6) for place in ("nms", "#10", "#2", "#0")]
    nodes = [("nms", 0.1), ("layer010", 0.1), ("layer002", 0.1), ("layer000", 0.1)]
    layers = attribute("e", work, [(0.5, nodes)], PEAKS, {})
    assert [row.where for row in layers.rows if row.where.startswith("#")] == ["#0", "#2", "#10"]
    assert not layers.rows[-1].where.startswith("#")


def test_peaks_that_are_not_known() -> None:
    """As a GPU's: times stay, roofs are left out."""
    layers = attribute("e", WORK, [(0.010, [("000_convolutional/Conv", 0.008)])], None, {})
    (row,) = layers.rows
    assert row.seconds == pytest.approx(0.008)
    assert (row.bound, row.roof) == ("", 0.0)
    report = Report()
    layers_report(layers, report)
    assert "peaks" not in report.markdown()


def test_what_is_computed_together() -> None:
    """The first section has the time and names the others; a word behind a blank is where a node belongs, not more."""
    nodes = [("001_shortcut/Add+000_convolutional/Conv", 0.005), ("000_convolutional/Conv layer002", 0.003)]
    layers = attribute("e", WORK, [(0.010, nodes)], PEAKS, {})
    assert [(row.where, row.also) for row in layers.rows] == [(WORK[0].where, ()), (WORK[1].where, ("#0",))]
    assert [row.seconds for row in layers.rows] == pytest.approx([0.003, 0.005])


def test_disturbed_chunks_do_not_count() -> None:
    quiet = (0.010, [("layer000", 0.008)])
    busy = (0.030, [("layer000", 0.090)])
    layers = attribute("e", WORK, [quiet, busy, quiet, busy], PEAKS, {})
    assert (layers.seconds, layers.between) == pytest.approx((0.010, 0.002))
    # A profile that slows the nodes down is not hidden.
    assert attribute("e", WORK, [(0.006, [("layer000", 0.008)])], PEAKS, {}).between == pytest.approx(-0.002)


@pytest.mark.parametrize("target", ["onnx", "openvino", "tvm"])
def test_an_engine_tells(target: str, tmp_path: Path) -> None:
    """Every section that computes has a row or is joined with one; both know the cfg's lines if they are told."""
    if targets[target]().missing():
        pytest.skip(f"needs {targets[target]().missing()}")
    cfg = write_network(tmp_path, "tiny", TINY)
    dnc.compile(cfg, target=target, out=tmp_path / "e", verify=False)
    subject = Subject("tiny", tmp_path / "e", 1)
    layers = profile(subject, measured=PEAKS)
    assert isinstance(layers, Layers)
    numbers = {where.rpartition("#")[2] for where in [*(row.where for row in layers.rows), *layers.joined]}
    assert {"0", "2"} <= numbers
    assert layers.seconds > 0
    places = {f"#{layer.index}": layer.where.short for layer in Network.load(cfg).layers}
    known = profile(subject, places, measured=PEAKS)
    assert known.rows[0].where == "tiny.cfg:6 [convolutional] #0"


def test_all_steps_of_tvm(tmp_path: Path) -> None:
    """Pixels and suppression too, whose sizes are known when they run."""
    if targets["tvm"]().missing():
        pytest.skip(f"needs {targets['tvm']().missing()}")
    cfg = write_network(tmp_path, "tiny", TINY)
    dnc.compile(cfg, target="tvm", out=tmp_path / "e", verify=False, decode="graph+nms", input="u8")
    subject = Subject("tiny", tmp_path / "e", 1)
    names = [name for name, _ in subject.session().profile(subject.feeds, 3)]
    assert [names[0], *names[-3:]] == ["preprocessing/", "nms/", "nms/", "nms/"]
    assert {"#0", "#1", "#2"} <= {place_of(node) for name in names for node in name.split("+")}


def test_an_engine_that_does_not_tell(engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(Session):
        device = "NPU"

        def run(self, inputs: object) -> list[object]:  # type: ignore[override]
            return []

    monkeypatch.setattr(Subject, "session", lambda self: Silent())
    with pytest.raises(TargetError, match="NPU does not tell"):
        profile(Subject("tiny", engines / "tiny.engine", 1), measured=PEAKS)


def test_roofs() -> None:
    limits = Peaks(compute=100.0, bandwidth=10.0, threads=1, precision="fp32")
    assert limits.ridge == 10
    assert limits.attainable(50, 1) == 0.5
    assert limits.attainable(50, 20) == 2.0
    # What is not measured takes no time.
    assert limits.attainable(50, 1, bits=1e9) == 0.5
    assert Peaks(100.0, 10.0, 1, "fp32", bits=1000.0).attainable(50, 1, bits=500) == 1.0


def test_operations_on_bits_have_a_peak_of_their_own() -> None:
    limits = Peaks(compute=100.0, bandwidth=1000.0, threads=1, precision="fp32", bits=1000.0)
    work = [Work("#0", "first", 10.0, 100.0, 900.0), Work("#1", "second", 0.0, 2000.0, 900.0)]
    chunks = [(10.0, [("000_a/b", 2.0), ("001_a/b", 8.0)])]
    first, second = attribute("e", work, chunks, limits, {}).rows
    assert (first.bits, first.bound, first.roof) == (900.0, "compute", 0.5)
    assert (second.bound, second.roof) == ("memory", 0.25)


@pytest.mark.parametrize("precision", ["fp32", "int8", "fp16"])
@pytest.mark.parametrize("kind", [Onnx, Openvino])
def test_peaks_are_those_of_the_engine(kind: type[Onnx] | type[Openvino], precision: str) -> None:
    """That they are positive is all that a test can say of them."""
    target = kind({"precision": precision})
    if target.missing():
        pytest.skip(target.missing())
    assert compute(target, 1) > 0
    assert bandwidth(2, size=1 << 16) > 0


def test_the_eight_bit_peak_is_of_eight_bits() -> None:
    from dnc.bench.peaks import _convolution

    operators = [node.op_type for node in _convolution(8, 1, 4, Onnx({"precision": "int8"})).graph]
    assert "QuantizeLinear" in operators
    assert "Conv" in operators


def test_the_peak_on_bits_is_of_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a target that takes convolutions of signs whole, as ONNX Runtime can."""
    from dnc.bench.peaks import _convolution

    monkeypatch.setattr(Onnx, "composites", frozenset({BINARY_CONVOLUTION}))
    monkeypatch.setattr(Onnx, "optimizations", lambda self: [])
    assert [node.op_type for node in _convolution(8, 1, 4, Onnx(), xnor=True).graph] == [BINARY_CONVOLUTION]
    assert peaks(Onnx(), 1, bits=True).bits > 0
    assert peaks(Onnx(), 1).bits == 0


def test_bandwidth_counts_what_is_read_and_written() -> None:
    """Copies of 800 bytes in half a second."""
    ticks = iter(range(100))
    assert bandwidth(1, size=800, seconds=0.0, clock=lambda: next(ticks) / 2) == pytest.approx(2 * 800 / 0.5)
