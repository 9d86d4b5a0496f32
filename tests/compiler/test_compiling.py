"""`dnc.compile`: what it finds by itself, what its options do to the engine, and to the numbers."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import dnc
from dnc import zoo
from dnc.compiler.compiling import find_target
from dnc.compiler.source import find_labels, find_weights
from dnc.darknet.network import Network
from dnc.darknet.reference import initial_states, run, run_all
from dnc.errors import CfgError, DncError, DncWarning, TargetError, WeightsError
from dnc.runtime.decoding import ClassifierHead
from dnc.runtime.preprocessing import Preprocessing
from dnc.zoo.recorded import write_recorded
from tests.networks import NETWORKS, RECURRENT, TINY

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNC_CACHE", str(tmp_path / "cache"))


def loaded(cfg: Path) -> Network:
    return Network.load(cfg, cfg.with_suffix(".weights"))


def near(found: np.ndarray, expected: np.ndarray) -> None:
    """Some dozen layers of float32, in another order, with batch normalisation folded."""
    assert found.shape == expected.shape
    bound = 1e-4 * max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


@pytest.mark.parametrize("batch", [None, 1, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_engine_is_the_reference(name: str, batch: int | None, write: Write, tmp_path: Path) -> None:
    """Every section, through all passes, at a free and at fixed batch sizes."""
    cfg = write(name)
    engine = dnc.compile(cfg, out=tmp_path / "e", target="onnx", batch=batch)
    network = loaded(cfg)
    count = batch or 2
    x = np.random.default_rng(1).random((count, *network.input_shape), np.float32)
    outputs = engine.forward(x)
    expected = run(network, x)
    assert len(outputs) == len(expected) == len(engine.manifest.outputs)
    for output, right, shape in zip(outputs, expected, engine.manifest.output_shapes, strict=True):
        near(output, right)
        assert output.shape[1:] == shape
    assert engine.manifest.batch == (batch or "N")


@pytest.mark.parametrize("name", RECURRENT)
def test_states(name: str, write: Write, tmp_path: Path) -> None:
    """A sequence, step by step, with the states handed on; without them every call starts anew."""
    cfg = write(name)
    engine = dnc.compile(cfg, out=tmp_path / "e", target="onnx")
    network = loaded(cfg)
    states: dict[str, np.ndarray] = {}
    own = initial_states(network, 2)
    generator = np.random.default_rng(2)
    first = None
    for _ in range(4):
        x = generator.random((2, *network.input_shape), np.float32)
        (output,) = engine.forward(x, states)
        (expected,) = run(network, x, own)
        near(output, expected)
        first = x if first is None else first
    assert list(states) == list(engine.manifest.states)
    assert {name: state.shape[1:] for name, state in states.items()} == dict(engine.manifest.states)
    for layer in network.layers:
        for key in layer.states():
            near(states[f"state{layer.index:03d}.{key}"], own[layer.index][key])
    assert first is not None
    assert np.array_equal(engine.forward(first)[0], engine.forward(first, {})[0])
    assert not np.array_equal(engine.forward(first)[0], engine.forward(first, states)[0])


def test_state_of_another_batch(write: Write, tmp_path: Path) -> None:
    engine = dnc.compile(write("rnn"), out=tmp_path / "e", target="onnx")
    states: dict[str, np.ndarray] = {}
    engine.forward(np.zeros((2, 12)), states)
    with pytest.raises(DncError):
        engine.forward(np.zeros((3, 12)), states)


def test_keep_layers(write: Write, tmp_path: Path) -> None:
    """Every layer's output after the heads', under its name; the same numbers."""
    cfg = write("yolo")
    engine = dnc.compile(cfg, out=tmp_path / "e", target="onnx", keep_layers=True)
    network = loaded(cfg)
    assert sorted(engine.manifest.outputs) == [f"layer{layer.index:03d}" for layer in network.layers]
    assert engine.manifest.outputs[:2] == ("layer007", "layer012")
    x = np.random.default_rng(1).random((1, 3, 32, 32), np.float32)
    found = dict(zip(engine.manifest.outputs, engine.forward(x), strict=True))
    for index, output in run_all(network, x):
        near(found[f"layer{index:03d}"], output)


def detections(engine: dnc.Engine, image: np.ndarray) -> list[tuple[int, float, float]]:
    return [(box.class_id, round(box.confidence, 4), round(box.center_x, 4)) for box in engine(image, confidence=0.3)]


@pytest.mark.parametrize(
    ("input", "decode", "mode"),
    list(itertools.product(["f32", "u8"], ["host", "graph", "graph+nms"], ["resize", "letterbox"])),
)
def test_all_ways_find_the_same(input: str, decode: str, mode: str, write: Write, tmp_path: Path) -> None:
    cfg = write("tiny")
    image = np.random.default_rng(5).integers(0, 256, (20, 31, 3), np.uint8)
    # What passes change is verified where they are tested.
    told: dict[str, Any] = {"target": "onnx", "preprocess": mode, "verify": False}
    plain = dnc.compile(cfg, out=tmp_path / "a", **told)
    other = dnc.compile(cfg, out=tmp_path / "b", **told, input=input, decode=decode)
    expected = detections(plain, image)
    assert expected
    assert detections(other, image) == expected


@pytest.mark.parametrize("decode", ["graph", "graph+nms"])
@pytest.mark.parametrize("name", ["crnn", "yolo"])
def test_decoded_with_states_and_layers(name: str, decode: str, write: Write, tmp_path: Path) -> None:
    """More outputs than the boxes: states, kept layers."""
    channels = NETWORKS[name].replace("channels=2", "channels=3").replace("history_size=3", "history_size=2")
    cfg = write(name, channels)
    image = np.random.default_rng(5).integers(0, 256, (20, 31, 3), np.uint8)
    plain = dnc.compile(cfg, out=tmp_path / "a", target="onnx", verify=False)
    other = dnc.compile(cfg, out=tmp_path / "b", target="onnx", decode=decode, keep_layers=True, verify=False)
    assert sorted(detections(other, image)) == sorted(detections(plain, image))
    outputs = other.forward(np.zeros((3, *other.manifest.input_shape[1:])))
    assert len(outputs) == len(other.manifest.outputs)


@pytest.mark.parametrize("name", ["rnn", "classifier", "convolutions"])
def test_what_has_no_boxes_is_not_decoded(name: str, write: Write, tmp_path: Path) -> None:
    with pytest.raises(DncError, match="only boxes can be decoded in the graph"):
        dnc.compile(write(name), out=tmp_path / "e", decode="graph")


def test_pixels_need_images(write: Write, tmp_path: Path) -> None:
    with pytest.raises(DncError, match="does not take images"):
        dnc.compile(write("rnn"), out=tmp_path / "e", input="u8")
    with pytest.raises(DncError, match="does not take images"):
        dnc.compile(write("vector"), out=tmp_path / "e", preprocess="letterbox")


@pytest.mark.parametrize(("name", "mode"), [("tiny", "resize"), ("yolo", "letterbox"), ("classifier", "center-crop")])
def test_usual_preprocessing(name: str, mode: str, write: Write, tmp_path: Path) -> None:
    """As the cfg says, as the kind of network asks for, as the caller says."""
    cfg = write(name)
    preprocessing = dnc.compile(cfg, target="onnx", out=tmp_path / "e").manifest.preprocessing
    assert preprocessing is not None
    assert (preprocessing.mode, preprocessing.color) == (mode, "rgb")
    preprocessing = dnc.compile(
        cfg,
        target="onnx",
        out=tmp_path / "e",
        preprocess="resize-half-pixel",
        color="bgr",
        mean=(0.1, 0.2, 0.3),
        std=(0.5,),
    ).manifest.preprocessing
    assert preprocessing is not None
    assert (preprocessing.mode, preprocessing.color) == ("resize-half-pixel", "bgr")
    assert (preprocessing.mean, preprocessing.std) == ((0.1, 0.2, 0.3), (0.5,))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6])
def test_channels(channels: int, write: Write, tmp_path: Path) -> None:
    """Gray, gray and alpha, RGB and RGBA images; any number of channels as an array."""
    cfg = write("tiny", TINY.replace("channels=3", f"channels={channels}"))
    engine = dnc.compile(cfg, out=tmp_path / "e", target="onnx")
    assert engine.forward(np.zeros((channels, 16, 16)))[0].shape == (14, 8, 8)
    image = np.zeros((9, 9, 3), np.uint8)
    if channels == 6:
        with pytest.raises(DncError, match="3 channels, the network takes 6"):
            engine(image)
        image = np.zeros((9, 9, 6), np.uint8)
    else:
        assert isinstance(engine(np.zeros((9, 9), np.uint8)), list)
    assert isinstance(engine(image), list)
    pixels = dnc.compile(cfg, out=tmp_path / "f", target="onnx", input="u8")
    assert detections(pixels, image) == detections(engine, image)


def test_network_without_heads(write: Write, tmp_path: Path) -> None:
    """A map is no list of boxes or classes: said so; forward gives it."""
    engine = dnc.compile(write("convolutions"), out=tmp_path / "e", target="onnx")
    assert engine.manifest.heads == ()
    assert engine.forward(np.zeros((4, 18, 20)))[0].shape == (4, 11, 7)
    with pytest.raises(DncError, match="no head that gives boxes or classes"):
        engine(np.zeros((9, 9, 4), np.uint8))


def test_classifier_without_softmax(write: Write, tmp_path: Path) -> None:
    """A vector at the end has a value for each class."""
    cfg = write("c", "[net]\nwidth=4\nheight=4\nchannels=3\n[connected]\noutput=7\nactivation=linear\n[cost]\n")
    engine = dnc.compile(cfg, out=tmp_path / "e", target="onnx")
    (head,) = engine.manifest.heads
    assert isinstance(head, ClassifierHead)
    assert (head.classes, head.output) == (7, "layer000")
    assert [len(engine(np.zeros((9, 9, 3), np.uint8), top=top)) for top in (1, 5, 99)] == [1, 5, 7]


def test_vectors(write: Write, tmp_path: Path) -> None:
    engine = dnc.compile(write("vector"), out=tmp_path / "e", target="onnx")
    assert engine.manifest.input_shape == (7,)
    assert engine.manifest.preprocessing is None
    assert engine.forward(np.zeros(7))[0].shape == (3,)
    assert engine.forward(np.zeros((4, 7)))[0].shape == (4, 3)
    with pytest.raises(DncError, match=r"the engine wants \(N, 7\)"):
        engine.forward(np.zeros(6))


def test_summary(write: Write, tmp_path: Path) -> None:
    manifest = dnc.compile(write("tiny"), out=tmp_path / "e", target="onnx").manifest
    flops = 2 * 27 * 8 * 64 + 2 * 8 * 14 * 64
    assert manifest.name == "tiny"
    assert manifest.network["cfg"] == "tiny.cfg"
    assert (manifest.network["layers"], manifest.network["parameters"]) == (3, 374)
    assert manifest.network["bflops"] == round(flops / 1e9, 6)
    assert {"dnc", "onnx", "onnx-ir"} <= set(manifest.tools)
    assert manifest.states == {}
    assert manifest.extra_inputs == ()


def test_proof_leaves_the_engine_as_it_is(write: Write, tmp_path: Path) -> None:
    """How far the outputs moved differs from machine to machine: an engine that was verified does not record it."""
    cfg = write("tiny")
    engines = [dnc.compile(cfg, out=tmp_path / str(on), target="onnx", verify=on) for on in (True, False)]
    assert engines[0].manifest.remarks
    for name in ("engine.json", "model.onnx"):
        first, second = (engine.folder / name for engine in engines)
        assert first.read_bytes() == second.read_bytes()


def test_default_folder(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = write("tiny")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    engine = dnc.compile(cfg)
    assert engine.folder == Path("tiny.engine")
    assert (tmp_path / "here" / "tiny.engine" / "engine.json").exists()


def test_graph_says_where_its_nodes_come_from(write: Write, tmp_path: Path) -> None:
    dnc.compile(write("tiny"), out=tmp_path / "e", target="onnx")
    model = onnx.load(tmp_path / "e" / "model.onnx")
    places = [{each.key: each.value for each in node.metadata_props}["dnc.where"] for node in model.graph.node]
    assert places[0] == "tiny.cfg:6 [convolutional] #0"
    assert set(places) == {
        "tiny.cfg:6 [convolutional] #0",
        "tiny.cfg:14 [convolutional] #1",
        "tiny.cfg:21 [yolo] #2",
    }


def test_progress(write: Write, tmp_path: Path) -> None:
    told: list[str] = []
    dnc.compile(write("tiny"), out=tmp_path / "e", target="onnx", progress=told.append)
    assert told[:2] == ["reading the network", "lowering"]
    assert told[-1] == "writing the engine"
    assert any(re.fullmatch(r"pass \d+ of \d+: fold-batchnorm", text) for text in told)


def test_find_weights(write: Write, tmp_path: Path) -> None:
    cfg = write("tiny")
    assert find_weights(cfg, None) == cfg.with_suffix(".weights")
    assert find_weights(cfg, "elsewhere") == Path("elsewhere")
    cfg.with_suffix(".weights").rename(tmp_path / "tiny_final.weights")
    assert find_weights(cfg, None) == tmp_path / "tiny_final.weights"
    (tmp_path / "tiny_final.weights").unlink()
    with pytest.raises(WeightsError, match=r"no weights beside the cfg(.|\n)*name them with --weights"):
        find_weights(cfg, None)
    known = tmp_path / "yolov3-tiny.cfg"
    known.write_text(TINY)
    with pytest.raises(WeightsError, match="`dnc zoo fetch yolov3-tiny` gets them"):
        find_weights(known, None)


def test_find_target(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_target("onnx").name == "onnx"
    assert find_target("cpu").missing() == ""
    with pytest.raises(TargetError, match=r"unknown target 'onnyx'\n  hint: did you mean 'onnx'\?"):
        find_target("onnyx")
    with pytest.raises(TargetError, match=r"unknown target 'zzz'\n  hint: one of: .*onnx"):
        find_target("zzz")


def heads(cfg: Path) -> list[ClassifierHead]:
    return [head for layer in loaded(cfg).layers if (head := layer.head()) is not None]  # type: ignore[misc]


def test_labels_by_name(write: Write, tmp_path: Path) -> None:
    """The file given; else that of the cfg's name; else the only fitting one beside it; else none, with a warning."""
    cfg = write("tiny")
    assert find_labels(cfg, None, heads(cfg)) == ()
    (tmp_path / "three.names").write_text("a\nb\nc\n")
    with pytest.warns(
        DncWarning, match="none of the .names beside the cfg is taken for its 2 classes: three.names has 3"
    ):
        assert find_labels(cfg, None, heads(cfg)) == ()
    (tmp_path / "two.names").write_text("\n a \nb\r\n\n")
    assert find_labels(cfg, None, heads(cfg)) == ("a", "b")
    (tmp_path / "other.names").write_text("x\ny\n")
    with pytest.warns(DncWarning, match=r"other.names has 2, three.names has 3, two.names has 2\n(.|\n)*--labels"):
        assert find_labels(cfg, None, heads(cfg)) == ()
    (tmp_path / "tiny.names").write_text("cat\ndog\n")
    assert find_labels(cfg, None, heads(cfg)) == ("cat", "dog")
    assert find_labels(cfg, tmp_path / "other.names", heads(cfg)) == ("x", "y")
    with pytest.raises(DncError, match="3 labels for 2 classes"):
        find_labels(cfg, tmp_path / "three.names", heads(cfg))
    assert find_labels(cfg, tmp_path / "three.names", []) == ()


