"""Preprocessing against Darknet's loops, written out here with scalars, and against Darknet's own results."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from dnc.errors import BundleError, DncWarning, ImageError
from dnc.runtime.images import read_image
from dnc.runtime.preprocessing import MODES, Preprocessing
from tests import ROOT, goldens

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


def pixels(seed: int, *shape: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def loaded(image: Pixels) -> Floats:
    """load_image_stb: (C, H, W), the division in double and then rounded."""
    return (image.transpose(2, 0, 1) / 255.0).astype(np.float32)


def resize_image(im: Floats, w: int, h: int) -> Floats:
    """Darknet's function of this name, loop by loop."""
    f = np.float32
    channels, im_h, im_w = im.shape
    if (im_w, im_h) == (w, h):
        return im.copy()
    part = np.zeros((channels, im_h, w), f)
    resized = np.zeros((channels, h, w), f)
    w_scale = f(im_w - 1) / f(w - 1) if w > 1 else f(0)
    h_scale = f(im_h - 1) / f(h - 1) if h > 1 else f(0)
    for k in range(channels):
        for r in range(im_h):
            for c in range(w):
                if c == w - 1 or im_w == 1:
                    part[k, r, c] = im[k, r, im_w - 1]
                else:
                    sx = f(c) * w_scale
                    ix = int(sx)
                    dx = sx - f(ix)
                    part[k, r, c] = (f(1) - dx) * im[k, r, ix] + dx * im[k, r, ix + 1]
        for r in range(h):
            sy = f(r) * h_scale
            iy = int(sy)
            dy = sy - f(iy)
            for c in range(w):
                resized[k, r, c] = (f(1) - dy) * part[k, iy, c]
                if r != h - 1 and im_h != 1:
                    resized[k, r, c] += dy * part[k, iy + 1, c]
    return resized


def letterbox_size(im_w: int, im_h: int, w: int, h: int) -> tuple[int, int]:
    if np.float32(w) / np.float32(im_w) < np.float32(h) / np.float32(im_h):
        return w, (im_h * w) // im_w
    return (im_w * h) // im_h, h


def letterbox_image(im: Floats, w: int, h: int) -> Floats:
    new_w, new_h = letterbox_size(im.shape[2], im.shape[1], w, h)
    boxed = np.full((im.shape[0], h, w), 0.5, np.float32)
    dx, dy = (w - new_w) // 2, (h - new_h) // 2
    boxed[:, dy : dy + new_h, dx : dx + new_w] = resize_image(im, new_w, new_h)
    return boxed


