"""Target `openvino`: Darknet's numbers, the precisions, metadata, devices, the cache, and what goes wrong."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dnc
from dnc.darknet.network import Network
from dnc.darknet.reference import run_all
from dnc.errors import TargetError
from dnc.runtime.decoding import Detection
from dnc.runtime.runners import openvino as module
from dnc.runtime.runners.openvino import OpenvinoSession
from dnc.targets.openvino import Openvino
from tests import goldens
from tests.goldens import differences, every_layer
from tests.models import model
from tests.networks import NETWORKS, RECURRENT
from tests.thinning import thinned

openvino = pytest.importorskip("openvino", exc_type=ImportError)

Write = Callable[..., Path]

BOUND = 1e-5
"""Of a layer's largest value: one to ten layers in float32, summed in other orders, with OpenVINO's own polynomials for
exp, tanh and erf. 2e-6 was seen; ONNX Runtime is within 2e-6 too."""

CACHE = module._cache
"""The fixture of conftest.py replaces it."""


def close(found: Any, expected: Any, bound: float) -> None:
    """Arrays of equal shapes, within a share of the largest expected value."""
    assert len(found) == len(expected)
    for each, other in zip(found, expected, strict=True):
        assert each.shape == other.shape
        np.testing.assert_allclose(each, other, rtol=0, atol=bound * max(np.abs(other).max(initial=0), 1e-6))


def numbers(box: Detection) -> tuple[float, ...]:
    return box.class_id, box.confidence, box.center_x, box.center_y, box.width, box.height


@pytest.fixture
def engine(write: Write, tmp_path: Path) -> dnc.Engine:
    return dnc.compile(write("yolo"), out=tmp_path / "e", target="openvino")


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).random((3, 3, 32, 32), np.float32)


@pytest.mark.filterwarnings("ignore::dnc.errors.DncWarning")
@pytest.mark.parametrize("name", thinned(goldens.MICRO))
def test_golden(name: str, tmp_path: Path) -> None:
    """Every layer of Darknet's own results."""
    golden = goldens.micro(name)
    engine = dnc.compile(*golden.write(tmp_path), "openvino", tmp_path / "e", keep_layers=True, verify=False)
    for layer, apart in differences(golden, every_layer(engine, golden.input)):
        assert apart < BOUND, layer


@pytest.mark.filterwarnings("ignore::dnc.errors.DncWarning")
@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in RECURRENT])
def test_networks(name: str, write: Write, tmp_path: Path) -> None:
    """Every layer against the reference: a batch of one, which is compiled by itself, and others."""
    cfg = write(name)
    engine = dnc.compile(cfg, out=tmp_path / "e", target="openvino", keep_layers=True, verify=False)
    network = Network.load(cfg, cfg.with_suffix(".weights"))
    for count in (1, 3, 2, 1):
        x = np.random.default_rng(count).random((count, *network.input_shape), np.float32)
        expected = dict(run_all(network, x))
        close(engine.forward(x), [expected[int(name.removeprefix("layer"))] for name in engine.manifest.outputs], BOUND)


@pytest.mark.parametrize("name", RECURRENT)
def test_states(name: str, write: Write, tmp_path: Path) -> None:
    """Step after step like ONNX Runtime, and the states with it."""
    cfg = write(name)
    ours, theirs = (dnc.compile(cfg, out=tmp_path / t, target=t, verify=False) for t in ("openvino", "onnx"))
    states: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for step in range(4):
        x = np.random.default_rng(step).random((2, *ours.manifest.input_shape), np.float32)
        close(ours.forward(x, states[0]), theirs.forward(x, states[1]), BOUND)
        assert list(states[0]) == list(states[1])
        close(list(states[0].values()), list(states[1].values()), BOUND)


@pytest.mark.parametrize("batch", [1, 3])
def test_fixed_batch(batch: int, write: Write, tmp_path: Path, x: np.ndarray) -> None:
    cfg = write("yolo")
    options: dict[str, Any] = {"batch": batch, "verify": False}
    ours, theirs = (dnc.compile(cfg, out=tmp_path / t, target=t, **options) for t in ("openvino", "onnx"))
    close(ours.forward(x[:batch]), theirs.forward(x[:batch]), BOUND)


