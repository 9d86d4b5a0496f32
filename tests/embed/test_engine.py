"""libdnc_runtime on engines of target openvino: what Python computes, and what it refuses."""

from __future__ import annotations

import ctypes as c
import functools
import hashlib
import itertools
import json
import re
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import dnc
from dnc.cli import embed
from dnc.darknet.network import Network
from dnc.darknet.weights import write_weights
from dnc.runtime.decoding import Detection
from tests.embed import native
from tests.embed.native import FORMATS, NativeError
from tests.embed.test_bundle import sign
from tests.graph.test_suppression import HEADS, STEM
from tests.networks import NETWORKS

pytestmark = pytest.mark.slow
"""They compile C++."""

Pixels = npt.NDArray[np.uint8]
Build = Callable[..., dnc.Engine]

BOX = 1e-4
"""What is asked for. Both sides run the same kernels of OpenVINO on inputs that are equal to the bit, and decode with
the same operations, so most numbers are equal."""
ARGUMENT, ENGINE, TARGET, IMAGE = 1, 2, 3, 4


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Engines for OpenVINO of cfg texts, with random weights."""

    @functools.cache
    def build_engine(text: str, *, labels: str = "", target: str = "openvino", **options: Any) -> dnc.Engine:
        folder = tmp_path_factory.mktemp("network")
        cfg = folder / "net.cfg"
        cfg.write_text(text, encoding="utf-8")
        network = Network.load(cfg).with_random_weights(3)
        with (folder / "net.weights").open("wb") as file:
            write_weights(file, network.layers, network.arrays)
        if labels:
            (folder / "net.names").write_text(labels, encoding="utf-8")
        return dnc.compile(cfg, None, target, folder / "e", verify=False, **options)

    return build_engine


def net(head: str) -> str:
    return f"[net]\nwidth=64\nheight=48\nchannels=3\n{STEM}{head}"


def noise(seed: int, height: int = 48, width: int = 64, channels: int = 3) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def same(found: Sequence[native.Box], expected: Sequence[Detection], image: Pixels) -> None:
    assert len(found) == len(expected)
    for box, other in zip(found, expected, strict=True):
        assert (box.class_id, box.label) == (other.class_id, other.label)
        numbers = (other.confidence, other.center_x, other.center_y, other.width, other.height)
        assert (box.confidence, *box.place) == pytest.approx(numbers, rel=BOX, abs=BOX)
        if (box.confidence, *box.place) == numbers:
            assert box.pixels == other.pixels(image.shape[1], image.shape[0])


def hold(lib: c.CDLL, engine: dnc.Engine, images: Sequence[Pixels], confidence: float = 0.3, iou: float = 0.45) -> int:
    """The library's boxes are Python's; how many there are."""
    own = native.Engine(lib, engine.folder)
    expected = engine(list(images), confidence=confidence, iou=iou)
    for found, boxes, image in zip(own.detect(images, confidence, iou), expected, images, strict=True):
        same(found, boxes, image)
    own.close()
    return sum(map(len, expected))


IMAGES = (noise(1), noise(2, 90, 40), noise(3, 20, 70))
MODES = ("resize", "letterbox", "center-crop", "resize-half-pixel")
FEW = {
    ("yolo", "host", "f32", "letterbox"),
    ("new_coords", "host", "u8", "resize"),
    ("two heads", "graph", "f32", "center-crop"),
    ("gaussian left_top", "graph+nms", "u8", "letterbox"),
    ("region softmax", "host", "f32", "resize-half-pixel"),
    ("detection sqrt, softmax", "graph+nms", "f32", "resize"),
}
"""Every head, decoding, input and mode once."""
EVERY = [
    (*case, MODES[number % len(MODES)])
    for number, case in enumerate(itertools.product(HEADS, ("host", "graph", "graph+nms"), ("f32", "u8")))
]
"""The modes in turn."""
CASES = [*sorted(FEW), *(pytest.param(*case, marks=pytest.mark.slow) for case in EVERY if case not in FEW)]


@pytest.mark.parametrize(("head", "decode", "input", "mode"), CASES)
def test_boxes(head: str, decode: str, input: str, mode: str, build: Build, lib: c.CDLL) -> None:
    engine = build(net(HEADS[head]), decode=decode, input=input, preprocess=mode)
    confidence = 0.2 if head.startswith(("gaussian", "detection")) else 0.35
    assert hold(lib, engine, IMAGES, confidence) > 10


@pytest.mark.parametrize("input", ["f32", "u8"])
def test_layouts_of_pixels(input: str, build: Build, lib: c.CDLL) -> None:
    """BGR, gray, with alpha, and with gaps between rows, through the whole engine."""
    engine = build(net(HEADS["yolo"]), input=input)
    own = native.Engine(lib, engine.folder)
    for form, (_, channels) in FORMATS.items():
        wide = noise(5, 50, 80, channels)
        part = wide[3:43, 7:67]
        rgb = part[:, :, [2, 1, 0, 3][:channels]] if form.startswith("bgr") else part
        (found,) = own.detect([part], 0.2, form=form)
        same(found, engine(np.ascontiguousarray(rgb), confidence=0.2), part)
        assert found
    own.close()


@pytest.mark.parametrize("kind", native.TYPES)
@pytest.mark.parametrize("input", ["f32", "u8"])
def test_five_channels_of_any_type(input: str, kind: str, build: Build, lib: c.CDLL) -> None:
    engine = build(net(HEADS["yolo"]).replace("channels=3", "channels=5"), input=input)
    own = native.Engine(lib, engine.folder)
    picture = noise(6, 50, 80, 5)
    image: Any = {
        "uint8": picture,
        "uint16": picture.astype(np.uint16) * 257,
        "float32": (picture / 255).astype(np.float32),
    }[kind]
    (found,) = own.detect([image], 0.2, form="many")
    same(found, engine(image, confidence=0.2), image)
    assert found
    refused(lambda: own.detect([picture[:, :, :3]], form="many"), IMAGE, "3 channels, the network takes 5")
    own.close()


def test_a_program_that_knows_no_channels(build: Build, lib: c.CDLL) -> None:
    """Of an older dnc.h: its images are smaller."""
    own = native.Engine(lib, build(net(HEADS["yolo"])).folder)
    image, needed = native._image(IMAGES[0], "rgb"), c.c_size_t()
    image.size, image.channels = native._Image.channels.offset, 77
    own.check(lib.dnc_preprocess(own.handle, c.byref(image), None, 0, c.byref(needed)))
    assert needed.value == 4 * 3 * 48 * 64
    own.close()


@pytest.mark.parametrize(
    ("batch", "input"),
    [
        (3, "f32"),
        (None, "u8"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, "f32"), (3, "u8"), (None, "f32"))),
    ],
)
def test_batches(batch: int | None, input: str, build: Build, lib: c.CDLL) -> None:
    """Of any number of images; fixed batches are filled up, and pixels of different sizes run apart."""
    engine = build(net(HEADS["yolo"]), batch=batch, input=input, decode="graph+nms")
    own = native.Engine(lib, engine.folder)
    images = [noise(1), noise(2), noise(3, 90, 40), noise(4, 90, 40), noise(5)]
    alone = [engine(image, confidence=0.3) for image in images]
    for count in (0, 1, 2, 5):
        for found, boxes, image in zip(own.detect(images[:count], 0.3), alone, images, strict=False):
            same(found, boxes, image)
    own.close()


def test_labels(build: Build, lib: c.CDLL) -> None:
    """UTF-8; those that Darknet does not show are left out, and classes without a name go by their number."""
    for labels, names in (("cat\nhérisson\nbox\n", ["cat", "hérisson", "box"]), ("", ["0", "1", "2"])):
        engine = build(net(HEADS["yolo"]), labels=labels)
        own = native.Engine(lib, engine.folder)
        assert hold(lib, engine, IMAGES) > 10
        assert [lib.dnc_engine_label(own.handle, index).decode() for index in range(3)] == names
        assert lib.dnc_engine_label(own.handle, 3) is None
        own.close()
    assert hold(lib, build(net(HEADS["yolo"]), labels="cat\ndont_show this\nbox\n"), IMAGES) > 10


@pytest.mark.parametrize("input", ["f32", "u8"])
@pytest.mark.parametrize("name", ["classifier", "autoencoder"])
def test_classes(name: str, input: str, build: Build, lib: c.CDLL) -> None:
    """Of color and of gray networks, with more classes wanted than there are."""
    engine = build(NETWORKS[name].replace("[contrastive]\nclasses=4\n", "[avgpool]\n"), input=input)
    own = native.Engine(lib, engine.folder)
    for top in (1, 4, 100):
        for image in IMAGES:
            expected = engine(image, top=top)
            (found,) = own.classify([image], top)
            assert [one[:2] for one in found] == [(one.class_id, one.label) for one in expected]
            np.testing.assert_allclose([one[2] for one in found], [one.confidence for one in expected], rtol=BOX)
    with pytest.raises(NativeError, match="this network gives no boxes"):
        own.detect([IMAGES[0]])
    own.close()


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in ("yolo", "rnn", "crnn") else pytest.mark.slow) for name in NETWORKS],
)
def test_arrays(name: str, build: Build, lib: c.CDLL) -> None:
    """dnc_run is Engine.forward, for one and for several; recurrent networks give their states and take them again."""
    engine = build(NETWORKS[name])
    own = native.Engine(lib, engine.folder)
    outputs = list(engine.manifest.outputs)
    for count in (1, 3):
        states: dict[str, Any] = {}
        given: dict[str, Any] = {}
        for step in range(3):
            x = np.random.default_rng(step).random((count, *engine.manifest.input_shape), np.float32)
            expected = engine.forward(x, states)
            run = own.run({"input": x, **given})
            found = run.arrays()
            assert list(found) == [*outputs, *states]
            for one, other in zip(found.values(), [*expected, *states.values()], strict=True):
                assert one.shape == other.shape
                np.testing.assert_allclose(one, other, rtol=0, atol=1e-6 * max(1, float(np.abs(other).max())))
            given = {key: found[key].copy() for key in states}
            run.close()
    own.close()


def test_what_an_engine_is(build: Build, lib: c.CDLL) -> None:
    engine = build(net(HEADS["yolo"]), preprocess="letterbox", decode="graph+nms", batch=2)
    own = native.Engine(lib, engine.folder)
    texts = [getattr(lib, f"dnc_engine_{what}")(own.handle).decode() for what in ("name", "target", "device")]
    assert texts == ["net", "openvino", "CPU"]
    assert own.describe("input") == [
        ("input", "float32", (2, 3, 48, 64)),
        ("confidence", "float32", (1,)),
        ("iou", "float32", (1,)),
        ("window", "float32", (2, 4)),
    ]
    assert own.describe("output") == [("detections", "float32", (-1, 7))]
    assert own.heads() == [(head.kind, head.output, head.where, head.classes) for head in engine.manifest.heads]
    assert lib.dnc_engine_task(own.handle) == 1
    x = np.random.default_rng(0).random((2, 3, 48, 64), np.float32)
    for given in ({"confidence": np.array([0.4], np.float32)}, {}):
        run = own.run({"input": x, "iou": np.array([1], np.float32), **given})
        rows = run.arrays()["detections"].copy()
        run.close()
        assert rows[:, 2].min() > (0.4 if given else 0.25)
    assert len(rows) > 20
    own.close()
    recurrent = native.Engine(lib, build(NETWORKS["rnn"]).folder)
    assert recurrent.describe("input")[0] == ("input", "float32", (-1, 12))
    states = {name for name, _, _ in recurrent.describe("input")[1:]}
    assert states == {name for name, _, _ in recurrent.describe("output")[1:]} != set()
    assert (lib.dnc_engine_task(recurrent.handle), lib.dnc_version(), lib.dnc_abi()) == (0, dnc.__version__.encode(), 1)
    assert lib.dnc_targets().decode().split(", ") == [library.target for library in embed._libraries()]
    recurrent.close()


@pytest.mark.parametrize(("input", "color"), [("f32", "bgr"), ("u8", "bgr"), ("f32", "rgb")])
def test_preprocess(input: str, color: str, build: Build, lib: c.CDLL) -> None:
    """What the first input wants, to the bit."""
    engine = build(net(HEADS["yolo"]), input=input, preprocess="letterbox", color=color, mean=(0.1,), std=(0.5,))
    own = native.Engine(lib, engine.folder)
    prepared = engine.manifest.preprocessing
    assert prepared is not None
    for image in IMAGES:
        expected = prepared.match_channels(image) if input == "u8" else prepared(image)
        found = own.preprocess(image)
        np.testing.assert_array_equal(found.view(expected.dtype).reshape(expected.shape), expected)
    image_struct, needed = native._image(IMAGES[0], "rgb"), c.c_size_t()
    small = np.zeros(10, np.uint8)
    status = lib.dnc_preprocess(own.handle, c.byref(image_struct), small.ctypes.data, 10, c.byref(needed))
    assert (status, needed.value) == (ARGUMENT, expected.nbytes if input == "f32" else IMAGES[0].nbytes)
    assert not small.any()
    own.close()


def test_many_threads(build: Build, lib: c.CDLL) -> None:
    """Eight threads on one engine have what one thread has; batches of two sizes are compiled while they run."""
    engine = build(net(HEADS["two heads"]))
    own = native.Engine(lib, engine.folder, threads=1)
    images = [noise(seed) for seed in range(8)]
    alone = [own.detect([image], 0.3) for image in images]
    other = native.Engine(lib, engine.folder, threads=1)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            assert list(pool.map(lambda image: other.detect([image], 0.3), images)) == alone
            pairs = list(pool.map(lambda image: other.detect([image, image], 0.3), images))
            for (first, second), (single,) in zip(pairs, alone, strict=True):
                assert first == second
                assert [box.class_id for box in first] == [box.class_id for box in single]
    own.close()
    other.close()


def test_results_outlive_the_engine(build: Build, lib: c.CDLL) -> None:
    engine = build(net(HEADS["yolo"]), labels="cat\ndog\nbox\n")
    own = native.Engine(lib, engine.folder)
    x = np.random.default_rng(0).random((1, 3, 48, 64), np.float32)
    run = own.run({"input": x})
    again = own.run({"input": x * 0})
    with own._results("dnc_detect", [native._image(IMAGES[0], "rgb")], 0.3, 0.45) as results:
        own.close()
        same(own._boxes(results, 0), engine(IMAGES[0], confidence=0.3), IMAGES[0])
        # Neither runs into the other's memory.
        for each, given in ((run, x), (again, x * 0)):
            np.testing.assert_array_equal(next(iter(each.arrays().values())), engine.forward(given)[0])
    run.close()
    again.close()


def refused(call: Callable[[], object], status: int, *parts: str) -> None:
    with pytest.raises(NativeError) as caught:
        call()
    assert caught.value.status == status, str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_inputs_that_do_not_fit(build: Build, lib: c.CDLL) -> None:
    engine = build(NETWORKS["crnn"])
    own = native.Engine(lib, engine.folder)
    x, state = np.zeros((2, 2, 8, 10), np.float32), np.zeros((2, 5, 8, 10), np.float32)
    wants = "the engine wants (any, 2, 8, 10) of float32"
    refused(lambda: own.run({}), ARGUMENT, "input 'input' is missing")
    refused(lambda: own.run({"state001.h": state}), ARGUMENT, "input 'input' is missing")
    refused(lambda: own.run({"input": x[0]}), ARGUMENT, "input 'input' has shape (2, 8, 10)", wants)
    refused(lambda: own.run({"input": x[:, :1].copy()}), ARGUMENT, "has shape (2, 1, 8, 10)", wants)
    refused(lambda: own.run({"input": x.astype(np.uint8)}), ARGUMENT, wants)
    refused(
        lambda: own.run({"input": x, "other": x}), ARGUMENT, "the engine has no input 'other'", "it has input, state000"
    )
    refused(lambda: own.run({"input": x, "state001.h": state[:1]}), ARGUMENT, "all inputs have the same batch")
    refused(lambda: own.run({"input": x[:0]}), ARGUMENT)
    run = own.run({"input": x})
    run.close()
    own.close()
    vector = native.Engine(lib, build(NETWORKS["vector"]).folder)
    refused(lambda: vector.detect([IMAGES[0]]), ARGUMENT, "this network takes no images", "use dnc_run")
    refused(lambda: vector.preprocess(IMAGES[0]), ARGUMENT, "this network takes no images")
    vector.close()


def test_arrays_that_lie(build: Build, lib: c.CDLL) -> None:
    """Bytes that are not those of the shape; names and data that are missing; the same twice."""
    own = native.Engine(lib, build(NETWORKS["tiny"]).folder)
    numbers = np.zeros((1, 3, 16, 16), np.float32)
    shape = (c.c_size_t * 4)(1, 3, 16, 16)
    huge = (c.c_size_t * 4)(1, 2**32, 2**32, 1)
    handle = c.c_void_p()

    def run(*arrays: native._Array) -> int:
        found: int = lib.dnc_run(own.handle, (native._Array * len(arrays))(*arrays), len(arrays), c.byref(handle))
        assert handle.value is None
        return found

    def array(**fields: Any) -> native._Array:
        size = c.sizeof(native._Array)
        usual = {
            "size": size,
            "name": b"input",
            "rank": 4,
            "shape": shape,
            "data": numbers.ctypes.data,
            "bytes": numbers.nbytes,
        }
        return native._Array(**{**usual, **fields})

    for wrong in (
        *({"bytes": 0}, {"bytes": numbers.nbytes - 4}, {"bytes": numbers.nbytes + 4}, {"bytes": numbers.nbytes + 1}),
        *({"shape": huge}, {"shape": huge, "bytes": 0}, {"rank": 0}, {"rank": 3}, {"type": 1}, {"type": 77}),
        *({"name": None}, {"data": None}, {"shape": None}, {"size": 0}, {"size": 4}),
    ):
        assert run(array(**wrong)) == ARGUMENT, wrong
    assert run(array(), array()) == ARGUMENT
    assert b"given twice" in lib.dnc_last_error()
    assert run(array(size=c.sizeof(native._Array) + 4), array()) == ARGUMENT
    assert b"cannot be an array" in lib.dnc_last_error()
    assert run(array(type=77)) == ARGUMENT
    assert b"array 'input' has the unknown type 77" in lib.dnc_last_error()
    assert lib.dnc_run(own.handle, None, 1, c.byref(handle)) == ARGUMENT
    own.close()


def test_null(build: Build, lib: c.CDLL) -> None:
    """Every function, with NULL for everything."""
    for name in [name for name in vars(lib) if name.startswith("dnc_")]:
        function = getattr(lib, name)
        arguments = [None if kind not in (c.c_size_t, c.c_float) else 1 for kind in function.argtypes]
        result = function(*arguments)
        if function.restype is c.c_int and name not in ("dnc_abi", "dnc_engine_task", "dnc_last_status"):
            assert result == ARGUMENT, name
        elif name.startswith("dnc_engine_") and function.restype is c.c_char_p:
            assert not result
    own = native.Engine(lib, build(NETWORKS["tiny"]).folder)
    assert lib.dnc_detect(own.handle, None, 1, 0.5, 0.5, c.byref(c.c_void_p())) == ARGUMENT
    assert lib.dnc_last_error() == b"the image is NULL"
    image = native._image(IMAGES[0], "rgb")
    image.data = None
    assert lib.dnc_detect(own.handle, c.byref(image), 1, 0.5, 0.5, c.byref(c.c_void_p())) == ARGUMENT
    own.close()


def test_what_would_find_nothing_in_silence(build: Build, lib: c.CDLL) -> None:
    """As in Python."""
    own = native.Engine(lib, build(NETWORKS["tiny"]).folder)
    outputs = own.run({"input": np.zeros((1, 3, 16, 16), np.float32)})
    for name, thresholds in (("confidence", (np.nan, 0.45)), ("iou", (0.25, 45)), ("iou", (0.25, np.nan))):
        for call in (partial(own.detect, IMAGES[:1]), partial(own.postprocess, outputs, [(16, 16)])):
            with pytest.raises(NativeError, match=f"{name}=.* is no") as caught:
                call(*thresholds)
            assert caught.value.status == ARGUMENT
    outputs.close()
    own.close()


def test_structs_of_other_versions(build: Build, lib: c.CDLL) -> None:
    """A program that knows fewer fields gets no more than those; one that knows more keeps its own."""
    engine = build(net(HEADS["yolo"]))
    own = native.Engine(lib, engine.folder)
    (boxes,) = own.detect([IMAGES[0]], 0.3)
    with own._results("dnc_detect", [native._image(IMAGES[0], "rgb")], 0.3, 0.45) as results:
        one = native._Detection(native._Detection.center_y.offset)
        one.center_y, one.bottom = -7, -7
        assert lib.dnc_results_detection(results, 0, 0, c.byref(one)) == 0
        assert (one.confidence, one.center_x) == (boxes[0].confidence, boxes[0].place[0])
        assert (one.size, one.center_y, one.bottom) == (native._Detection.center_y.offset, -7, -7)
        one.size = 0
        assert lib.dnc_results_detection(results, 0, 0, c.byref(one)) == ARGUMENT
        for image, index in ((0, len(boxes)), (1, 0), (2**60, 2**60)):
            assert lib.dnc_results_detection(results, image, index, c.byref(one)) == ARGUMENT
        assert lib.dnc_results_classification(results, 0, 0, c.byref(native._Classification(24))) == ARGUMENT

    class Later(c.Structure):
        _fields_ = [("own", native._Image), ("more", c.c_char * 40)]

    # Images of a newer program lie further apart.
    images = (Later * 2)()
    for place, pixels in enumerate(IMAGES[:2]):
        images[place].own = native._image(pixels, "rgb")
        images[place].own.size = c.sizeof(Later)
    handle = c.c_void_p()
    own.check(lib.dnc_detect(own.handle, c.cast(images, c.POINTER(native._Image)), 2, 0.3, 0.45, c.byref(handle)))
    for place, pixels in enumerate(IMAGES[:2]):
        same(own._boxes(handle, place), engine(pixels, confidence=0.3), pixels)
    lib.dnc_results_free(handle)
    own.close()


def test_last_error_is_the_threads(lib: c.CDLL, tmp_path: Path) -> None:
    texts: dict[str, str] = {}

    def fail(name: str) -> None:
        refused(lambda: native.Engine(lib, tmp_path / name), ENGINE, name)
        barrier.wait()
        texts[name] = lib.dnc_last_error().decode()

    barrier = threading.Barrier(4)
    threads = [threading.Thread(target=fail, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(str(tmp_path / name) in texts[name] for name in "abcd")
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: (lib.dnc_last_error(), lib.dnc_last_status())).result() == (b"", 0)


def test_options(build: Build, lib: c.CDLL, tmp_path: Path) -> None:
    engine = build(net(HEADS["yolo"]), options=None)

    def opened(*options: str, threads: int = 0) -> None:
        own = native.Engine(lib, engine.folder, threads, options)
        (found,) = own.detect([IMAGES[0]], 0.3)
        same(found, engine(IMAGES[0], confidence=0.3), IMAGES[0])
        own.close()

    opened("hint=throughput", "device=cpu")
    opened("device=AUTO:CPU", threads=1)
    cache = tmp_path / "cache"
    opened(f"cache={cache}")
    assert any(cache.rglob("*.blob"))
    opened(f"cache={cache}")
    opened("cache=off")
    refused(lambda: opened("device=GPU"), TARGET, "OpenVINO sees no device GPU", "there is CPU")
    refused(lambda: opened("device=TOASTER"), TARGET, "OpenVINO sees no device TOASTER")
    refused(
        lambda: opened("hint=fast"), ARGUMENT, "option hint=fast of target openvino is not one of latency, throughput"
    )
    refused(lambda: opened("precision=bf16"), ARGUMENT, "precision is built into the engine", "dnc compile")
    refused(lambda: opened("color=red"), ARGUMENT, "target openvino has no option 'color'", "device, hint, cache")
    refused(lambda: opened("device"), ARGUMENT, "option 'device' is no KEY=VALUE")
    refused(lambda: opened(threads=-1), ARGUMENT, "-1 threads")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_precisions(precision: str, build: Build, lib: c.CDLL) -> None:
    """The arithmetic that the engine was compiled for, as in Python."""
    engine = build(net(HEADS["yolo"]), precision=precision)
    assert hold(lib, engine, IMAGES) > 10
    changed = engine.folder.with_name("changed")
    shutil.copytree(engine.folder, changed)
    fields = json.loads((changed / "engine.json").read_text())
    sign(changed, {**fields, "options": {"precision": "fp7"}})
    refused(lambda: native.Engine(lib, changed), ARGUMENT, "option precision=fp7 of target openvino is not one of fp32")


def test_other_targets(build: Build, lib: c.CDLL) -> None:
    engine = build(NETWORKS["tiny"], target="onnx")
    hint = "compile the network for one that it runs (`dnc compile --target`): openvino"
    refused(lambda: native.Engine(lib, engine.folder), TARGET, "this library runs no engines of target 'onnx'", hint)


def change(engine: dnc.Engine, out: Path, files: dict[str, bytes], **fields: Any) -> Path:
    """A copy of an engine with other files and fields, and the digests that belong to them."""
    shutil.copytree(engine.folder, out)
    own = {**json.loads((out / "engine.json").read_text()), **fields}
    for name, data in files.items():
        (out / name).write_bytes(data)
        own["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    sign(out, own)
    return out


def test_models_that_are_none(build: Build, lib: c.CDLL, tmp_path: Path) -> None:
    """Whoever changes a model can make the digest that belongs to it."""
    engine = build(NETWORKS["tiny"])
    xml, weights = ((engine.folder / name).read_bytes() for name in ("model.xml", "model.bin"))
    again = "build the engine again"
    wrong = {
        "empty": {"model.xml": b""},
        "no xml": {"model.xml": b"\x7fELF" + bytes(1000)},
        "cut": {"model.xml": xml[: len(xml) // 2]},
        "few weights": {"model.bin": weights[: len(weights) // 2]},
        "no weights": {"model.bin": b""},
        "another operator": {"model.xml": xml.replace(b'type="Convolution"', b'type="Convulsion"', 1)},
        "another type": {"model.xml": xml.replace(b'element_type="f32"', b'element_type="i64"', 1)},
        "deep": {"model.xml": b"<net>" * 100_000},
        "another name": {
            "model.xml": xml.replace(b'name="input" type="Parameter"', b'name="imput" type="Parameter"', 1)
        },
    }
    for name, files in wrong.items():
        refused(partial(native.Engine, lib, change(engine, tmp_path / name, files)), TARGET, again)
    other = change(engine, tmp_path / "outputs", {}, outputs=["layer002", "more"], output_shapes=[[14, 8, 8], [1]])
    refused(lambda: native.Engine(lib, other), TARGET, "the model's outputs are not those in engine.json")
    other = change(engine, tmp_path / "states", {}, states={"h": [3]})
    refused(lambda: native.Engine(lib, other), TARGET, "the model's inputs are not those in engine.json")
    other = change(engine, tmp_path / "axes", {}, states={"h": [1] * 70})
    refused(lambda: native.Engine(lib, other), ENGINE, "no state has such a shape")
    other = change(engine, tmp_path / "file", {})
    fields = json.loads((other / "engine.json").read_text())
    del fields["files"]["model.bin"]
    sign(other, fields)
    refused(lambda: native.Engine(lib, other), ENGINE, "an engine of target openvino has a file model.bin")


def test_shapes_that_the_model_has_not(build: Build, lib: c.CDLL, tmp_path: Path) -> None:
    """Found out when it runs, and no memory is read that is not the model's."""
    engine = build(NETWORKS["tiny"])
    fields = json.loads((engine.folder / "engine.json").read_text())
    prepared = {**fields["preprocessing"], "width": 32}
    other = change(engine, tmp_path / "wide", {}, input_shape=[3, 16, 32], preprocessing=prepared)
    own = native.Engine(lib, other)
    refused(lambda: own.detect([IMAGES[0]]), TARGET, "OpenVINO failed")
    own.close()
    heads = [{**fields["heads"][0], "classes": 300}]
    own = native.Engine(lib, change(engine, tmp_path / "classes", {}, heads=heads))
    refused(lambda: own.detect([IMAGES[0]]), ENGINE, "does not fit 2 anchors and 300 classes", "at net.cfg:")
    own.close()
    two = build(net(HEADS["two heads"]))
    own = native.Engine(lib, change(two, tmp_path / "decode", {}, decode="graph"))
    refused(lambda: own.detect([IMAGES[0]]), TARGET, "boxes and scores of another shape than decoding has")
    own.close()


