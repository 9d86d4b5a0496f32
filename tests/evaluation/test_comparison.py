"""Comparing: the arithmetic of errors, Darknet's peculiarities in recordings, and every pair of sides."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dnc
from dnc.compiler.comparing import compare_files
from dnc.darknet.network import Network
from dnc.darknet.reference import run_all
from dnc.darknet.weights import write_weights
from dnc.errors import DncError, DncWarning, ImageError
from dnc.evaluation.comparison import Comparison, Recording, ReferenceSide, Row, Sample, Side, compare
from tests import goldens
from tests.networks import TINY
from tests.thinning import thinned

Write = Callable[..., Path]

INF, NAN = math.inf, math.nan


class Fixed(Side):
    """Gives what it is given."""

    def __init__(self, title: str, outputs: dict[str, Any], reason: str = "") -> None:
        self.title = title
        self.values = {name: np.asarray(value, np.float32) for name, value in outputs.items()}
        self.reason = reason

    def outputs(self, sample: Sample) -> Iterable[tuple[str, Any]]:
        return self.values.items()

    def where(self, name: str) -> str:
        return f"net.cfg:1 {name}"

    def skip(self, name: str) -> str:
        return self.reason if name == "b" else ""


def compared(actual: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-4, reason: str = "") -> Comparison:
    sample = Sample("", np.zeros((1, 1), np.float32))
    return compare(Fixed("actual", actual), Fixed("expected", expected, reason), [sample], tolerance)


@pytest.mark.parametrize(
    ("actual", "expected", "absolute", "relative"),
    [
        ([1, 2, 3], [1, 2, 3], 0, 0),
        ([1, 2, 3.5], [1, -4, 3], 6, 1.5),
        ([0.25, 0], [0, 0], 0.25, INF),
        ([0, 0], [0, 0], 0, 0),
        ([INF, -INF, 1], [INF, -INF, 1], 0, 0),
        ([INF, 1], [1, 1], INF, INF),
        ([1, 1], [INF, 1], INF, INF),
        ([NAN, 1], [NAN, 1], 0, 0),
        ([NAN, 1], [1, 1], NAN, NAN),
        ([1, 1], [NAN, 1], NAN, INF),
    ],
)
def test_errors(actual: list[float], expected: list[float], absolute: float, relative: float) -> None:
    comparison = compared({"a": [actual]}, {"a": [expected]})
    (row,) = comparison.rows
    assert row.absolute == pytest.approx(absolute, nan_ok=True)
    differs = not relative <= 1e-4
    assert comparison.differs(row) == differs
    if not math.isnan(absolute):
        assert row.relative == pytest.approx(relative)
    assert comparison.first == (row if differs else None)
    assert row.note == ("has NaN" if NAN in expected else "")


def test_the_first_in_the_order_of_the_layers() -> None:
    values = {"a": [[1.0, 1]], "b": [[1.0, 2]], "c": [[1.0, 3]]}
    other = {"c": [[2.0, 3]], "b": [[2.0, 2]], "a": [[1.0, 1]]}
    comparison = compared(other, values)
    assert [row.name for row in comparison.rows] == ["a", "b", "c"]
    assert comparison.first == comparison.rows[1]
    assert comparison.rows[1] == Row("", "b", "net.cfg:1 b", (2,), 1.0, 0.5)
    assert compared(other, values, tolerance=0.5).first is None
    # A layer that is skipped does not count.
    comparison = compared(other, values, reason="it is garbage")
    assert comparison.rows[1] == Row("", "b", "net.cfg:1 b", (2,), skipped=True, note="it is garbage")
    assert comparison.first == comparison.rows[2]


def test_only_outputs_of_both_are_compared() -> None:
    assert [row.name for row in compared({"a": [[1]], "x": [[1]]}, {"a": [[1]], "b": [[1]]}).rows] == ["a"]
    with pytest.raises(DncError, match="no outputs in common: actual has x, expected has a, b"):
        compared({"x": [[1]]}, {"a": [[1]], "b": [[1]]})
    with pytest.raises(DncError, match="nothing in expected can be compared: it is garbage"):
        compared({"b": [[1]]}, {"b": [[1]]}, reason="it is garbage")


def test_sizes_that_differ() -> None:
    with pytest.raises(DncError, match=r"a has \(1, 3\) values in actual, but \(1, 2\) in expected") as caught:
        compared({"a": [[1, 2, 3]]}, {"a": [[1, 2]]})
    assert caught.value.where == "net.cfg:1 a"
    # The same values in another shape are no difference: Darknet's flat layers.
    assert compared({"a": np.ones((1, 4))}, {"a": np.ones((1, 4, 1, 1))}).first is None


def test_an_input_that_was_repeated_for_a_batch() -> None:
    two, four = [[1, 2]] * 2, [[1, 2]] * 4
    assert compared({"a": four}, {"a": two[:1]}).first is None
    assert compared({"a": two[:1]}, {"a": four}).first is None
    assert compared({"a": two}, {"a": four}).first is None
    assert compared({"a": [*two, [1, 3]]}, {"a": [[1, 2]]}).first is not None
    # Of a graph with non-maximum suppression inside, rows are boxes.
    with pytest.raises(DncError, match="detections has"):
        compared({"detections": four}, {"detections": two})


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def record(path: Path, cfg: str, *, seed: int = 0, change: Callable[[dict[str, Any]], None] | None = None) -> Path:
    """A recording of what the reference interpreter computes for random weights."""
    network = Network.parse(cfg).with_random_weights(seed)
    x = np.random.default_rng(seed).random(network.input_shape, np.float32)
    layers = {f"layer{index:03d}": value[0].copy() for index, value in run_all(network, x[None])}
    weights = io.BytesIO()
    write_weights(weights, network.layers, network.arrays)
    arrays = {"cfg": cfg, "weights": np.frombuffer(weights.getvalue(), np.uint8), "input": x, **layers}
    if change is not None:
        change(arrays)
    return save(path, **arrays)


@pytest.mark.parametrize("target", ["reference", "onnx"])
def test_a_recording_that_carries_its_network(target: str, tmp_path: Path) -> None:
    path = record(tmp_path / "net.npz", TINY)
    comparison = compare_files(path, target=target)
    assert comparison.expected == "net.npz, recorded from Darknet"
    assert comparison.first is None
    assert [(row.name, row.where) for row in comparison.rows] == [
        ("layer000", "net.cfg:6 [convolutional] #0"),
        ("layer001", "net.cfg:14 [convolutional] #1"),
        ("layer002", "net.cfg:21 [yolo] #2"),
    ]
    assert len(compare_files(path, target=target, cutoff=2).rows) == 2

    def spoil(arrays: dict[str, Any]) -> None:
        arrays["layer001"][3, 2, 1] += 0.1 * np.abs(arrays["layer001"]).max()

    first = compare_files(record(tmp_path / "bad.npz", TINY, change=spoil), target=target).first
    assert first is not None
    assert first.name == "layer001"
    assert first.relative == pytest.approx(0.1, rel=0.1)


ANTIALIASED = """[net]
width=8
height=8
channels=3
[convolutional]
filters=4
size=3
stride=2
pad=1
antialiasing=1
activation=linear
[maxpool]
size=2
stride=2
antialiasing=2
"""


def test_antialiased_layers_are_recorded_before_the_blur(tmp_path: Path) -> None:
    """Case 1: what is left of the larger map fills the end."""

    def pad(arrays: dict[str, Any]) -> None:
        assert arrays["layer000"].shape == (4, 4, 4)
        whole = np.full((4, 8, 8), 1e9, np.float32)
        whole.ravel()[: 4 * 16] = arrays["layer000"].ravel()
        arrays["layer000"] = whole

    path = record(tmp_path / "aa.npz", ANTIALIASED, change=pad)
    assert compare_files(path, target="reference").first is None
    # A network that is not antialiased has no such excuse.
    plain = ANTIALIASED.replace("antialiasing=1", "").replace("antialiasing=2", "")

    def enlarge(arrays: dict[str, Any]) -> None:
        arrays["layer000"] = np.zeros((4, 8, 8), np.float32)

    with pytest.raises(DncError, match=r"layer000 has \(1, 4, 4, 4\) values in .*, but \(1, 4, 8, 8\) in "):
        compare_files(record(tmp_path / "plain.npz", plain, change=enlarge), target="reference")


def test_cost_is_skipped(tmp_path: Path) -> None:
    """Case 2."""
    cfg = "[net]\ninputs=4\n[connected]\noutput=3\nactivation=linear\n[softmax]\n[cost]\n"

    def zero(arrays: dict[str, Any]) -> None:
        arrays["layer002"][:] = 0

    comparison = compare_files(record(tmp_path / "cost.npz", cfg, change=zero), target="reference")
    assert comparison.first is None
    assert [row.note for row in comparison.rows] == ["", "", "Darknet does not fill this layer"]


def test_xnor_on_32_channels_is_skipped_with_all_that_depends_on_it(tmp_path: Path) -> None:
    """Case 3."""
    cfg = "[net]\nwidth=4\nheight=4\nchannels=3\n" + "".join(
        f"[convolutional]\nfilters={filters}\nsize=1\nactivation=linear\n{more}\n"
        for filters, more in [(32, "xnor=1"), (8, "xnor=1"), (4, "")]
    )
    cfg += "[route]\nlayers=0\n[route]\nlayers=-1,-2\n"

    def spoil(arrays: dict[str, Any]) -> None:
        for name in ("layer001", "layer002", "layer004"):
            arrays[name][:] = 1e9

    comparison = compare_files(record(tmp_path / "xnor.npz", cfg, change=spoil), target="reference")
    assert comparison.first is None
    assert [row.skipped for row in comparison.rows] == [False, True, True, False, True]
    assert "xnor" in comparison.rows[1].note


def test_a_recording_of_several_inputs(write: Write, tmp_path: Path) -> None:
    cfg = write("tiny")
    network = Network.load(cfg, cfg.with_suffix(".weights"))
    arrays: dict[str, Any] = {}
    for name, seed in (("one", 1), ("two", 2)):
        arrays[f"input_{name}"] = np.random.default_rng(seed).random((3, 16, 16), np.float32)
        arrays[f"{name}_layer001"] = dict(run_all(network, arrays[f"input_{name}"][None]))[1][0]
    arrays["two_layer001"] = arrays["two_layer001"] * 2
    path = save(tmp_path / "several.npz", **arrays)
    comparison = compare_files(cfg, target="onnx", golden=path)
    assert [(row.sample, row.name) for row in comparison.rows] == [("one", "layer001"), ("two", "layer001")]
    assert comparison.first == comparison.rows[1]
    assert compare_files(cfg, path, target="onnx").rows == comparison.rows
    other_name = path.rename(tmp_path / "several.golden")
    assert compare_files(cfg, target="onnx", golden=other_name).rows == comparison.rows
    path = other_name.rename(path)
    with pytest.raises(DncError, match="carries no network"):
        compare_files(path)
    with pytest.raises(DncError, match="has its own input"):
        compare_files(cfg, target="onnx", golden=path, input=tmp_path / "x.npy")


def test_recordings_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no zip", encoding="utf-8")
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    whole = save(tmp_path / "whole.npz", input=np.zeros(100))
    (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:200])
    save(tmp_path / "objects.npz", input=np.array([None]))
    for name in ("none", "text", "array", "cut", "objects"):
        with pytest.raises(DncError, match="cannot read the recording"):
            Recording(tmp_path / f"{name}.npz")
    with pytest.raises(DncError, match="the recording has no input"):
        Recording(save(tmp_path / "empty.npz", layer000=np.zeros(3)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny.cfg and tiny.weights, and engines of it: heads, all layers, a batch of 3, u8, graph and graph+nms."""
    path = tmp_path_factory.mktemp("engines")
    cfg = path / "tiny.cfg"
    cfg.write_text(TINY, encoding="utf-8")
    network = Network.load(cfg).with_random_weights(2)
    with cfg.with_suffix(".weights").open("wb") as file:
        write_weights(file, network.layers, network.arrays)
    options: dict[str, dict[str, Any]] = {
        "heads": {},
        "all": {"keep_layers": True},
        "three": {"batch": 3, "keep_layers": True},
        "u8": {"input": "u8", "keep_layers": True},
        "graph": {"decode": "graph"},
        "nms": {"decode": "graph+nms"},
    }
    for name, chosen in options.items():
        dnc.compile(cfg, target="onnx", out=path / name, verify=False, **chosen)
    return path