@pytest.mark.parametrize("decode", ["host", "graph", "graph+nms"])
@pytest.mark.parametrize("input", ["f32", "u8"])
def test_images(decode: str, input: str, write: Write, tmp_path: Path) -> None:
    """Preprocessing, decoding and suppression in the graph; images of two sizes, alone and together."""
    cfg = write("yolo")
    options: dict[str, Any] = {"decode": decode, "input": input, "verify": False}
    ours, theirs = (dnc.compile(cfg, out=tmp_path / t, target=t, **options) for t in ("openvino", "onnx"))
    generator = np.random.default_rng(1)
    images = [generator.integers(0, 256, (*size, 3), np.uint8) for size in ((40, 50), (40, 50), (33, 20))]
    for given in (images, images[:2], images[2:]):
        found, expected = (engine(given, confidence=0.3, iou=0.4) for engine in (ours, theirs))
        assert [len(each) for each in found] == [len(each) for each in expected]
        assert any(expected)
        for boxes, others in zip(found, expected, strict=True):
            # Boxes with nearly the same score may be given in another order.
            got, want = (np.array([numbers(box) for box in side]).reshape(-1, 6) for side in (boxes, others))
            distances = np.abs(got[:, None] - want[None]) / (1 + np.abs(want))
            nearest = distances.max(axis=2).argmin(axis=1)
            assert sorted(nearest) == list(range(len(want)))
            np.testing.assert_allclose(got, want[nearest], rtol=1e-5, atol=1e-5)


def test_last_row(tmp_path: Path, write: Write) -> None:
    """Whether Darknet's last row is right hangs on the last bit of a quotient, which OpenVINO rounds otherwise."""
    cfg = write("id", "[net]\nwidth=320\nheight=320\nchannels=3\n[maxpool]\nsize=1\nstride=1\n")
    engine = dnc.compile(cfg, out=tmp_path / "e", target="openvino", input="u8", verify=False)
    preprocessing = engine.manifest.preprocessing
    assert preprocessing is not None
    generator = np.random.default_rng(0)
    for height in (333, 359, *range(480, 500)):
        pixels = generator.integers(0, 256, (height, 8, 3), np.uint8)
        np.testing.assert_allclose(engine.forward(pixels)[0], preprocessing(pixels), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("precision", "bound"), [("fp16", 2e-3), ("bf16", 5e-2)])
def test_precision(precision: str, bound: float, write: Write, tmp_path: Path, x: np.ndarray) -> None:
    """Rounding by up to 4.9e-4 and 3.9e-3 of each weight (and, in bf16, value), in 7 layers."""
    cfg = write("yolo")
    exact = dnc.compile(cfg, out=tmp_path / "e", target="openvino")
    other = dnc.compile(cfg, out=tmp_path / "o", target="openvino", precision=precision)
    assert (exact.manifest.options, other.manifest.options) == ({}, {"precision": precision})
    expected, found = exact.forward(x), other.forward(x)
    close(found, expected, bound)
    sizes = [(engine.folder / "model.bin").stat().st_size for engine in (other, exact)]
    if precision == "fp16":
        assert sizes[0] < 0.6 * sizes[1]
        assert any((each != right).any() for each, right in zip(found, expected, strict=True))
    else:
        assert sizes[0] == sizes[1]


def test_bfloat16_where_the_processor_has_it(write: Write, tmp_path: Path, x: np.ndarray) -> None:
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bfloat16")
    cfg = write("yolo")
    exact, other = (
        dnc.compile(cfg, out=tmp_path / p, target="openvino", precision=p).forward(x) for p in ("fp32", "bf16")
    )
    assert max(np.abs(a - b).max() for a, b in zip(exact, other, strict=True)) > 1e-4


def test_unknown_precision(write: Write, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="precision=fp8 of target openvino is not one of fp32"):
        dnc.compile(write("tiny"), out=tmp_path / "e", target="openvino", precision="fp8")


def test_same_bytes(engine: dnc.Engine, tmp_path: Path) -> None:
    again = dnc.compile(tmp_path / "yolo.cfg", out=tmp_path / "again", target="openvino")
    names = sorted(path.name for path in engine.folder.iterdir())
    assert names == ["engine.json", "model.bin", "model.xml"]
    assert all((engine.folder / name).read_bytes() == (again.folder / name).read_bytes() for name in names)