def resize_min_and_crop(im: Floats, w: int, h: int, side: int | None = None) -> Floats:
    """predict_classifier: resize_min(im, net.w), or to another side, and crop_image."""
    _, im_h, im_w = im.shape
    side = side or w
    new_w, new_h = (side, im_h * side // im_w) if im_w < im_h else (im_w * side // im_h, side)
    resized = resize_image(im, new_w, new_h)
    dx, dy = int((new_w - w) / 2), int((new_h - h) / 2)
    cropped = np.zeros((im.shape[0], h, w), np.float32)
    for j in range(h):
        for i in range(w):
            row, column = min(max(j + dy, 0), new_h - 1), min(max(i + dx, 0), new_w - 1)
            cropped[:, j, i] = resized[:, row, column]
    return cropped


def resize_half_pixel(image: Pixels, w: int, h: int) -> npt.NDArray[np.float64]:
    """cv::resize INTER_LINEAR in double, not rounded."""
    im_h, im_w, channels = image.shape
    out = np.zeros((channels, h, w))
    for r in range(h):
        y = min(max((r + 0.5) * im_h / h - 0.5, 0), im_h - 1)
        iy = min(int(y), max(im_h - 2, 0))
        for c in range(w):
            x = min(max((c + 0.5) * im_w / w - 0.5, 0), im_w - 1)
            ix = min(int(x), max(im_w - 2, 0))
            for dy, wy in ((0, 1 - (y - iy)), (1, y - iy)):
                for dx, wx in ((0, 1 - (x - ix)), (1, x - ix)):
                    if wy * wx:
                        out[:, r, c] += wy * wx * image[iy + dy, ix + dx]
    return out


ORACLES = {"resize": resize_image, "letterbox": letterbox_image, "center-crop": resize_min_and_crop}
sizes = st.integers(2, 14)


@settings(max_examples=40)
@given(sizes, sizes, sizes, sizes, st.integers(0, 99), st.sampled_from(sorted(ORACLES)))
def test_has_the_bits_of_darknet(im_w: int, im_h: int, w: int, h: int, seed: int, mode: str) -> None:
    if mode == "letterbox" and min(letterbox_size(im_w, im_h, w, h)) == 0:
        return
    image = pixels(seed, im_h, im_w, 3)
    expected = ORACLES[mode](loaded(image), w, h)
    got = Preprocessing(w, h, mode=mode)(image)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(("im_w", "im_h"), [(61, 240), (240, 61), (7, 3)])
@pytest.mark.parametrize("mode", sorted(ORACLES))
def test_has_the_bits_of_darknet_where_rows_are_skipped(im_w: int, im_h: int, mode: str) -> None:
    image = pixels(1, im_h, im_w, 1)
    got = Preprocessing(20, 16, 1, mode, "gray")(image)
    np.testing.assert_array_equal(got, ORACLES[mode](loaded(image), 20, 16))


@settings(max_examples=40)
@given(sizes, sizes, sizes, sizes, st.integers(0, 99), st.sampled_from([0.875, 0.8, 0.5, 0.3]))
def test_a_crop_is_darknets_at_a_larger_short_side(
    im_w: int, im_h: int, w: int, h: int, seed: int, crop: float
) -> None:
    image = pixels(seed, im_h, im_w, 3)
    got = Preprocessing(w, h, mode="center-crop", crop=crop)(image)
    np.testing.assert_array_equal(got, resize_min_and_crop(loaded(image), w, h, round(w / crop)))


def test_a_crop_of_what_has_the_size_already_is_the_middle() -> None:
    """TensorFlow's 224 of 256 pixels: at a short side of 256 nothing is resampled."""
    image = pixels(15, 256, 300, 3)
    got = Preprocessing(224, 224, mode="center-crop", crop=224 / 256)(image)
    np.testing.assert_array_equal(got, loaded(image)[:, 16:240, 38:262])


@settings(max_examples=60)
@given(
    st.tuples(st.integers(1, 120), st.integers(1, 120)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from([1.0, 0.875, 0.5]),
    st.integers(0, 99),
)
@example((120, 61), (20, 20), 0.875, 0)
@example((30, 40), (35, 35), 0.875, 1)
@example((1, 1), (9, 9), 1.0, 2)
def test_bicubic_has_the_bits_of_pillow(
    image_size: tuple[int, int], size: tuple[int, int], crop: float, seed: int
) -> None:
    """Noise, a part of it black and white, where a cubic overshoots. As whole numbers all sums are exact."""
    (im_h, im_w), (h, w) = image_size, size
    image = pixels(seed, im_h, im_w, 3)
    image[:, : im_w // 2] = image[:, : im_w // 2] // 128 * 255
    p = Preprocessing(w, h, mode="center-crop", crop=crop, interpolation="bicubic")
    side = p.short_side
    new_w, new_h = (side, im_h * side // im_w) if im_w < im_h else (im_w * side // im_h, side)
    # In one call, some versions of Pillow take the rows of tall images first.
    columns = Image.fromarray(image).resize((new_w, im_h), Image.Resampling.BICUBIC)
    resized = np.asarray(columns.resize((new_w, new_h), Image.Resampling.BICUBIC))
    rows = np.clip(np.arange(h) + int((new_h - h) / 2), 0, new_h - 1)
    places = np.clip(np.arange(w) + int((new_w - w) / 2), 0, new_w - 1)
    np.testing.assert_array_equal(p(image), loaded(resized[rows][:, places]))


def test_bicubic_of_a_photographs_size_is_pillows_one_call() -> None:
    """Shrunk to a third: without the wider cubic, noise of this image would alias."""
    image = pixels(16, 375, 500, 3)
    p = Preprocessing(104, 104, mode="center-crop", crop=104 / 120, interpolation="bicubic", color="bgr")
    resized = Image.fromarray(image).resize((160, 120), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(p(image), loaded(np.asarray(resized.crop((28, 8, 132, 112))))[::-1])


def test_bicubic_is_normalised_as_bilinear_is() -> None:
    image = pixels(17, 12, 12, 3)
    fields: dict[str, Any] = {"mode": "center-crop", "mean": (0.5, 0.4, 0.3), "std": (0.2,), "scale": 1 / 128}
    got = Preprocessing(12, 12, interpolation="bicubic", **fields)(image)
    # Nothing is resized here.
    np.testing.assert_array_equal(got, Preprocessing(12, 12, **fields)(image))


@pytest.mark.parametrize("side", [224, 240, 260, 280, 300])
def test_the_crop_of_a_known_border_gives_that_border(side: int) -> None:
    """The quotient of a quotient may miss the whole number by a bit."""
    assert Preprocessing(side, side, mode="center-crop", crop=side / (side + 32)).short_side == side + 32


def test_the_last_row_is_black_where_darknets_is() -> None:
    white = np.full((240, 5, 3), 255, np.uint8)
    last = Preprocessing(5, 416)(white)[:, -1]
    # 415 * (239 / 415) is 1.5e-5 short of 239 in float32, and the row before has only that weight left.
    assert (last < 1e-4).all()
    assert (Preprocessing(5, 416)(white)[:, :-1] == 1).all()


@settings(max_examples=25)
@given(sizes, sizes, sizes, sizes, st.integers(0, 99))
def test_half_pixel_rounds_to_whole_pixels(im_w: int, im_h: int, w: int, h: int, seed: int) -> None:
    image = pixels(seed, im_h, im_w, 3)
    got = Preprocessing(w, h, mode="resize-half-pixel")(image) * 255
    # Half a pixel value for the rounding, and 1e-3 for float32 weights where double has them.
    assert np.abs(got - resize_half_pixel(image, w, h)).max() <= 0.501
    # 1e-4: a multiple of 1/255 times 255, in float32.
    assert np.abs(got - np.round(got)).max() < 1e-4


@pytest.mark.parametrize(("w", "h"), [(416, 416), (320, 240), (800, 500)])
def test_half_pixel_is_cv_resize(w: int, h: int) -> None:
    cv2 = pytest.importorskip("cv2")
    image = pixels(2, 480, 640, 3)
    expected = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR).transpose(2, 0, 1)
    difference = np.abs(np.round(Preprocessing(w, h, mode="resize-half-pixel")(image) * 255) - expected)
    # For 8-bit images OpenCV has weights of 11 bits and drops bits between its passes (a >> 4, then a >> 16):
    # on noise, one value in eight comes out 1 beside the rounded interpolation.
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.15


@pytest.mark.parametrize("mode", ["resize", "letterbox", "center-crop"])
def test_agrees_with_darknets_own_input(mode: str) -> None:
    """Decoder and interpolation are Darknet's, to the bit."""
    found = Preprocessing(160, 96, mode=mode)(read_image(goldens.PHOTOGRAPH))
    np.testing.assert_array_equal(found, goldens.inputs()[mode])


def correct_yolo_box(box: list[float], w: int, h: int, netw: int, neth: int) -> list[np.float32]:
    """Darknet's correct_yolo_boxes with letter = 1, for one box."""
    f = np.float32
    new_w, new_h = letterbox_size(w, h, netw, neth)
    deltaw, deltah = f(netw - new_w), f(neth - new_h)
    ratiow, ratioh = f(new_w) / f(netw), f(new_h) / f(neth)
    x, y, bw, bh = (f(value) for value in box)
    return [
        f((float(x) - float(deltaw) / 2.0 / netw) / float(ratiow)),
        f((float(y) - float(deltah) / 2.0 / neth) / float(ratioh)),
        bw * (f(1) / ratiow),
        bh * (f(1) / ratioh),
    ]


@given(
    st.integers(10, 2000),
    st.integers(10, 2000),
    st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4),
    st.sampled_from([(416, 416), (320, 192), (608, 352)]),
)
def test_letterbox_boxes_are_corrected_as_darknet_does(w: int, h: int, box: list[float], net: tuple[int, int]) -> None:
    if min(letterbox_size(w, h, *net)) == 0:
        return
    got = Preprocessing(*net, mode="letterbox").transform(w, h)(np.array([box], np.float32))
    np.testing.assert_array_equal(got[0], np.array(correct_yolo_box(box, w, h, *net)))


def test_a_resized_image_needs_no_correction() -> None:
    box = np.array([[0.1, 0.2, 0.3, 0.4]], np.float32)
    for mode in ("resize", "resize-half-pixel"):
        np.testing.assert_array_equal(Preprocessing(416, 320, mode=mode).transform(640, 480)(box), box)


def test_a_cropped_box_goes_back_to_where_the_crop_was() -> None:
    # 640x480 becomes 128x96, and the crop its columns 16 to 112.
    transform = Preprocessing(96, 96, mode="center-crop").transform(640, 480)
    whole_crop = np.array([[0.5, 0.5, 1, 1]], np.float32)
    np.testing.assert_allclose(transform(whole_crop)[0], [0.5, 0.5, 0.75, 1], rtol=1e-6)  # float32
    left_edge = np.array([[0, 0.5, 0, 0]], np.float32)
    np.testing.assert_allclose(transform(left_edge)[0, 0], 16 / 128, rtol=1e-6)  # float32
    # With a crop of 0.75 it becomes 170x128, and the crop its columns 37 to 133 and rows 16 to 112.
    smaller = Preprocessing(96, 96, mode="center-crop", crop=0.75).transform(640, 480)
    np.testing.assert_allclose(smaller(whole_crop)[0], [85 / 170, 0.5, 96 / 170, 0.75], rtol=1e-6)  # float32


def test_an_extremely_narrow_image_keeps_a_pixel() -> None:
    image = np.zeros((1, 5000, 3), np.uint8)
    preprocess = Preprocessing(32, 32, mode="letterbox")
    assert (preprocess(image) == 0).sum() == 3 * 32
    assert np.isfinite(preprocess.transform(5000, 1)(np.ones((1, 4), np.float32))).all()


@pytest.mark.parametrize("mode", MODES)
def test_an_input_of_one_pixel(mode: str) -> None:
    assert np.isfinite(Preprocessing(1, 1, mode=mode)(pixels(0, 5, 7, 3))).all()
    assert np.isfinite(Preprocessing(8, 8, mode=mode)(pixels(0, 1, 1, 3))).all()


def test_gray_images_fill_all_colors() -> None:
    gray = pixels(3, 4, 4)
    expected = loaded(gray[:, :, None])
    np.testing.assert_array_equal(Preprocessing(4, 4)(gray), expected.repeat(3, axis=0))
    np.testing.assert_array_equal(Preprocessing(4, 4, 1, color="gray")(gray), expected)


def test_gray_networks_see_the_luma_of_stb_image() -> None:
    image = np.array([[[255, 255, 255], [255, 0, 0], [10, 20, 30]]], np.uint8)
    got = Preprocessing(3, 1, 1, color="gray")(image) * np.float32(255)
    np.testing.assert_allclose(got[0, 0], [255, 76, 18], rtol=1e-6)  # float32


def test_alpha_is_opaque_or_dropped() -> None:
    rgb, rgba = pixels(4, 4, 4, 3), pixels(5, 4, 4, 4)
    np.testing.assert_array_equal(Preprocessing(4, 4, 4)(rgb), np.vstack([loaded(rgb), np.ones((1, 4, 4))]))
    np.testing.assert_array_equal(Preprocessing(4, 4, 3)(rgba), loaded(rgba)[:3])
    np.testing.assert_array_equal(Preprocessing(4, 4, 4)(rgba), loaded(rgba))


def test_bgr_swaps_red_and_blue() -> None:
    image = pixels(6, 4, 4, 4)
    np.testing.assert_array_equal(Preprocessing(4, 4, 4, color="bgr")(image), loaded(image)[[2, 1, 0, 3]])


def test_networks_of_many_channels_take_arrays() -> None:
    image = pixels(7, 4, 4, 6)
    np.testing.assert_array_equal(Preprocessing(4, 4, 6)(image), loaded(image))
    with pytest.raises(ImageError, match="3 channels, the network takes 6"):
        Preprocessing(4, 4, 6)(image[:, :, :3])


def test_mean_and_std_follow_the_scale() -> None:
    image = pixels(8, 4, 4, 3)
    got = Preprocessing(4, 4, scale=1 / 128, mean=(127 / 128,))(image)
    # Exact in float32: 1 / 128 is a power of two.
    np.testing.assert_array_equal(got, (image.transpose(2, 0, 1).astype(np.float32) - 127) / 128)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    got = Preprocessing(4, 4, mean=mean, std=std)(image)
    expected = (image / 255 - mean) / std
    np.testing.assert_allclose(got, expected.transpose(2, 0, 1), atol=1e-6)  # three float32 operations near 1
    padding = Preprocessing(4, 4, mode="letterbox", scale=1.0)(image[:1])
    assert padding[0, 0, 0] == 127.5


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8), np.zeros((1, 4, 4, 3), np.uint8)],
)
def test_what_is_no_image(image: Pixels) -> None:
    with pytest.raises(ImageError, match="an image is"):
        Preprocessing(4, 4)(image)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 0}, "empty"),
        ({"mode": "stretch"}, "unknown mode 'stretch'; known: resize,"),
        ({"color": "hsv"}, "unknown color 'hsv'"),
        ({"channels": 1}, "color 'rgb' does not fit 1 channels"),
        ({"channels": 2, "color": "bgr"}, "color 'bgr' does not fit 2 channels"),
        ({"mean": (0.1, 0.2)}, "mean and std"),
        ({"std": (0.0,)}, "positive"),
        ({"mode": "center-crop", "crop": 0.0}, "a crop is from 0.1 to 1, not 0.0"),
        ({"mode": "center-crop", "crop": 1.5}, "a crop is from 0.1 to 1, not 1.5"),
        ({"mode": "center-crop", "crop": float("nan")}, "a crop is from 0.1 to 1"),
        ({"mode": "letterbox", "crop": 0.875}, "for center-crop, not for letterbox"),
        ({"mode": "center-crop", "interpolation": "cubic"}, "unknown interpolation 'cubic'; known: bilinear, bicubic"),
        ({"mode": "resize", "interpolation": "bicubic"}, "bicubic interpolation is for center-crop, not for resize"),
    ],
)
def test_fields_that_make_no_sense(fields: dict[str, object], message: str) -> None:
    everything = {**Preprocessing(4, 4).to_json(), **fields}
    with pytest.raises(ValueError, match=message):
        Preprocessing(**{"width": 4, "height": 4, **fields})  # type: ignore[arg-type]
    with pytest.raises(BundleError, match=message):
        Preprocessing.from_json(everything)


