"""What the layers of an engine compute and move: counted by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import dnc
from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.errors import TargetError
from dnc.graph.work import Node, Work, described_work, place_of, read_places, read_work, work_of
from tests.networks import NETWORKS, TINY, write_network

CONV0 = 2 * 3 * 9 * 8 * 64
"""Of TINY: 3 x 3 x 3 weights for each of 8 channels of 8 x 8."""


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("036_convolutional/Conv", "#36"),
        ("036_convolutional/Conv_1/QuantizeLinear", "#36"),
        ("input_abcd_acdb_000_convolutional/Conv/WithoutBiases", "#0"),
        ("layer007_nchwc", "#7"),
        ("layer1234", "#1234"),
        ("ReorderOutput_token_217", ""),
        ("decode/Concat_1", "decode"),
        ("036_yolo_decode/Mul", "#36"),
        ("Reshape/12", "Reshape"),
        ("input", ""),
    ],
)
def test_places(name: str, place: str) -> None:
    assert place_of(name) == place


def by_place(work: list[Work]) -> dict[str, Work]:
    return {each.place: each for each in work}


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_an_engine(target: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino" if target == "openvino" else "onnxruntime")
    engine = dnc.compile(write_network(tmp_path, "tiny", TINY), target=target, out=tmp_path / "e", verify=False)
    work = by_place(read_work(engine.folder, engine.manifest, batch=2))
    first, second = work["#0"], work["#1"]
    # Twice the multiply-adds, and one operation for each number of the activation; OpenVINO adds biases apart, and
    # computes a shape.
    biases = 2 * 64 if target == "openvino" else 0
    assert first.operations - 2 * CONV0 == pytest.approx(2 * 8 * 64 + 8 * biases, abs=1)
    assert second.operations - 2 * 2 * 8 * 14 * 64 == pytest.approx(14 * biases, abs=1)
    # The input, the weights with biases, and the output; OpenVINO keeps slopes and shapes of biases beside them.
    exact = 4 * (2 * 3 * 256 + 8 * 27 + 8 + 2 * 8 * 64)
    assert exact <= first.bytes <= exact + 200
    assert "#2" in work
    assert ("tiny.cfg:6 [convolutional] #0" if target == "onnx" else "[convolutional] #0") == first.where
    places = read_places(engine.folder, engine.manifest)
    # Their names are those that any other reader of the model finds.
    assert places["000_convolutional/Conv"] == "#0"
    assert places["001_convolutional/Conv"] == "#1"
    assert "input" not in places
    assert not {"", None} & set(places.values())


def test_an_engine_without_a_graph(tmp_path: Path) -> None:
    engine = dnc.compile(write_network(tmp_path, "tiny", TINY), target="onnx", out=tmp_path / "e", verify=False)
    with pytest.raises(TargetError, match="target onnx has no graph"):
        read_places(tmp_path, engine.manifest)


def test_a_network_with_everything(tmp_path: Path) -> None:
    """Operations are at least Darknet's own, which leave activations out; joined layers are counted where they are."""
    engine = dnc.compile(
        write_network(tmp_path, "yolo", NETWORKS["yolo"]), target="onnx", out=tmp_path / "e", verify=False
    )
    total = sum(each.operations for each in read_work(engine.folder, engine.manifest))
    assert engine.manifest.network["bflops"] * 1e9 <= total <= 2 * engine.manifest.network["bflops"] * 1e9
    more = dnc.compile(
        tmp_path / "yolo.cfg", target="onnx", out=tmp_path / "m", input="u8", decode="graph+nms", verify=False
    )
    assert {"decode", "nms"} <= set(by_place(read_work(more.folder, more.manifest)))


def test_eight_bits_are_a_quarter() -> None:
    nodes = [
        Node("000_convolutional/weights/DequantizeLinear", "DequantizeLinear", ["w8"], ["w"], 0.0),
        Node("000_convolutional/Conv", "Conv", ["x", "w"], ["a"], 100.0),
        Node("000_convolutional/a/QuantizeLinear", "QuantizeLinear", ["a"], ["a8"], 0.0),
        Node("000_convolutional/a/DequantizeLinear", "DequantizeLinear", ["a8"], ["b"], 0.0),
        Node("001_convolutional/Conv", "Conv", ["b"], ["y"], 50.0),
        Node("", "Result", ["y"], [], 0.0),
    ]
    sizes = {"x": 4.0, "w8": 10.0, "w": 40.0, "a": 400.0, "a8": 100.0, "b": 400.0, "y": 8.0}
    first, second = work_of(nodes, sizes, ["w8"])
    assert (first.operations, first.bytes) == (100.0, 4 + 10 + 100)
    assert (second.operations, second.bytes) == (50.0, 100 + 8)


def test_an_engine_without_a_known_model(write: Callable[..., Path], tmp_path: Path) -> None:
    engine = dnc.compile(write("tiny"), target="onnx", out=tmp_path / "tiny.engine")
    with pytest.raises(TargetError, match="layers of an engine of target onnx are not known"):
        read_work(tmp_path / "elsewhere", engine.manifest)


def test_operations_on_bits(tmp_path: Path) -> None:
    """Of what takes convolutions of signs whole: two for each product of signs, and a product and a sum of floats."""
    text = "[net]\nwidth=8\nheight=6\nchannels=9\n" + 2 * (
        "[convolutional]\nxnor=1\nfilters=4\nsize=3\npad=1\nactivation=linear\n"
    )
    network = Network.load(write_network(tmp_path, "bits", text), tmp_path / "bits.weights")
    engine = dnc.compile(tmp_path / "bits.cfg", target="onnx", out=tmp_path / "e", verify=False)
    first, second = 4 * 48 * 9 * 9 * 2, 4 * 48 * 9 * 4 * 2
    # As the target writes them, they are products of floats or of integers.
    works = read_work(engine.folder, engine.manifest)
    assert [work.bits for work in works] == [0.0, 0.0]
    assert all(work.operations >= products for work, products in zip(works, (first, second), strict=True))
    described = described_work(lower(network), engine.manifest)
    assert [entry["bits"] for entry in described] == [first, second]
    assert [entry["operations"] for entry in described] == [2 * 4 * 48] * 2
    # The input, the weights of one bit, two floats for each filter, the output.
    assert described[0]["bytes"] == 4 * 9 * 48 + 4 * 9 * 2 + 4 * 8 + 4 * 4 * 48
    folder = tmp_path / "described"
    folder.mkdir()
    (folder / "model.json").write_text(json.dumps({"work": described}))
    assert [work.bits for work in read_work(folder, engine.manifest)] == [first, second]
    older = [{key: value for key, value in entry.items() if key != "bits"} for entry in described]
    (folder / "model.json").write_text(json.dumps({"work": older}))
    assert [work.bits for work in read_work(folder, engine.manifest)] == [0.0, 0.0]