def test_a_link_to_nowhere_is_no_missing_names(write: Callable[..., Path]) -> None:
    cfg = write("net", TINY)
    cfg.with_suffix(".names").symlink_to("nowhere")
    with pytest.raises(DncError, match="cannot read the file"):
        dnc.compile(cfg, target="onnx", out=cfg.with_name("e"), verify=False)


@pytest.mark.parametrize(("text", "message"), [("cat\n", "1 labels for 2 classes"), ("", "there is no name")])
def test_labels_of_the_cfgs_name_must_fit(text: str, message: str, write: Write, tmp_path: Path) -> None:
    cfg = write("tiny")
    (tmp_path / "tiny.names").write_text(text)
    (tmp_path / "two.names").write_text("a\nb\n")
    with pytest.raises(DncError, match=rf"{message}(.|\n)*tiny.names"):
        find_labels(cfg, None, heads(cfg))
    if text:
        with pytest.warns(DncWarning, match=message):
            assert find_labels(cfg, None, heads(cfg), lenient=True) == ("cat", "1")


def test_labels_of_the_zoo(write: Write) -> None:
    """A network that the zoo knows has its names, as long as their number fits."""
    entry = next(entry for entry in zoo.entries() if entry.labels == "coco")
    text = TINY.replace("classes=2", "classes=80").replace("filters=14", "filters=170")
    cfg = write(Path(entry.cfg).stem, text)
    assert len(find_labels(cfg, None, heads(cfg))) == 80
    cfg.write_text(TINY)
    assert find_labels(write(Path(entry.cfg).stem, TINY), None, heads(cfg)) == ()