def test_json_round_trip() -> None:
    preprocess = Preprocessing(320, 192, 3, "letterbox", "bgr", 1 / 128, (0.1, 0.2, 0.3), (2.0, 3.0, 4.0))
    assert Preprocessing.from_json(json.loads(json.dumps(preprocess.to_json()))) == preprocess
    cropped = Preprocessing(320, 192, mode="center-crop", crop=0.875, interpolation="bicubic")
    assert Preprocessing.from_json(json.loads(json.dumps(cropped.to_json()))) == cropped
    # Engines without a crop are those of a dnc that knows none; likewise the interpolation.
    assert not {"crop", "interpolation"} & preprocess.to_json().keys()
    for broken in ({"width": 4}, {**preprocess.to_json(), "gamma": 2.2}):
        with pytest.raises(BundleError, match="unusable preprocessing"):
            Preprocessing.from_json(broken)


DEPTHS: dict[str, int] = {"uint8": 255, "uint16": 65535, "float32": 1}


def typed(image: Pixels, kind: str) -> Any:
    """The same picture in pixels of another type."""
    return (image.astype(np.float64) / 255 * DEPTHS[kind]).astype(kind)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 6, 8, 13])
def test_every_type_and_number_of_channels(channels: int, mode: str) -> None:
    """Each channel is as if it were alone, and a picture means the same in every type."""
    image = pixels(channels, 19, 23, channels)
    p = Preprocessing(16, 12, channels, mode, "gray" if channels == 1 else "rgb")
    alone = Preprocessing(16, 12, 1, mode, "gray")
    expected = p(image)
    for channel in range(channels):
        np.testing.assert_array_equal(expected[channel], alone(image[:, :, channel])[0])
    # Whole numbers are rounded to a pixel in resize-half-pixel.
    bound = 0.5 / 255 if mode == "resize-half-pixel" else 1e-6
    for kind in ("uint16", "float32"):
        np.testing.assert_allclose(p(typed(image, kind)), expected, rtol=0, atol=bound + 1e-6)