def test_what_other_tools_see(engine: dnc.Engine, tmp_path: Path) -> None:
    """Names and free batches of inputs and outputs, and model_info."""
    read = openvino.Core().read_model(engine.folder / "model.xml")
    assert [port.any_name for port in read.inputs] == ["input"]
    assert [port.any_name for port in read.outputs] == list(engine.manifest.outputs)
    assert str(read.inputs[0].partial_shape) == "[?,3,32,32]"
    info = {key: value.value for key, value in read.get_rt_info()["model_info"].items()}
    assert info["model_type"] == "darknet-yolo"
    assert info["resize_type"] == "fit_to_window_letterbox"
    assert (info["mean_values"], info["scale_values"]) == ("0 0 0", "255 255 255")
    assert [head["output"] for head in json.loads(info["heads"])] == [head.output for head in engine.manifest.heads]
    assert info["anchors"].split()[:2] == ["81.0", "82.0"]


def test_labels_and_means(write: Write, tmp_path: Path) -> None:
    cfg = write("classifier")
    names = tmp_path / "six.names"
    names.write_text("a cat\nb\nc\nd\ne\nf\n")
    engine = dnc.compile(
        cfg, out=tmp_path / "e", target="openvino", labels=names, mean=[0.5], std=[0.25, 0.5, 1], color="bgr"
    )
    read = openvino.Core().read_model(engine.folder / "model.xml")
    info = {key: value.value for key, value in read.get_rt_info()["model_info"].items()}
    assert info["model_type"] == "Classification"
    assert info["labels"] == "a_cat b c d e f"
    assert (info["scale_values"], info["reverse_input_channels"]) == ("63.75 127.5 255", "False")
    assert info["resize_type"] == "crop"


def test_threads(engine: dnc.Engine) -> None:
    """Eight threads that share one session get their own results, for batches of one and of two."""
    other = dnc.load(engine.folder, threads=1)
    inputs = np.random.default_rng(0).random((16, 3, 32, 32), np.float32)
    batches = [inputs[n : n + 1 + n % 2] for n in range(15)]
    expected = [engine.forward(each) for each in batches]
    with ThreadPoolExecutor(8) as pool:
        for found, right in zip(pool.map(other.forward, batches), expected, strict=True):
            close(found, right, 1e-6)


def test_results_stay(engine: dnc.Engine, x: np.ndarray) -> None:
    """They are no views into a request that runs again; inputs are read only."""
    x.flags.writeable = False
    first = engine.forward(x[:1])
    kept = [each.copy() for each in first]
    engine.forward(x[1:2])
    assert all(map(np.array_equal, first, kept))


def test_wrong_inputs(engine: dnc.Engine) -> None:
    session = Openvino().runner().open(engine.folder)
    right = np.zeros((1, 3, 32, 32), np.float32)
    session.run({"input": right})
    wrong: list[dict[str, Any]] = [
        {},
        {"input": right[..., 1:]},
        {"input": right.astype(np.float64)},
        {"input": right, "more": right},
        {"input": "text"},
    ]
    for inputs in wrong:
        with pytest.raises(TargetError, match="OpenVINO failed"):
            session.run(inputs)
    assert session.device == "CPU"


def test_devices(engine: dnc.Engine, x: np.ndarray) -> None:
    """Automatic choice computes in float32 too; what is not there is said, with what there is."""
    for hint in ("latency", "throughput"):
        automatic = dnc.load(engine.folder, device="auto", hint=hint)
        close(automatic.forward(x), engine.forward(x), BOUND)
    with pytest.raises(TargetError, match=r"sees no device GPU\.7\n  hint: there is CPU"):
        dnc.load(engine.folder, device="gpu.7").forward(x)
    with pytest.raises(TargetError, match="device=TPU of target openvino is not one of CPU, GPU, NPU, AUTO"):
        dnc.load(engine.folder, device="TPU")
    with pytest.raises(TargetError, match="cache=1 of target openvino is not one of on, off"):
        dnc.load(engine.folder, cache=1)  # type: ignore[arg-type]
    with pytest.raises(TargetError, match="precision is built into the engine"):
        dnc.load(engine.folder, precision="bf16")
    with pytest.raises(TargetError, match="no option 'devise'"):
        dnc.load(engine.folder, devise="CPU")
    copy = pickle.loads(pickle.dumps(dnc.load(engine.folder, device="AUTO")))
    assert copy._options == {"device": "AUTO"}