def names(comparison: Comparison) -> list[str]:
    assert comparison.first is None, comparison
    return [row.name for row in comparison.rows]


ALL = ["layer000", "layer001", "layer002"]


def test_a_cfg_against_the_reference(folder: Path) -> None:
    comparison = compare_files(folder / "tiny.cfg", target="onnx")
    assert names(comparison) == ALL
    assert comparison.actual == "tiny.cfg for onnx"
    assert comparison.expected == "tiny.cfg in the reference interpreter"
    assert names(compare_files(folder / "tiny.cfg", cutoff=2, skip=["fold-batchnorm"], seed=3)) == ALL[:2]


def test_engines_against_the_reference(folder: Path) -> None:
    cfg = folder / "tiny.cfg"
    assert names(compare_files(folder / "heads", cfg)) == ALL[2:]
    for engine in ("all", "three", "u8"):
        assert names(compare_files(folder / engine, cfg)) == ALL
    with pytest.raises(
        DncError, match=r"no outputs in common: .*graph has boxes, scores, .* has layer000, layer001, layer002"
    ):
        compare_files(folder / "graph", cfg)


def test_engines_against_engines(folder: Path) -> None:
    assert names(compare_files(folder / "all", folder / "heads")) == ALL[2:]
    assert names(compare_files(folder / "three", folder / "all")) == ALL
    assert names(compare_files(folder / "all", folder / "three")) == ALL
    # 8-bit pixels at the network's size: both have the same input.
    assert names(compare_files(folder / "u8", folder / "all")) == ALL
    assert names(compare_files(folder / "heads", folder / "u8")) == ALL[2:]
    assert names(compare_files(folder / "graph", folder / "graph")) == ["boxes", "scores"]
    assert names(compare_files(folder / "nms", folder / "nms")) == ["detections"]
    assert names(compare_files(folder / "tiny.cfg", folder / "heads")) == ALL[2:]