def test_network_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name of cfg/ stands for the file, unless there is one of this name here."""
    monkeypatch.chdir(tmp_path)
    assert len(Network.load("yolov3-tiny").layers) == 24
    # What is a path stands for no other file.
    for path in (
        "yolov3-tiny.cfg",
        "./yolov3-tiny",
        "./yolov3-tiny.cfg",
        "cfg/yolov3-tiny.cfg",
        tmp_path / "yolov3-tiny",
    ):
        with pytest.raises(CfgError, match="did you mean the bundled network yolov3-tiny"):
            Network.load(path)
    with pytest.raises(CfgError, match="did you mean 'yolov3-tiny'"):
        Network.load("yolov3-tinny")
    (tmp_path / "yolov3-tiny.cfg").write_text(TINY)
    assert len(Network.load("yolov3-tiny.cfg").layers) == 3


RECORDED = {"mean": [0.5, 0.4, 0.3], "std": [0.25], "crop": 0.875, "interpolation": "bicubic", "color": "bgr"}


def preprocessing(cfg: Path, out: Path, **options: Any) -> Preprocessing:
    found = dnc.compile(cfg, out=out, target="onnx", verify=False, **options).manifest.preprocessing
    assert found is not None
    return found


def test_recorded_preprocessing(write: Write, tmp_path: Path) -> None:
    """Taken where nobody says otherwise, key by key; a crop and an interpolation for center-crop alone."""
    cfg = write("classifier")
    plain = preprocessing(cfg, tmp_path / "e")
    write_recorded(cfg.with_suffix(".weights"), RECORDED)
    found = preprocessing(cfg, tmp_path / "e")
    wanted = replace(plain, mean=(0.5, 0.4, 0.3), std=(0.25,), crop=0.875, interpolation="bicubic", color="bgr")
    assert found == wanted
    assert preprocessing(cfg, tmp_path / "e", mean=(0.0,)) == replace(wanted, mean=(0.0,))
    assert preprocessing(cfg, tmp_path / "e", std=(1.0,), color="rgb") == replace(wanted, std=(1.0,), color="rgb")
    assert preprocessing(cfg, tmp_path / "e", crop=1.0) == replace(wanted, crop=1.0)
    assert preprocessing(cfg, tmp_path / "e", crop=0.9) == replace(wanted, crop=0.9)
    assert preprocessing(cfg, tmp_path / "e", interpolation="bilinear") == replace(wanted, interpolation="bilinear")
    uncropped = replace(wanted, mode="resize", crop=1.0, interpolation="bilinear")
    assert preprocessing(cfg, tmp_path / "e", preprocess="resize") == uncropped
    with pytest.raises(DncError, match="bicubic interpolation is for center-crop, not for resize"):
        preprocessing(cfg, tmp_path / "e", preprocess="resize", interpolation="bicubic")
    with pytest.raises(DncError, match=r"a crop of 0\.9 is for center-crop, not for resize"):
        preprocessing(cfg, tmp_path / "e", preprocess="resize", crop=0.9)
    elsewhere = tmp_path / "elsewhere.weights"
    cfg.with_suffix(".weights").rename(elsewhere)
    with pytest.warns(DncWarning, match="the preprocessing recorded beside the cfg is not taken"):
        assert preprocessing(cfg, tmp_path / "e", weights=elsewhere) == plain


def test_recorded_mode(write: Write, tmp_path: Path) -> None:
    cfg = write("tiny")
    write_recorded(cfg.with_suffix(".weights"), {"mode": "letterbox"})
    assert preprocessing(cfg, tmp_path / "e").mode == "letterbox"
    assert preprocessing(cfg, tmp_path / "e", preprocess="resize").mode == "resize"


def test_recorded_nonsense(write: Write, tmp_path: Path) -> None:
    """A damaged record is an error, and one that does not fit the network says that it is recorded."""
    cfg = write("tiny")
    record = write_recorded(cfg.with_suffix(".weights"), {"mean": [0.1, 0.2]})
    with pytest.raises(DncError, match="mean and std take 1 number or one for each of 3 channels") as caught:
        preprocessing(cfg, tmp_path / "e")
    assert caught.value.hint.endswith(f"{record} has mean")
    record.write_text("{")
    with pytest.raises(DncError, match="cannot read the recorded preprocessing"):
        preprocessing(cfg, tmp_path / "e")
    vector = write("vector")
    write_recorded(vector.with_suffix(".weights"), RECORDED)
    with pytest.raises(DncError, match=r"recorded for a network that takes no images\n  at .*vector.preprocess.json"):
        dnc.compile(vector, out=tmp_path / "v", target="onnx")
    with pytest.raises(DncError, match="does not take images"):
        dnc.compile(vector, out=tmp_path / "v", target="onnx", mean=(0.5,))


def test_a_record_of_another_network(write: Write, tmp_path: Path) -> None:
    """What a detector has no use for is a classifier's; one by another name is said."""
    cfg = write("tiny")
    record = write_recorded(cfg.with_suffix(".weights"), RECORDED)
    with pytest.raises(
        DncError, match=r"crop is recorded for a classifier's center-crop, and this network's mode is res"
    ):
        preprocessing(cfg, tmp_path / "e")
    assert preprocessing(cfg, tmp_path / "e", preprocess="letterbox").mode == "letterbox"
    cfg.with_suffix(".weights").rename(tmp_path / "tiny_final.weights")
    with pytest.warns(DncWarning, match=r"not taken\n(.|\n)*the name of the weights: tiny_final.preprocess.json"):
        assert preprocessing(cfg, tmp_path / "e").mean == (0.0,)
    record.unlink()


