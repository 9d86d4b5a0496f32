"""`--input u8`: the graph makes the network's input of pixels as dnc.runtime.preprocessing does, to the same bits.

Both take the same float32 operations in the same order, one product and one sum at a time (the positions of
resize-half-pixel in double), so there is nothing to round differently: every comparison is for equality. The sums of
bicubic are exact, as those of whole numbers. That holds with ONNX Runtime's optimizer too, which has no fusion for
these operators.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnc.compiler.compiling import compile
from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.darknet.weights import Header
from dnc.errors import DncError
from dnc.graph.builder import Builder
from dnc.graph.preprocessing import emit_on_image
from dnc.graph.running import Running, run
from dnc.runtime.engine import Engine
from dnc.runtime.preprocessing import MODES, Preprocessing

Pixels = npt.NDArray[np.uint8]

COLORS = [(1, "gray"), (3, "rgb"), (3, "bgr"), (4, "rgb"), (4, "bgr")]
SIZES = [(1, 1), (1, 9), (9, 1), (2, 3), (7, 5), (12, 16), (13, 40), (40, 13), (64, 48)]
"""(height, width) of images; the network takes 12 x 16."""


def network(channels: int, height: int = 12, width: int = 16) -> Network:
    text = f"[net]\nwidth={width}\nheight={height}\nchannels={channels}\n[empty]\n"
    return Network.parse(text).with_random_weights()


@functools.lru_cache(maxsize=8)
def running(p: Preprocessing, optimize: bool = False) -> Running:
    model = lower(network(p.channels, p.height, p.width), preprocessing=p, pixels=True)
    return Running(model, optimize=optimize, spin=False)


def noise(seed: int, *shape: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def hold(p: Preprocessing, images: Pixels, optimized: bool = False) -> None:
    """`images` are (N, H, W, channels), matched but in RGB order, as the graph takes them."""
    (got,) = running(p, optimized)({"input": images}).values()
    np.testing.assert_array_equal(got, np.stack([p(image) for image in images]))


@pytest.mark.parametrize(("channels", "color"), COLORS)
@pytest.mark.parametrize("mode", MODES)
def test_modes_and_colors(mode: str, channels: int, color: str) -> None:
    p = Preprocessing(width=16, height=12, channels=channels, mode=mode, color=color)
    for height, width in SIZES:
        hold(p, noise(height * 100 + width, 2, height, width, channels))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("mean", "std"),
    [((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5,), (1.0,)), ((0.0,), (0.5,)), ((0.1,), (1.0, 2.0, 3.0))],
)
def test_mean_and_std(mode: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """The padding of a letterbox is normalized with the image."""
    p = Preprocessing(width=16, height=12, mode=mode, mean=mean, std=std, color="bgr")
    for height, width in SIZES[::3]:
        hold(p, noise(1, 1, height, width, 3))


@pytest.mark.parametrize("crop", [0.875, 0.7, 0.1])
@pytest.mark.parametrize(("height", "width"), [(12, 16), (16, 12), (1, 1)])
def test_crops(crop: float, height: int, width: int) -> None:
    p = Preprocessing(width=width, height=height, mode="center-crop", crop=crop, mean=(0.5,), std=(0.25,))
    for size in SIZES:
        hold(p, noise(4, 2, *size, 3))


@pytest.mark.parametrize("crop", [1.0, 0.875])
@pytest.mark.parametrize("color", ["rgb", "bgr"])
@pytest.mark.parametrize("optimized", [False, True])
def test_bicubic(crop: float, color: str, optimized: bool) -> None:
    fields: dict[str, Any] = {"mode": "center-crop", "crop": crop, "color": color, "mean": (0.5, 0.4, 0.3)}
    p = Preprocessing(width=16, height=12, std=(0.25,), interpolation="bicubic", **fields)
    for height, width in [*SIZES, (375, 500), (333, 100)]:
        hold(p, noise(height, 2, height, width, 3), optimized)
        # Black and white, where a cubic overshoots.
        hold(p, noise(width, 1, height, width, 3) // 128 * 255, optimized)


@given(
    st.tuples(st.integers(1, 24), st.integers(1, 24)),
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=4, max_size=4),
)
@settings(max_examples=15)
def test_bicubic_of_any_size(size: tuple[int, int], images: list[tuple[int, int]]) -> None:
    p = Preprocessing(*size, channels=1, color="gray", mode="center-crop", interpolation="bicubic")
    for height, width in images:
        hold(p, noise(height, 1, height, width, 1))


@pytest.mark.parametrize("mode", MODES)
def test_scale(mode: str) -> None:
    hold(Preprocessing(width=16, height=12, mode=mode, scale=1 / 128), noise(2, 1, 9, 21, 3))
    hold(Preprocessing(width=16, height=12, mode=mode, scale=1.0), noise(2, 1, 9, 21, 3))


@pytest.mark.parametrize("mode", MODES)
def test_onnx_runtimes_optimizer_changes_nothing(mode: str) -> None:
    p = Preprocessing(width=16, height=12, mode=mode, color="bgr", mean=(0.5, 0.4, 0.3), std=(0.2,))
    for height, width in SIZES:
        hold(p, noise(3, 2, height, width, 3), optimized=True)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 8), (8, 1), (5, 31)])
def test_other_inputs(mode: str, height: int, width: int) -> None:
    p = Preprocessing(width=width, height=height, mode=mode)
    for size in SIZES:
        hold(p, noise(4, 1, *size, 3))


@given(
    st.sampled_from(MODES),
    st.tuples(st.integers(1, 24), st.integers(1, 24)),
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=4, max_size=4),
)
@settings(max_examples=15)
def test_any_size(mode: str, size: tuple[int, int], images: list[tuple[int, int]]) -> None:
    p = Preprocessing(width=size[0], height=size[1], channels=1, color="gray", mode=mode)
    for height, width in images:
        hold(p, noise(height, 1, height, width, 1))


def test_black_last_rows_are_kept() -> None:
    """From 240 rows to 416, Darknet's last row is nearly black; so is the graph's."""
    p = Preprocessing(width=8, height=416, channels=1, color="gray")
    image = np.full((1, 240, 8, 1), 255, np.uint8)
    hold(p, image)
    assert p(image[0])[0, -1, 0] < 0.01


HEADS = (
    "[convolutional]\nfilters=14\nsize=4\nstride=4\nactivation=linear\n[yolo]\nclasses=2\nnum=2\nanchors=9,8,14,12\n"
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Engine]:
    """An engine of a small detector, by the options of `compile`."""
    folder = tmp_path_factory.mktemp("networks")

    def build(channels: int = 3, **options: Any) -> Engine:
        cfg, weights = folder / f"{channels}.cfg", folder / f"{channels}.weights"
        cfg.write_text(f"[net]\nwidth=16\nheight=12\nchannels={channels}\n{HEADS}", encoding="utf-8")
        floats = np.random.default_rng(1).normal(0, 0.1, 14 + 14 * channels * 16)
        weights.write_bytes(Header().pack() + floats.astype("<f4").tobytes())
        out: Path = tmp_path_factory.mktemp("engines") / "engine"
        return compile(cfg, weights, "onnx", out, **options)

    return build


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("channels", "color"), COLORS)
def test_engines_agree(mode: str, channels: int, color: str, engine: Callable[..., Engine]) -> None:
    """Images of other channels are matched before; those of other sizes run one after the other.

    To the bit, but for fold-scale, which takes the division by 255 into the weights.
    """
    options = {"preprocess": mode, "color": color, "skip": ["fold-scale"]}
    both = [engine(channels, input=kind, **options) for kind in ("f32", "u8")]
    images = [noise(5, 20, 30, 3), noise(6, 11, 7), noise(7, 5, 40, channels), noise(8, 5, 40, channels)]
    results = [item(images, confidence=0.1) for item in both]
    assert sum(map(len, results[0])) > 20
    assert results[0] == results[1]
    assert results[0] == [item for image in images for item in both[1]([image], confidence=0.1)]


def test_fixed_batches(engine: Callable[..., Engine]) -> None:
    """A last batch that is not full is filled up, and what comes of that is dropped."""
    images = [noise(seed, 9, 14, 3) for seed in range(5)]
    free, fixed = engine(input="u8"), engine(input="u8", batch=2)
    assert free(images, confidence=0.1) == fixed(images, confidence=0.1)


def test_forward_takes_pixels(engine: Callable[..., Engine]) -> None:
    pixels, floats = engine(input="u8"), engine()
    image = noise(9, 33, 21, 3)
    assert floats.manifest.preprocessing is not None
    (expected,) = floats.forward(floats.manifest.preprocessing(image))
    (got,) = pixels.forward(image)
    # Weights that were divided by 255 are rounded once more.
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    with pytest.raises(DncError, match=r"the input has shape \(3, 33, 21\), the engine wants \(N, height, width, 3\)"):
        pixels.forward(image.transpose(2, 0, 1))


def test_vectors_are_refused(tmp_path: Path) -> None:
    cfg, weights = tmp_path / "a.cfg", tmp_path / "a.weights"
    cfg.write_text("[net]\ninputs=5\n[softmax]\n")
    weights.write_bytes(Header().pack())
    with pytest.raises(DncError) as caught:
        compile(cfg, weights, "onnx", tmp_path / "engine", input="u8")
    assert str(caught.value) == f"this network does not take images, so --input u8 has no meaning\n  at {cfg}"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("height", "width"), [(31, 70), (70, 31), (12, 16), (1, 90)])
def test_boxes_are_mapped_to_the_image(mode: str, height: int, width: int) -> None:
    p = Preprocessing(21, 12, 3, mode)
    b = Builder(1)
    boxes = b.input("boxes", [5, 4])
    size = ir.Value(name="size", shape=ir.Shape([2]), type=ir.TensorType(ir.DataType.INT64))
    b.inputs.append(size)
    across, down = (b.op("Gather", size, b.constant(np.array(place, np.int64))) for place in (0, 1))
    b.output(emit_on_image(b, p, boxes, across, down), "mapped", [1, 5, 4])
    given = np.random.default_rng(0).random((1, 5, 4), np.float32)
    mapped = run(b.model("mapping", {}), {"boxes": given, "size": np.array([width, height])})["mapped"]
    np.testing.assert_array_equal(mapped[0], p.transform(width, height)(given[0]))