@pytest.mark.parametrize("mode", sorted(ORACLES))
def test_floats_are_darknets_own_image(mode: str) -> None:
    """Its load_image divides by 255; what is done to that image is done to an array of floats, to the bit."""
    image = loaded(pixels(20, 17, 11, 5)).transpose(1, 2, 0)
    got = Preprocessing(14, 9, 5, mode)(image)
    np.testing.assert_array_equal(got, ORACLES[mode](np.ascontiguousarray(image.transpose(2, 0, 1)), 14, 9))


def test_sixteen_bits_count_whole() -> None:
    image = np.array([[0, 1, 257, 65535]], np.uint16)
    expected = (image.astype(np.float64) / 65535).astype(np.float32)
    for array in (image, image.astype(">u2"), image.astype("<u2")):
        assert Preprocessing(4, 1, 1, color="gray")(array).tolist() == [expected.tolist()]
    assert Preprocessing(4, 1, 1, color="gray", scale=1 / 128)(image)[0, 0, 3] == np.float32(255 / 128)


@pytest.mark.parametrize(("kind", "bound"), [("uint16", 1.5 / 65535), ("float32", 1e-6)])
def test_bicubic_of_other_types_is_pillows_of_floats(kind: str, bound: float) -> None:
    image = typed(pixels(21, 40, 31, 1), kind)[:, :, 0]
    p = Preprocessing(12, 12, 1, "center-crop", "gray", interpolation="bicubic")
    wide = Image.fromarray(image.astype(np.float32)).resize((12, 40), Image.Resampling.BICUBIC)
    tall = np.asarray(wide.resize((12, 15), Image.Resampling.BICUBIC))[1:13]
    np.testing.assert_allclose(
        p(image)[0] * DEPTHS[kind],
        np.clip(tall, None if kind == "float32" else 0, None),
        rtol=0,
        atol=bound * DEPTHS[kind],
    )