@pytest.mark.parametrize("name", ["tiny", pytest.param("yolo", marks=pytest.mark.slow)])
def test_cache(name: str, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One folder for each engine, that of another network is not taken; off means off; damaged files do no harm."""
    monkeypatch.setattr(module, "_cache", CACHE)
    monkeypatch.setenv("DNC_CACHE", str(tmp_path / "cache"))
    cfg = write(name)
    engine = dnc.compile(cfg, out=tmp_path / "e", target="openvino")
    place = tmp_path / "cache" / "openvino"
    x = np.random.default_rng(0).random((1, *engine.manifest.input_shape), np.float32)
    expected = dnc.load(engine.folder, cache="off").forward(x)
    assert not place.exists()
    close(dnc.load(engine.folder).forward(x), expected, 0)
    blobs = list(place.glob("*/*.blob"))
    assert len(blobs) == 1
    close(dnc.load(engine.folder).forward(x), expected, 0)
    assert list(place.glob("*/*.blob")) == blobs
    for damage in (b"", b"nonsense", blobs[0].read_bytes()[:1000]):
        blobs[0].unlink(missing_ok=True)
        blobs[0].write_bytes(damage)
        close(dnc.load(engine.folder).forward(x), expected, 0)
    other = dnc.compile(write(name, seed=1), out=tmp_path / "e", target="openvino")
    found = dnc.load(other.folder).forward(x)
    close(found, dnc.load(other.folder, cache="off").forward(x), 0)
    assert any((a != b).any() for a, b in zip(found, expected, strict=True))
    assert len(list(place.iterdir())) == 2
    shutil.rmtree(place)
    place.write_text("no folder")
    close(dnc.load(other.folder).forward(x), found, 0)


def test_refused_files(engine: dnc.Engine, tmp_path: Path) -> None:
    for text in ("", "nonsense", "<net></net>"):
        (engine.folder / "model.xml").write_text(text)
        with pytest.raises(TargetError, match="OpenVINO refuses the model"):
            OpenvinoSession(engine.folder / "model.xml", "CPU", {})


def test_refused_operators(tmp_path: Path) -> None:
    """Each with its section."""
    built = model("g (float[N, 3] x) => (float[N, 3] z, float[N, 3] y) { z = Neg(x) y = Abs(x) }")
    for node in built.graph:
        node.metadata_props["dnc.where"] = f"a.cfg:7 [{node.op_type.lower()}] #0"
        if node.op_type == "Abs":
            node.op_type = "Loggy"
    with pytest.raises(TargetError, match=r"OpenVINO refuses the model(.|\n)*a\.cfg:7 \[abs\] #0: Loggy"):
        Openvino().build(built, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_libraries_that_do_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError("libtbb.so.12: cannot open shared object file")

    monkeypatch.setattr("importlib.import_module", broken)
    with pytest.raises(TargetError, match=r"openvino cannot be loaded: libtbb"):
        module.import_openvino()


_SIGNALLED = """
import os, signal, sys
import dnc
engines = [dnc.load(folder) for folder in sys.argv[1:]]
for engine in engines:
    engine.session
for engine in engines:
    engine.close()
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_signals_after_engines_went(engine: dnc.Engine) -> None:
    """In the order in which they came: the stack for signals must not be one that went with them."""
    done = subprocess.run(
        [sys.executable, "-c", _SIGNALLED, engine.folder, engine.folder], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


@pytest.mark.parametrize("options", ["padding=2 stride=2", "padding=1 stride_x=2", "padding=1 stride_y=3"])
def test_strides_of_one_tap_that_is_padded(options: str, write: Write, tmp_path: Path) -> None:
    """OpenVINO would give the strides to the convolution before, whose outputs it then pads."""
    section = "[convolutional]\nfilters=4\nactivation=linear\n"
    text = f"{section}size=2\npad=1\n{section}size=1\n" + options.replace(" ", "\n")
    cfg = write("strides", f"[net]\nwidth=5\nheight=5\nchannels=3\n{text}")
    network = Network.load(cfg, cfg.with_suffix(".weights"))
    x = np.random.default_rng(0).normal(0, 1, (1, *network.input_shape)).astype(np.float32)
    *_, (_, expected) = run_all(network, x)
    close(dnc.compile(cfg, out=tmp_path / "e", target="openvino").forward(x), [expected], BOUND)
