"""[maxpool] and [local_avgpool] against the loops of maxpool_layer.c."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnc.darknet.layers.base import Arrays
from dnc.darknet.network import Network

Doubles = npt.NDArray[np.float64]
Oracle = Callable[[Sequence[Doubles], Arrays], Doubles]

OUTSIDE = "a window would lie outside the map, and have no mean"


def pool(x: Doubles, size: int, strides: tuple[int, int], padding: int, average: bool) -> Doubles:
    """forward_maxpool_layer, forward_local_avgpool_layer; `padding` is a total."""
    channels, height, width = x.shape
    rows, columns = (height + padding - size) // strides[0] + 1, (width + padding - size) // strides[1] + 1
    y = np.empty((channels, rows, columns))
    for k, i, j in np.ndindex(channels, rows, columns):
        inside = []
        for n, m in np.ndindex(size, size):
            # C: -padding / 2 truncates.
            row, column = -(padding // 2) + i * strides[0] + n, -(padding // 2) + j * strides[1] + m
            if 0 <= row < height and 0 <= column < width:
                inside.append(x[k, row, column])
        y[k, i, j] = sum(inside) / len(inside) if average else max([-3.4028234663852886e38, *inside])
    return y


def blurred(x: Doubles, antialiasing: int, strides: tuple[int, int]) -> Doubles:
    """A depthwise convolution with [1 2 1]x[1 2 1]/16 and padding 1, or with four quarters and none."""
    size, padding = (2, 0) if antialiasing == 2 else (3, 1)
    kernel = np.full((2, 2), 0.25) if antialiasing == 2 else np.outer([1, 2, 1], [1, 2, 1]) / 16
    channels, height, width = x.shape
    rows, columns = (height + 2 * padding - size) // strides[0] + 1, (width + 2 * padding - size) // strides[1] + 1
    y = np.zeros((channels, rows, columns))
    for k, i, j, n, m in np.ndindex(channels, rows, columns, size, size):
        row, column = i * strides[0] - padding + n, j * strides[1] - padding + m
        if 0 <= row < height and 0 <= column < width:
            y[k, i, j] += kernel[n, m] * x[k, row, column]
    return y


def darknet(text: str, average: bool = False) -> Oracle:
    options = {key: int(value) for key, value in (line.split("=") for line in text.split())}
    stride = options.get("stride", 1)
    strides = options.get("stride_y", stride), options.get("stride_x", stride)
    size = options.get("size", stride)
    padding, antialiasing = options.get("padding", size - 1), options.get("antialiasing", 0)

    def oracle(inputs: Sequence[Doubles], arrays: Arrays) -> Doubles:
        x = inputs[0]
        if antialiasing:
            return blurred(pool(x, size, (1, 1), padding, average), antialiasing, strides)
        return pool(x, size, strides, padding, average)

    return oracle


def section(options: str, name: str = "maxpool") -> str:
    return f"[{name}]\n" + "\n".join(options.split()) + "\n"


GEOMETRY = [
    "",
    "stride=2",
    "size=2 stride=2",
    "size=2 stride=1",
    "size=3 stride=2",
    "size=5 stride=1",
    "size=3 stride=3",
    "size=3 stride=2 padding=0",
    "size=3 stride=2 padding=1",
    "size=2 stride=2 padding=0",
    "size=1 stride=2",
    "size=2 stride_x=1 stride_y=2",
    "size=3 stride=2 stride_x=1",
    "size=3 stride=1 padding=3",
]


@pytest.mark.parametrize("net", ["width=7\nheight=5\nchannels=3", "width=8\nheight=6\nchannels=2"])
@pytest.mark.parametrize("options", GEOMETRY)
def test_geometry(options: str, net: str, check: Callable[..., Network]) -> None:
    """The maximum is one of the values, so nothing is rounded."""
    network = check(section(options), darknet(options), net=net, bound=0)
    assert network.layers[0].shape[0] == network.input_shape[0]
    check(section(options, "local_avgpool"), darknet(options, average=True), net=net, bound=1e-6)


@pytest.mark.parametrize("options", ["size=2 stride=1 padding=6", "size=2 stride=2 padding=5", "size=13 stride=1"])
def test_wide_padding(options: str, check: Callable[..., Network]) -> None:
    """More than ONNX Runtime pads; windows that lie outside hold the lowest float32."""
    check(section(options), darknet(options), bound=0)


@pytest.mark.parametrize(
    "options",
    [
        "size=2 stride=2 antialiasing=1",
        "size=3 stride=2 antialiasing=2",
        "size=2 stride_x=2 stride_y=1 antialiasing=1",
        "size=3 stride=1 padding=0 antialiasing=1",
        "size=2 stride=2 padding=0 antialiasing=2",
        "size=2 stride=2 antialiasing=4",
    ],
)
def test_antialiasing(options: str, check: Callable[..., Network]) -> None:
    check(section(options), darknet(options), bound=1e-6)


@pytest.mark.parametrize(("channels", "groups"), [(6, 2), (6, 1), (6, 6), (7, 3), (5, 4)])
def test_depth(channels: int, groups: int, check: Callable[..., Network]) -> None:
    def oracle(inputs: Sequence[Doubles], arrays: Arrays) -> Doubles:
        y = np.full((groups, 5, 7), -np.inf)
        for g, i, j in np.ndindex(*y.shape):
            for k in range(g, channels, groups):
                y[g, i, j] = max(y[g, i, j], inputs[0][k, i, j])
        return y

    text = section(f"maxpool_depth=1 out_channels={groups} size=3 stride=2 antialiasing=1")
    check(text, oracle, net=f"width=7\nheight=5\nchannels={channels}", bound=0)


@st.composite
def geometries(draw: st.DrawFn) -> tuple[str, str]:
    size = draw(st.integers(1, 6))
    padding = draw(st.none() | st.integers(0, 2 * size - 2))
    total = size - 1 if padding is None else padding
    sides = [draw(st.integers(max(1, size - total), 9)) for _ in range(2)]
    strides = [draw(st.integers(1, 4)) for _ in range(2)]
    options = f"size={size} stride_x={strides[0]} stride_y={strides[1]}"
    net = "width={}\nheight={}\nchannels=2".format(*sides)
    return options + ("" if padding is None else f" padding={padding}"), net


@given(geometries())
@settings(max_examples=40)
def test_any_geometry(check: Callable[..., Network], refused: Callable[..., None], geometry: tuple[str, str]) -> None:
    options, net = geometry
    network = check(section(options), darknet(options), net=net, batch=2, bound=0)
    mean = darknet(options, average=True)
    try:
        mean([np.zeros(network.input_shape)], {})
    except ZeroDivisionError:
        line = options.split()[-1]
        refused(section(options, "local_avgpool"), OUTSIDE, line, "make it smaller than size", net=net)
    else:
        check(section(options, "local_avg"), mean, net=net, batch=2, bound=1e-6)


def test_layer_says() -> None:
    text = "[net]\nwidth=8\nheight=8\nchannels=4\n"
    layers = Network.parse(text + section("size=2 stride=2") + section("size=3 stride_x=2", "max")).layers
    assert [layer.describe() for layer in layers] == ["2 x 2 / 2", "3 x 3 / 2x1"]


POSITIVE = "Darknet would crash or compute nothing"


@pytest.mark.parametrize(
    ("options", "message", "line", "hint"),
    [
        ("stride=0", "stride=0 must be at least 1", "stride=0", "Darknet would divide by zero"),
        ("size=-1", "size=-1 must be at least 1", "size=-1", POSITIVE),
        ("size=2 padding=-1", "padding=-1 must be at least 0", "padding=-1", POSITIVE),
        ("size=6 padding=0", "the output would be empty: 4 x 0 x 2", "", "the input is too small for this layer"),
        ("maxpool_depth=1 out_channels=5", "out_channels=5 of 4 channels", "out_channels=5", "at most all"),
        ("maxpool_depth=1 out_channels=0", "out_channels=0 must be at least 1", "out_channels=0", POSITIVE),
        ("strid=2", "nothing in [maxpool] reads 'strid'", "strid=2", "did you mean 'stride'?"),
    ],
)
def test_refused(options: str, message: str, line: str, hint: str, refused: Callable[..., None]) -> None:
    refused(section(options), message, line, hint)


def test_a_mean_of_nothing_is_refused(refused: Callable[..., None]) -> None:
    """Darknet divides by the number of pixels inside, which is zero."""
    refused(section("size=2 padding=4", "local_avgpool"), OUTSIDE, "padding=4", "make it smaller than size")


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize(
    ("options", "padding"),
    [
        ("size=40\nstride=1", 39),
        ("size=45\nstride=2", 44),
        ("size=19\nstride=1", 18),
        ("size=17\nstride=3\npadding=13", 13),
        ("size=33\nstride=1\npadding=40", 40),
    ],
)
def test_windows_that_are_larger_than_the_map(
    options: str, padding: int, average: bool, check: Callable[..., Network]
) -> None:
    size, stride = (int(line.split("=")[1]) for line in options.splitlines()[:2])
    section = "local_avgpool" if average else "maxpool"

    def oracle(inputs: Sequence[Doubles], _: Arrays) -> Doubles:
        return pool(inputs[0], size, (stride, stride), padding, average)

    network = check(f"[{section}]\n{options}", oracle, net="width=9\nheight=6\nchannels=2")
    # Darknet's own count.
    assert network.layers[0].flops() == 2 * network.layers[0].shape[1] * network.layers[0].shape[2] * size * size


@pytest.mark.parametrize("section", ["maxpool", "local_avgpool"])
def test_an_enormous_window_is_no_more_work_than_the_map(section: str, check: Callable[..., Network]) -> None:
    """2^30 pixels for each pixel, if they were all looked at."""

    def oracle(inputs: Sequence[Doubles], _: Arrays) -> Doubles:
        whole = inputs[0].mean((1, 2)) if section == "local_avgpool" else inputs[0].max((1, 2))
        return np.broadcast_to(whole[:, None, None], inputs[0].shape)

    check(f"[{section}]\nsize=65536\nstride=1", oracle, net="width=60\nheight=50\nchannels=2")