@pytest.mark.parametrize("kind", DEPTHS)
def test_channels_are_matched_in_every_type(kind: str) -> None:
    white = DEPTHS[kind]
    color = typed(pixels(22, 4, 5, 3), kind)
    gray = Preprocessing(5, 4, 1, color="gray").match_channels(color)
    luma = color.astype(np.float64) @ np.array([[77], [150], [29]]) / 256
    if kind == "float32":
        np.testing.assert_allclose(gray, luma, rtol=1e-6)
    else:
        np.testing.assert_array_equal(gray, np.floor(luma))
    rgba = Preprocessing(5, 4, 4).match_channels(color)
    assert rgba.dtype == color.dtype
    assert (rgba[..., 3] == white).all()
    two = Preprocessing(5, 4, 2)
    np.testing.assert_array_equal(two.match_channels(color), np.dstack([gray, rgba[..., 3:]]))
    np.testing.assert_array_equal(two.match_channels(gray[:, :, 0]), np.dstack([gray, rgba[..., 3:]]))
    np.testing.assert_array_equal(
        two.match_channels(np.dstack([color, color[..., :1]])), np.dstack([gray, color[..., :1]])
    )
    # What two channels of an array are, nobody says.
    with pytest.raises(ImageError, match="2 channels, the network takes 3"):
        Preprocessing(5, 4).match_channels(color[..., :2])
    with pytest.raises(ImageError, match="3 channels, the network takes 6"):
        Preprocessing(5, 4, 6).match_channels(color)