def test_recorded_preprocessing_runs(write: Write, tmp_path: Path) -> None:
    """The engine's input is what the record says, on the host and in the graph."""
    cfg = write("classifier")
    write_recorded(cfg.with_suffix(".weights"), RECORDED)
    image = np.random.default_rng(5).integers(0, 256, (40, 31, 3), np.uint8)
    (expected,) = run(loaded(cfg), preprocessing(cfg, tmp_path / "e")(image)[None])
    for kind in ("f32", "u8"):
        engine = dnc.compile(cfg, out=tmp_path / kind, target="onnx", input=kind)
        classes = {item.class_id: item.confidence for item in engine(image, top=6)}
        near(np.array([classes[index] for index in range(6)]), expected[0].ravel())


def test_labels_of_both_orders_of_imagenet(write: Write) -> None:
    """Darknet's own classifiers count the classes as the ILSVRC devkit does, all others as WordNet's ids do."""
    cfg = "[net]\nwidth=2\nheight=2\nchannels=1\n[connected]\noutput=1000\nactivation=linear\n[softmax]\n"
    for name, index in (("darknet19", 865), ("darknet53", 865), ("efficientnet-lite0", 652)):
        path = write(name, cfg)
        assert find_labels(path, None, heads(path))[index] == "military uniform"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": ["2"]}, "target onnx rounds nothing that could stay in float32"),
        ({"keep": ["99"], "options": {"precision": "fp16"}}, "keep names layer 99, but the network's last is"),
    ],
)
def test_keep_that_says_nothing(options: dict[str, Any], message: str, write: Write, tmp_path: Path) -> None:
    with pytest.raises(DncError, match=message):
        dnc.compile(write("tiny"), target="onnx", out=tmp_path / "e", **options)
    assert not (tmp_path / "e").exists()


def test_keep_in_half_precision(write: Write, tmp_path: Path) -> None:
    """What is kept is stored as it was."""
    cfg, kept = write("tiny"), []
    for keep in ([], ["0"]):
        engine = dnc.compile(cfg, out=tmp_path / "e", target="onnx", keep=keep, options={"precision": "fp16"})
        weights = onnx.load(engine.folder / "model.onnx").graph.initializer
        kept.append(sum(tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 4 for tensor in weights))
    assert kept[1] == kept[0] + 1