@pytest.mark.slow
def test_memory_stays_flat(build: Build, lib: c.CDLL) -> None:
    """100,000 runs of a small network; what is forgotten once a run would be 100,000 times its size."""
    own = native.Engine(lib, build(NETWORKS["tiny"]).folder, threads=1)
    image = noise(1, 16, 16)

    def resident() -> int:
        status = Path("/proc/self/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+)", status)
        assert found is not None
        return int(found[1])

    for _ in range(5_000):
        own.detect([image], 0.5)
    before = resident()
    for _ in range(95_000):
        own.detect([image], 0.5)
    # A megabyte is 11 bytes a run.
    assert resident() - before < 1024
    own.close()


# What was checked is what runs.


def test_what_was_not_checked_is_not_run(build: Build, lib: c.CDLL, tmp_path: Path) -> None:
    """Batches of other sizes are compiled at the first use: of the files that were checked, or not at all."""
    folder = shutil.copytree(build(net(HEADS["yolo"])).folder, tmp_path / "e")
    own = native.Engine(lib, folder)
    x = np.zeros((2, *build(net(HEADS["yolo"])).manifest.input_shape), np.float32)
    own.run({"input": x[:1]}).close()
    data = bytearray((folder / "model.bin").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "new").write_bytes(data)
    (tmp_path / "new").replace(folder / "model.bin")
    refused(lambda: own.run({"input": x}), ENGINE, "was replaced or changed since it was opened", "open it again")
    own.run({"input": x[:1]}).close()
    own.close()


def test_an_engine_for_another_cpu_warns(
    lib: c.CDLL, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Once, on stderr, in the words of Python."""
    place = tmp_path / "e"
    shutil.copytree(build(net(HEADS["yolo"])).folder, place)
    fields = json.loads((place / "engine.json").read_text())
    sign(place, {**fields, "arithmetic": "vnni"})
    for isa, count in {"avx512vnni": 0, "avx2": 1}.items():
        monkeypatch.setenv("DNC_ISA", isa)
        own = native.Engine(lib, place)
        own.detect([noise(1)])
        own.close()
        said = capfd.readouterr().err
        assert said.count("dnc: warning: the engine was made for CPUs") == count