def test_bytes_for_an_engine_that_prepares_them_itself() -> None:
    p = Preprocessing(4, 4, 5)
    deep = np.full((2, 2, 5), 0x80FF, np.uint16)
    assert p.to_bytes(deep)[0, 0].tolist() == [0x80] * 5
    floats = np.array([-0.1, 0, 0.5, 1, 1.1], np.float32).reshape(1, 1, 5)
    assert p.to_bytes(floats)[0, 0].tolist() == [0, 0, 128, 255, 255]
    assert p.to_bytes(deep).dtype == p.to_bytes(floats).dtype == np.uint8


def test_floats_that_are_no_picture() -> None:
    p = Preprocessing(4, 4)
    for wrong in (np.nan, np.inf, -np.inf):
        image = np.zeros((4, 4, 3), np.float32)
        image[1, 1, 1] = wrong
        with pytest.raises(ImageError, match="not finite"):
            p(image)
    with pytest.warns(DncWarning, match="numbers up to 255, where 1 is white"):
        p(np.full((4, 4, 3), 255, np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p(np.full((4, 4, 3), 1.5, np.float32))


def test_the_runtimes_modules_load_only_numpy() -> None:
    script = (
        "import sys, dnc.runtime.preprocessing, dnc.runtime.decoding, dnc.cli._drawing;"
        "print(sorted({'PIL', 'cv2', 'onnx', 'onnx_ir', 'onnxruntime', 'sympy'} & set(sys.modules)))"
    )
    root = ROOT
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout == "[]\n"