def test_inputs(folder: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    Image.fromarray(generator.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / "x.png")
    cfg = folder / "tiny.cfg"
    assert names(compare_files(cfg, target="onnx", image=tmp_path / "x.png")) == ALL
    assert names(compare_files(folder / "u8", folder / "all", image=tmp_path / "x.png")) == ALL
    for shape in ((3, 16, 16), (1, 3, 16, 16), (2, 3, 16, 16)):
        np.save(tmp_path / "x.npy", generator.random(shape))
        assert names(compare_files(cfg, target="onnx", input=tmp_path / "x.npy")) == ALL
    with pytest.raises(DncError, match="this engine takes pixels"):
        compare_files(folder / "u8", cfg, input=tmp_path / "x.npy")
    for bad in (np.zeros((3, 16, 8)), np.zeros((3, 16, 16), "U3"), np.zeros(())):
        np.save(tmp_path / "bad.npy", bad)
        with pytest.raises(DncError, match="the input is "):
            compare_files(cfg, target="onnx", input=tmp_path / "bad.npy")
    with pytest.raises(DncError, match="the input is several arrays"):
        compare_files(cfg, target="onnx", input=save(tmp_path / "x.npz", a=np.zeros(3)))
    with pytest.raises(DncError, match="cannot read the input"):
        compare_files(cfg, target="onnx", input=tmp_path / "x.png")
    with pytest.raises(DncError, match="two inputs"):
        compare_files(cfg, target="onnx", input=tmp_path / "x.npy", image=tmp_path / "x.png")
    with pytest.raises(ImageError, match="no such image"):
        compare_files(cfg, target="onnx", image=tmp_path / "none.png")


def test_networks_that_take_no_images(write: Write, tmp_path: Path) -> None:
    cfg = write("vector")
    assert len(names(compare_files(cfg, target="onnx"))) == 4
    with pytest.raises(ImageError, match="takes no images"):
        compare_files(cfg, target="onnx", image=tmp_path / "x.png")
    assert len(names(compare_files(write("rnn"), target="onnx"))) == 5


def test_random_weights(folder: Path, tmp_path: Path) -> None:
    cfg = tmp_path / "net.cfg"
    cfg.write_text(TINY, encoding="utf-8")
    with pytest.raises(DncError, match="no weights beside the cfg"):
        compare_files(cfg, target="onnx")
    assert names(compare_files(cfg, target="onnx", random_weights=True)) == ALL
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.cfg"]
    # An engine of other weights differs from the first layer on, and the reason is given.
    with pytest.warns(DncWarning, match="made from another cfg or other weights"):
        comparison = compare_files(folder / "all", cfg, random_weights=True)
    assert comparison.first == comparison.rows[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error", DncWarning)
        compare_files(folder / "all", folder / "tiny.cfg")


def test_what_cannot_be_compared(folder: Path) -> None:
    cfg = folder / "tiny.cfg"
    with pytest.raises(DncError, match="an engine does not hold"):
        compare_files(folder / "all")
    with pytest.raises(DncError, match="has its target already"):
        compare_files(folder / "all", cfg, target="onnx")
    with pytest.raises(DncError, match="compared with itself"):
        compare_files(cfg, target="reference")
    with pytest.raises(DncError, match="two things to compare with"):
        compare_files(cfg, cfg, golden="x.npz")
    with pytest.raises(DncError, match="unknown target 'tpu'"):
        compare_files(cfg, target="tpu")
    network = Network.parse(TINY.replace("width=16", "width=32"), "wide.cfg").with_random_weights()
    sample = Sample("", np.zeros((1, 3, 16, 16), np.float32))
    with pytest.raises(DncError, match="the input has shape"):
        compare(ReferenceSide(network), ReferenceSide(network), [sample])


@pytest.mark.parametrize("target", thinned(["reference", "onnx"]))
def test_everything_that_darknet_computed(target: str) -> None:
    """Each of the small networks holds to the tolerance of `dnc compare`, by a factor of five."""
    for name in goldens.MICRO:
        path = goldens.micro(name).path
        if name in ("xnor", "xnor_1x1"):
            with pytest.raises(DncError, match="gets xnor on 32n channels wrong"):
                compare_files(path, target=target)
        else:
            assert compare_files(path, target=target, tolerance=2e-5).first is None, name
