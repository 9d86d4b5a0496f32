"""Running an engine: arrays, batches, threads, processes."""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dnc
from dnc import errors
from dnc.errors import BundleError, DncError, DncWarning, ImageError, TargetError
from dnc.runtime.postprocessing import OVER_ONE
from dnc.runtime.runners import Pending
from dnc.runtime.runners.onnx import OnnxRunner
from tests.networks import NETWORKS, TINY
from tests.patience import PATIENCE

Write = Callable[..., Path]


@pytest.fixture
def engine(write: Write, tmp_path: Path) -> dnc.Engine:
    return dnc.compile(write("yolo"), out=tmp_path / "e", target="onnx")


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).random((3, 32, 32), np.float32)


def equal(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    return len(first) == len(second) and all(map(np.array_equal, first, second))


def test_is_opened_on_first_use(engine: dnc.Engine, x: np.ndarray) -> None:
    other = dnc.load(engine.folder)
    assert other._opened is None
    assert str(engine.folder) in repr(other)
    assert other.device == "CPU"
    session = other.session
    other.forward(x)
    assert other.session is session


def test_unbatched(engine: dnc.Engine, x: np.ndarray) -> None:
    """Without the batch axis the results come without it; float64 and lists are taken as float32."""
    single, batch = engine.forward(x), engine.forward(x[None])
    assert [output.shape for output in single] == [(21, 8, 8), (21, 16, 16)]
    assert equal([output[None] for output in single], batch)
    assert equal(engine.forward(x.astype(np.float64)), single)
    assert equal(engine.forward(x.tolist()), single)
    assert equal(engine.forward(np.asfortranarray(x)), single)


def test_batches(engine: dnc.Engine, x: np.ndarray) -> None:
    """Of any size, each image as if alone, up to the order of sums."""
    for count in (1, 2, 7):
        many = engine.forward(np.stack([x * scale for scale in range(1, count + 1)]))
        for number in range(count):
            for output, alone in zip(many, engine.forward(x * (number + 1)), strict=True):
                np.testing.assert_allclose(output[number], alone, rtol=0, atol=1e-5)
    assert [output.shape[0] for output in engine.forward(np.zeros((0, 3, 32, 32)))] == [0, 0]


def test_fixed_batch(write: Write, tmp_path: Path, x: np.ndarray) -> None:
    """Arrays must fit; images are filled up."""
    engine = dnc.compile(write("yolo"), out=tmp_path / "e", target="onnx", batch=2)
    assert engine.forward(np.stack([x, x]))[0].shape[0] == 2
    for shape in ((1, 3, 32, 32), (3, 3, 32, 32), (3, 32, 32)):
        with pytest.raises(DncError, match=r"the engine wants \(2, 3, 32, 32\)"):
            engine.forward(np.zeros(shape))
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    alone = engine(image, confidence=0.2)
    for count in (1, 2, 3, 5):
        assert engine([image] * count, confidence=0.2) == [alone] * count


def test_fixed_batch_of_one(write: Write, tmp_path: Path, x: np.ndarray) -> None:
    engine = dnc.compile(write("yolo"), out=tmp_path / "e", target="onnx", batch=1)
    assert engine.forward(x)[0].shape == (21, 8, 8)
    assert engine.forward(x[None])[0].shape == (1, 21, 8, 8)


def test_images(engine: dnc.Engine, tmp_path: Path) -> None:
    """A path, bytes, an array, a PIL image, a list of them: the same boxes."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "a.png")
    expected = engine(pixels, confidence=0.2)
    assert expected
    path = tmp_path / "a.png"
    assert engine(path, confidence=0.2) == expected
    assert engine(str(path), confidence=0.2) == expected
    assert engine(path.read_bytes(), confidence=0.2) == expected
    assert engine(picture, confidence=0.2) == expected
    small = pixels[:9, :9]
    assert engine([pixels, path, small], confidence=0.2)[:2] == [expected, expected]
    assert engine([]) == []
    assert engine((), confidence=0.2) == []


def test_pixels_of_different_sizes(write: Write, tmp_path: Path) -> None:
    engine = dnc.compile(write("tiny"), out=tmp_path / "e", target="onnx", input="u8")
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (20 + 3 * n % 6, 30, 3), np.uint8) for n in range(4)]
    assert engine(images, confidence=0.2) == [engine(image, confidence=0.2) for image in images]
    assert engine.forward(images[0])[0].shape == (14, 8, 8)
    with pytest.raises(DncError, match=r"the engine wants \(N, height, width, 3\)"):
        engine.forward(np.zeros((20, 30, 4), np.uint8))


def test_threads(write: Write, tmp_path: Path) -> None:
    """Eight threads that open one engine at once, each on its own inputs."""
    for name in ("yolo", "crnn"):
        engine = dnc.compile(write(name), out=tmp_path / name, target="onnx")
        inputs = np.random.default_rng(0).random((8, *engine.manifest.input_shape), np.float32)
        expected = [engine.forward(each) for each in inputs]
        for threads in (None, 1):
            other = dnc.load(engine.folder, threads=threads)
            with ThreadPoolExecutor(8) as pool:
                for _ in range(3):
                    results = list(pool.map(other.forward, inputs))
                    assert all(map(equal, results, expected))


def test_threads_of_images(engine: dnc.Engine) -> None:
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (20 + n, 30 + n, 3), np.uint8) for n in range(8)]
    expected = [engine(image, confidence=0.2) for image in images]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda image: engine(image, confidence=0.2), images)) == expected


def test_threads_compile(write: Write, tmp_path: Path) -> None:
    """In a fresh process, where the plug-ins are not found yet."""
    code = """
import sys, dnc
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
with ThreadPoolExecutor(8) as pool:
    engines = list(pool.map(lambda n: dnc.compile(sys.argv[1], out=f"{sys.argv[2]}/{n}", target="onnx"), range(8)))
print(len({engine.manifest.network["digest"] for engine in engines}))
"""
    command = [sys.executable, "-c", code, str(write("yolo")), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert (result.stdout, result.returncode) == ("1\n", 0), result.stderr
    contents = {(tmp_path / str(number) / "engine.json").read_bytes() for number in range(8)}
    assert len(contents) == 1


def test_number_of_threads(engine: dnc.Engine, x: np.ndarray) -> None:
    expected = engine.forward(x)
    for threads in (1, 3):
        for output, right in zip(dnc.load(engine.folder, threads=threads).forward(x), expected, strict=True):
            np.testing.assert_allclose(output, right, rtol=0, atol=1e-6)


def test_pickle(engine: dnc.Engine, x: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine is its folder, wherever it is unpickled, used before or not."""
    expected = engine.forward(x)
    monkeypatch.chdir(engine.folder.parent)
    relative = dnc.load("e", threads=2)
    data = pickle.dumps(relative)
    monkeypatch.chdir("/")
    copy = pickle.loads(data)
    assert copy._threads == 2
    np.testing.assert_allclose(copy.forward(x)[0], expected[0], rtol=0, atol=1e-6)


def _forward(engine: dnc.Engine, x: np.ndarray) -> list[np.ndarray]:
    return engine.forward(x)


@pytest.mark.parametrize("used", [False, True])
def test_spawn(used: bool, engine: dnc.Engine, x: np.ndarray) -> None:
    expected = engine.forward(x)
    given = engine if used else dnc.load(engine.folder)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert equal(pool.apply_async(_forward, (given, x)).get(60), expected)


@pytest.mark.parametrize("used", [False, True])
def test_fork(used: bool, engine: dnc.Engine, x: np.ndarray) -> None:
    """A child that inherits the engine, opened or not."""
    expected = engine.forward(x)
    given = engine if used else dnc.load(engine.folder)
    child = os.fork()
    if child == 0:
        signal.alarm(600)
        right = False
        try:
            right = all(equal(given.forward(x), expected) for _ in range(3))
        finally:
            os._exit(0 if right else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_unknown_target(engine: dnc.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from dnc.runtime.runners import runners

    monkeypatch.setattr(runners, "_classes", {name: kind for name, kind in runners.items() if name != "onnx"})
    with pytest.raises(TargetError, match="unknown target 'onnx'"):
        dnc.load(engine.folder)


def test_model_that_onnxruntime_refuses(engine: dnc.Engine, monkeypatch: pytest.MonkeyPatch, x: np.ndarray) -> None:
    other = dnc.load(engine.folder)
    (engine.folder / "model.onnx").write_bytes(b"nonsense")
    monkeypatch.setattr(other._source.files, "opening", nullcontext)
    with pytest.raises(TargetError, match="ONNX Runtime refuses the model"):
        other.forward(x)


def test_runtime_needs_little(write: Write, tmp_path: Path) -> None:
    """An app that embeds an engine loads numpy and onnxruntime: nothing of the compiler, no command line, no Pillow."""
    engine = dnc.compile(write("tiny"), out=tmp_path / "e", target="onnx")
    code = """
import sys, numpy as np, dnc.runtime.engine
loaded = [name for name in ("onnx", "onnx_ir", "PIL", "click", "rich", "sympy", "onnxruntime") if name in sys.modules]
class Blocked:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("onnx", "onnx_ir", "PIL", "click", "rich", "sympy", "onnxscript"):
            raise ImportError(name + " is not there")
sys.meta_path.insert(0, Blocked())
engine = dnc.runtime.engine.load(sys.argv[1])
shape = engine.forward(np.zeros((3, 16, 16)))[0].shape
engine(np.zeros((20, 20, 3), np.uint8))
print(loaded, shape)
try:
    engine(sys.argv[1] + "/engine.json")
except dnc.DncError as error:
    print(error.message)
"""
    result = subprocess.run([sys.executable, "-c", code, str(engine.folder)], capture_output=True, text=True)
    lines = result.stdout.splitlines()
    assert lines[0] == "[] (14, 8, 8)", result.stderr
    assert "Pillow" in lines[1]


def test_old_states_are_replaced_not_changed(write: Write, tmp_path: Path) -> None:
    """The arrays of the caller stay as they are."""
    engine = dnc.compile(write("rnn"), out=tmp_path / "e", target="onnx")
    states = {name: np.ones((1, *shape), np.float32) for name, shape in engine.manifest.states.items()}
    given = dict(states)
    engine.forward(np.ones(12), states)
    assert all((array == 1).all() for array in given.values())
    assert all(states[name] is not given[name] for name in states)


def test_seeds() -> None:
    """What the tests above rely on."""
    assert "nms_kind=greedynms" in NETWORKS["yolo"]
    assert NETWORKS["tiny"] == TINY


def test_forward_of_what_has_no_batch_axis_or_takes_pixels(write: Write, tmp_path: Path) -> None:
    cfg = write("tiny")
    decoded = dnc.compile(cfg, target="onnx", out=tmp_path / "nms.engine", decode="graph+nms", verify=False)
    (rows,) = decoded.forward(np.zeros((3, 16, 16), np.float32))
    assert rows.ndim == 2
    assert rows.shape[1] == 7
    pixels = dnc.compile(cfg, target="onnx", out=tmp_path / "u8.engine", input="u8")
    assert pixels.forward(np.zeros((5, 9, 3), np.uint8))[0].shape == (14, 8, 8)
    with pytest.raises(DncError, match="the engine takes pixels, uint8"):
        pixels.forward(np.zeros((5, 9, 3), np.float32))


# Close, results, and the rest of what an app uses.


@pytest.fixture
def frames() -> list[np.ndarray]:
    """Of several sizes, so that a result in the wrong place is seen."""
    generator = np.random.default_rng(1)
    return [generator.integers(0, 256, (20 + n % 5, 30 + n % 3, 3), np.uint8) for n in range(20)]


def threads_of(prefix: str) -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(prefix)]


def test_close(engine: dnc.Engine, x: np.ndarray) -> None:
    with dnc.load(engine.folder) as other:
        other.forward(x)
        session = weakref.ref(other.session)
    assert session() is None
    other.close()
    image = np.zeros((9, 9, 3), np.uint8)
    for use in (other, other.detect, lambda _: other.forward(x), lambda _: other.device):
        with pytest.raises(DncError, match="the engine is closed"):
            use(image)
    with pytest.raises(DncError, match="the engine is closed"):
        next(other.stream([image]))
    with pytest.raises(DncError, match="the engine is closed"):
        asyncio.run(other.detect_async(image))
    engine.forward(x)


def test_close_during_a_run(engine: dnc.Engine, x: np.ndarray) -> None:
    """What has begun ends, with its result."""
    expected = engine.forward(x)
    other = dnc.load(engine.folder)
    begun, go = threading.Event(), threading.Event()
    run = other.session.run

    def slow(inputs: Any) -> Any:
        begun.set()
        assert go.wait(PATIENCE)
        return run(inputs)

    other.session.run = slow  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(other.forward, x)
        assert begun.wait(PATIENCE)
        other.close()
        go.set()
        assert equal(future.result(PATIENCE), expected)


def test_boxes_in_pixels(engine: dnc.Engine) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    found = engine.detect(image, confidence=0.2)
    assert found == engine(image, confidence=0.2)
    assert engine.detect([image, image], confidence=0.2) == [found, found]
    for box in found:
        assert box.image_size == (50, 40)
        left, top, right, bottom = box.box
        assert 0 <= left <= right <= 50
        assert 0 <= top <= bottom <= 40
        assert box.pixels() == box.pixels(50, 40)
        assert box.to_json()["pixels"] == dict(zip(("left", "top", "right", "bottom"), box.pixels(), strict=True))
        json.dumps(box.to_json())
        with pytest.raises(FrozenInstanceError):
            box.confidence = 1  # type: ignore[misc]
    inside = [box for box in found if box.box[0] > 0 and box.box[2] < 50]
    assert inside
    for box in inside:
        assert box.box[2] - box.box[0] == pytest.approx(box.width * 50)


def test_detect_and_classify(engine: dnc.Engine, write: Write, tmp_path: Path) -> None:
    classifier = dnc.compile(write("classifier"), out=tmp_path / "c", target="onnx")
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    assert classifier.classify(image, top=2) == classifier(image, top=2)
    assert len(classifier.classify([image, image], top=2)[1]) == 2
    json.dumps([item.to_json() for item in classifier.classify(image)])
    with pytest.raises(DncError, match="gives no boxes") as caught:
        classifier.detect(image)
    assert caught.value.hint == "use classify()"
    with pytest.raises(DncError, match="gives no classes"):
        engine.classify(image)


def test_what_would_find_nothing_in_silence(engine: dnc.Engine) -> None:
    image = np.zeros((40, 50, 3), np.uint8)
    nan = float("nan")
    for options in ({"confidence": nan}, {"iou": 45}, {"iou": nan}):
        (name,) = options
        with pytest.raises(DncError, match=f"{name}=.* is no"):
            engine.detect(image, **options)
    # Scores of other heads can be over 1.
    errors._said.discard(OVER_ONE)
    with pytest.warns(DncWarning, match=r"confidence=25 is over 1(.|\n)*0.25 are 25 %"):
        assert engine.detect(image, confidence=25) == []
    with pytest.raises(ImageError, match=r"None is no image\n.*cv2.imread"):
        engine.detect(None)  # type: ignore[call-overload]


@pytest.mark.parametrize("channels", [3, 4])
def test_bgr(channels: int, engine: dnc.Engine, write: Write, tmp_path: Path) -> None:
    """OpenCV's frames, whether the engine or the host prepares them."""
    u8 = dnc.compile(write("yolo"), out=tmp_path / "u8", target="onnx", input="u8")
    frame = np.random.default_rng(0).integers(0, 256, (40, 50, channels), np.uint8)
    rgb = frame[:, :, [2, 1, 0, 3][:channels]]
    for each in (engine, u8):
        expected = each(rgb, confidence=0.2)
        assert expected != each(frame, confidence=0.2)
        assert each(frame, confidence=0.2, color="bgr") == expected
        assert list(each.stream([frame], confidence=0.2, color="bgr")) == [expected]
    with pytest.raises(DncError, match="color='hsv' is not known"):
        engine(frame, color="hsv")


def test_an_observer(write: Write, tmp_path: Path, frames: list[np.ndarray]) -> None:
    """Is told of every batch; what is pickled has none."""
    engine = dnc.compile(write("yolo"), out=tmp_path / "e", target="onnx", batch=2)
    told: list[str] = []
    engine.observer = told.append
    engine(frames[0])
    run = ["preprocess", "infer", "postprocess", "done"]
    assert told == run
    engine(frames[:3])
    assert told == run * 3
    list(engine.stream(frames[:2]))
    assert told == run * 4
    engine.forward(np.zeros((2, 3, 32, 32)))
    assert told == [*run * 4, "infer"]
    assert pickle.loads(pickle.dumps(engine)).observer is None


@pytest.mark.parametrize(
    ("name", "decode"), [("yolo", "host"), ("yolo", "graph"), ("yolo", "graph+nms"), ("classifier", "host")]
)
def test_outputs_that_nobody_reads(
    name: str, decode: str, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that leaves them out gives the same results."""
    pixels = [np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8) for seed in range(3)]
    with dnc.compile(
        write(name, lenient=True), out=tmp_path / "e", target="onnx", decode=decode, lenient=True, verify=False
    ) as engine:
        expected = engine(pixels, confidence=0.01)
        submit = engine.session.submit

        def without(feeds: Any, wanted: Any, **more: Any) -> Any:
            outputs = submit(feeds, wanted, **more).result()
            assert wanted
            return Pending([each if place in wanted else np.empty(0) for place, each in enumerate(outputs)])

        monkeypatch.setattr(engine.session, "submit", without)
        assert engine(pixels, confidence=0.01) == expected
        assert list(engine.stream(pixels, confidence=0.01)) == [engine(each, confidence=0.01) for each in pixels]
        with pytest.raises(TargetError, match="outputs cannot be in the memory of a GPU"):
            submit({}, None, on_device=True)


def test_rooms(write: Write, tmp_path: Path) -> None:
    """Images are prepared where the run reads them; what an engine of a fixed batch lacks is the last one again."""
    pixels = [np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8) for seed in range(3)]
    for mode in ("resize", "letterbox", "resize-half-pixel"):
        engine = dnc.compile(write("yolo"), out=tmp_path / mode, target="onnx", batch=4, preprocess=mode)
        room = engine.inputs.room(3, lambda shape, dtype: np.full(shape, np.nan, dtype))
        assert room is not None
        images = [engine.inputs.prepare(each, out) for each, out in zip(pixels, room, strict=False)]
        found = engine.inputs.batch(images, room=room)["input"]
        assert np.shares_memory(found, room)
        np.testing.assert_array_equal(found, engine.inputs.batch(list(map(engine.inputs.prepare, pixels)))["input"])


# Streams.


@pytest.mark.parametrize("options", [{}, {"workers": 1}, {"workers": 8}, {"batch": 3}, {"batch": 50}])
def test_stream(options: dict[str, Any], engine: dnc.Engine, frames: list[np.ndarray]) -> None:
    """In order, as one by one; batches differ by the order of sums, so there boxes and not bits are compared."""
    expected = [engine(frame, confidence=0.2) for frame in frames]
    found = list(engine.stream(iter(frames), confidence=0.2, **options))
    if "batch" not in options:
        assert found == expected
    for boxes, right in zip(found, expected, strict=True):
        assert [box.class_id for box in boxes] == [box.class_id for box in right]
        np.testing.assert_allclose([box.box for box in boxes], [box.box for box in right], rtol=0, atol=1e-3)
    assert not threads_of("dnc-stream")


def test_stream_of_any_images(engine: dnc.Engine, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "a.png")
    images: list[Any] = [pixels, picture, tmp_path / "a.png", (tmp_path / "a.png").read_bytes()]
    pairs = list(engine.stream(images, confidence=0.2, with_frames=True))
    assert [frame for frame, _ in pairs] == images
    assert [boxes for _, boxes in pairs] == [engine(pixels, confidence=0.2)] * 4
    assert list(engine.stream([])) == []


def test_stream_through_a_fixed_batch(write: Write, tmp_path: Path, frames: list[np.ndarray]) -> None:
    """Full batches, and the last one filled up."""
    engine = dnc.compile(write("yolo"), out=tmp_path / "e", target="onnx", batch=3)
    sizes = []
    run = engine.session.run
    engine.session.run = lambda inputs: (sizes.append(len(inputs["input"])), run(inputs))[1]  # type: ignore[method-assign, func-returns-value]
    assert list(engine.stream(frames, confidence=0.2)) == [engine(frame, confidence=0.2) for frame in frames]
    assert sizes[:7] == [3] * 7
    assert len(sizes) == 7 + 20
    with pytest.raises(DncError, match="batch=2: the engine takes 3"):
        engine.stream(frames, batch=2)


def test_stream_of_pixels_of_different_sizes(write: Write, tmp_path: Path, frames: list[np.ndarray]) -> None:
    engine = dnc.compile(write("tiny"), out=tmp_path / "e", target="onnx", input="u8")
    expected = [engine(frame, confidence=0.2) for frame in frames]
    assert list(engine.stream(frames, confidence=0.2, batch=4)) == expected


def test_stream_with_the_suppression_inside(write: Write, tmp_path: Path, frames: list[np.ndarray]) -> None:
    engine = dnc.compile(write("tiny"), out=tmp_path / "e", target="onnx", decode="graph+nms", verify=False)
    expected = [engine(frame, confidence=0.3) for frame in frames]
    assert list(engine.stream(frames, confidence=0.3)) == expected


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("place", [0, 2, 9, 19])
def test_a_bad_frame_is_raised_in_its_place(
    place: int, batch: int, engine: dnc.Engine, frames: list[np.ndarray]
) -> None:
    given: list[Any] = [*frames]
    given[place] = "no such file.jpg"
    stream = engine.stream(given, batch=batch)
    for _ in range(place):
        next(stream)
    with pytest.raises(ImageError, match="there is no such image"):
        next(stream)
    assert list(stream) == []
    assert not threads_of("dnc-stream")


@pytest.mark.parametrize("batch", [1, 4])
def test_frames_that_fail_are_raised_in_their_place(batch: int, engine: dnc.Engine, frames: list[np.ndarray]) -> None:
    """After the results of what came before."""

    def camera() -> Iterator[np.ndarray]:
        yield from frames[:6]
        raise OSError("unplugged")

    found: list[Any] = []
    with pytest.raises(OSError, match="unplugged"):
        found.extend(engine.stream(camera(), batch=batch))
    # extend() keeps what came before the error.
    assert len(found) == 6
    assert not threads_of("dnc-stream")


def test_a_stream_that_is_left_early(engine: dnc.Engine, frames: list[np.ndarray]) -> None:
    """By close(), by break, or by an exception of the caller: no thread is left, and no frame is read any more."""
    read = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal read
        while True:
            read += 1
            yield frames[read % len(frames)]

    stream = engine.stream(endless(), workers=2)
    next(stream)
    stream.close()
    # Two threads have two frames each ahead of them, besides what was ready at once.
    assert read <= 5
    assert not threads_of("dnc-stream")
    for _ in engine.stream(endless()):
        break
    assert not threads_of("dnc-stream")

    def fail() -> None:
        for _ in engine.stream(endless()):
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    gc.collect()
    assert not threads_of("dnc-stream")


def test_a_stream_reads_no_further_than_its_bound(
    engine: dnc.Engine, frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the network is busy, whatever `frames` has: it goes on when the stream waits for the first result."""
    go = threading.Event()
    run, result = engine.session.run, Future.result
    engine.session.run = lambda inputs: (go.wait(PATIENCE), run(inputs))[1]  # type: ignore[method-assign]
    read: list[int] = []

    def source() -> Iterator[np.ndarray]:
        for number in range(100):
            read.append(number)
            yield frames[0]

    def awaited(future: Future[Any]) -> Any:
        go.set()
        return result(future)

    monkeypatch.setattr(Future, "result", awaited)
    next(stream := engine.stream(source(), workers=2))
    assert len(read) == 4
    stream.close()


def test_streams_side_by_side(engine: dnc.Engine, frames: list[np.ndarray]) -> None:
    expected = [engine(frame, confidence=0.2) for frame in frames]
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: list(engine.stream(frames, confidence=0.2)), range(8)):
            assert found == expected


def test_what_a_stream_cannot_be_told(engine: dnc.Engine, write: Write, tmp_path: Path) -> None:
    """At once, not at its first frame."""
    with pytest.raises(DncError, match="workers=0"):
        engine.stream([], workers=0)
    with pytest.raises(DncError, match="batch=0"):
        engine.stream([], batch=0)
    vector = dnc.compile(write("vector"), out=tmp_path / "v", target="onnx")
    with pytest.raises(DncError, match="this network takes no images"):
        vector.stream([])


# Asyncio.


def test_async(engine: dnc.Engine, frames: list[np.ndarray], write: Write, tmp_path: Path) -> None:
    """More at once than there are threads; in several loops, one after the other and side by side."""
    expected = [engine(frame, confidence=0.2) for frame in frames]

    async def main() -> list[Any]:
        return await asyncio.gather(*(engine.detect_async(frame, confidence=0.2) for frame in frames))

    assert asyncio.run(main()) == expected
    with ThreadPoolExecutor(3) as pool:
        assert [future.result() for future in [pool.submit(asyncio.run, main()) for _ in range(3)]] == [expected] * 3
    assert len(threads_of("dnc-async")) <= 4
    engine.close()
    assert not threads_of("dnc-async")
    classifier = dnc.compile(write("classifier"), out=tmp_path / "c", target="onnx")
    with classifier:
        assert asyncio.run(classifier.classify_async(frames[0], top=1)) == classifier(frames[0], top=1)
        with pytest.raises(DncError, match="gives no boxes"):
            asyncio.run(classifier.detect_async(frames[0]))


def test_async_work_is_bounded_and_can_be_cancelled(engine: dnc.Engine, frames: list[np.ndarray]) -> None:
    """What waits and is cancelled never runs; what runs goes on, and the engine serves others afterwards."""
    expected = engine(frames[0], confidence=0.2)
    go = threading.Event()
    ran = []
    run = engine.session.run

    def slow(inputs: Any) -> Any:
        ran.append(1)
        assert go.wait(PATIENCE)
        return run(inputs)

    engine.session.run = slow  # type: ignore[method-assign]

    async def main() -> Any:
        tasks = [asyncio.create_task(engine.detect_async(frames[0], confidence=0.2)) for _ in range(60)]
        # Each gets as far as it can without any of them ending.
        for _ in range(100):
            await asyncio.sleep(0)
        assert engine._pool is not None
        # A few run, twice as many wait in the pool, all others wait before it.
        assert len(ran) <= 4
        assert engine._pool._work_queue.qsize() <= 8
        kept = tasks.pop()
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        go.set()
        return await asyncio.wait_for(kept, PATIENCE)

    assert asyncio.run(main()) == expected
    assert len(ran) <= 5

    async def timed_out() -> None:
        go.clear()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(engine.detect_async(frames[0]), 0.05)

    # Its loop is closed while the thread still runs.
    asyncio.run(timed_out())
    go.set()
    assert asyncio.run(engine.detect_async(frames[0], confidence=0.2)) == expected
    engine.close()


# Processes.


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_a_forked_child_uses_the_engine_and_ends(target: str, write: Write, tmp_path: Path) -> None:
    """With a network that keeps all threads busy, while other threads of the parent run. The child leaves as those of
    multiprocessing do: a forked child that imported ONNX Runtime before waits for ever in the destructors of the
    library, whether it was used or not."""
    pytest.importorskip({"onnx": "onnxruntime"}.get(target, target))
    cfg = write("wide", "[net]\nwidth=96\nheight=96\nchannels=3\n" + "[convolutional]\nfilters=64\nsize=3\npad=1\n" * 3)
    dnc.compile(cfg, out=tmp_path / "e", target=target, verify=False)
    code = """
import gc, os, signal, sys, threading, numpy as np, dnc
engine = dnc.load(sys.argv[1])
x = np.ones((3, 96, 96), np.float32)
expected = engine.forward(x)[0]
threads = [threading.Thread(target=lambda: [engine.forward(x) for _ in range(20)], daemon=True) for _ in range(3)]
for thread in threads: thread.start()
for used in (True, False):
    child = os.fork()
    if child == 0:
        signal.alarm(600)
        good = not used or np.allclose(engine.forward(x)[0], expected, rtol=0, atol=1e-5)
        # Neither what it opened nor what it inherited may wait for threads that are not there.
        del engine
        gc.collect()
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0, used
for thread in threads: thread.join()
print("all")
"""
    command = [sys.executable, "-c", code, str(tmp_path / "e"), target]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert (result.stdout, result.returncode) == ("all\n", 0), result.stderr


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_a_forked_child_does_without_what_was_released(target: str, write: Write, tmp_path: Path) -> None:
    """OpenVINO keeps the threads of a model that was released for the next one, which a child does not have."""
    pytest.importorskip({"onnx": "onnxruntime"}.get(target, target))
    engine = dnc.compile(write("tiny"), out=tmp_path / "e", target=target, verify=False)
    code = """
import os, signal, sys, numpy as np, dnc
x = np.ones((3, 3, 16, 16), np.float32)
with dnc.load(sys.argv[1]) as engine:
    # Two models, of one image and of any number.
    expected = engine.forward(x[:1])[0]
    engine.forward(x)
engine = dnc.load(sys.argv[1])
for opened in (False, True):
    child = os.fork()
    if child == 0:
        signal.alarm(600)
        os._exit(0 if np.allclose(engine.forward(x[:1])[0], expected, rtol=0, atol=1e-5) else 1)
    assert os.waitpid(child, 0)[1] == 0, opened
    engine.forward(x[:1])
print("all")
"""
    command = [sys.executable, "-c", code, str(engine.folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert (result.stdout, result.returncode) == ("all\n", 0), result.stderr


def test_a_forked_child_of_async_work(engine: dnc.Engine, frames: list[np.ndarray]) -> None:
    expected = asyncio.run(engine.detect_async(frames[0], confidence=0.2))
    child = os.fork()
    if child == 0:
        signal.alarm(600)
        right = False
        try:
            right = asyncio.run(engine.detect_async(frames[0], confidence=0.2)) == expected
            right = right and list(engine.stream(frames[:1], confidence=0.2)) == [expected]
        finally:
            os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    engine.close()


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_memory_is_flat(target: str, write: Write, tmp_path: Path) -> None:
    """40,000 runs of a small network, images in and boxes out, from several threads; streams and async among them.

    3 MB: 100 bytes a run would be seen. A child's memory is that of the runs alone."""
    pytest.importorskip({"onnx": "onnxruntime"}.get(target, target))
    engine = dnc.compile(write("tiny"), out=tmp_path / "e", target=target)
    code = """
import sys, asyncio, numpy as np, dnc
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
def resident():
    with open("/proc/self/statm") as file: return int(file.read().split()[1]) * 4096
engine = dnc.load(sys.argv[1], threads=1)
image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
def some_of(count):
    for _ in range(count): engine(image)
def run(count):
    with ThreadPoolExecutor(4) as pool: list(pool.map(some_of, [count // 8] * 4))
    for _ in engine.stream(image for _ in range(count // 4)): pass
    async def some(): await asyncio.gather(*(engine.detect_async(image) for _ in range(100)))
    for _ in range(count // 400): asyncio.run(some())
run(10_000)
before = resident()
run(30_000)
print(resident() - before)
"""
    result = subprocess.run([sys.executable, "-c", code, str(engine.folder)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 3e6


# What was checked is what runs.


def replace_with(write: Write, folder: Path, seed: int, target: str = "onnx") -> dnc.Engine:
    return dnc.compile(write("yolo", seed=seed), out=folder, target=target, verify=False)


def flip_a_bit(path: Path) -> None:
    """As late as possible: in the weights."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("target", ["onnx", "openvino"])
@pytest.mark.parametrize("change", ["replaced", "flipped", "removed"])
def test_what_was_not_checked_is_not_run(change: str, target: str, write: Write, tmp_path: Path, x: np.ndarray) -> None:
    folder = replace_with(write, tmp_path / "e", 0, target).folder
    engine = dnc.load(folder)
    if change == "replaced":
        replace_with(write, folder, 1, target)
    elif change == "flipped":
        flip_a_bit(folder / ("model.onnx" if target == "onnx" else "model.bin"))
    else:
        shutil.rmtree(folder)
    with pytest.raises(BundleError, match=r"was replaced or changed since it was loaded(.|\n)*load it again"):
        engine.forward(x)


def test_what_is_the_same_runs(write: Write, engine: dnc.Engine, x: np.ndarray) -> None:
    """An engine with the same contents in its place, other times, and a folder that moved into its place."""
    expected = engine.forward(x)
    loaded = [dnc.load(engine.folder) for _ in range(2)]
    dnc.compile(write("yolo"), out=engine.folder, target="onnx")
    assert equal(loaded[0].forward(x), expected)
    (engine.folder / "model.onnx").touch()
    assert equal(loaded[1].forward(x), expected)


def test_unchanged_files_are_hashed_once(engine: dnc.Engine, monkeypatch: pytest.MonkeyPatch, x: np.ndarray) -> None:
    # They were written a few milliseconds ago.
    monkeypatch.setattr("dnc.runtime.manifest._FINE", 0)
    other, expected = dnc.load(engine.folder), engine.forward(x)
    monkeypatch.setattr("hashlib.file_digest", None)
    assert equal(other.forward(x), expected)


def test_what_is_opened_late_is_checked(write: Write, tmp_path: Path, x: np.ndarray) -> None:
    """OpenVINO compiles for other batches at the first use."""
    engine = replace_with(write, tmp_path / "e", 0, "openvino")
    engine.forward(x)
    replace_with(write, tmp_path / "e", 1, "openvino")
    engine.forward(x)
    with pytest.raises(BundleError, match="was replaced or changed"):
        engine.forward(np.stack([x, x]))


def test_an_exchange_while_a_library_opens(
    write: Write, engine: dnc.Engine, monkeypatch: pytest.MonkeyPatch, x: np.ndarray
) -> None:
    """Between the look at the files and the library's."""
    other = dnc.load(engine.folder)
    really = OnnxRunner.open

    def late(runner: OnnxRunner, folder: Path, threads: int | None = None) -> Any:
        monkeypatch.setattr(OnnxRunner, "open", really)
        replace_with(write, folder, 1)
        return really(runner, folder, threads)

    monkeypatch.setattr(OnnxRunner, "open", late)
    with pytest.raises(BundleError, match="was replaced or changed"):
        other.forward(x)
