"""[convolutional] against forward_convolutional_layer written out: pixel by pixel, tap by tap, in double."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnc.darknet.layers.base import Arrays
from dnc.darknet.network import Network
from dnc.darknet.weights import Header, count, read_weights

Doubles = npt.NDArray[np.float64]
Oracle = Callable[[Sequence[Doubles], Arrays], Doubles]

ACTIVATIONS: dict[str, Callable[[Doubles], Doubles]] = {
    "linear": lambda x: x,
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "leaky": lambda x: np.where(x > 0, x, 0.1 * x),
}


def convolve(x: Doubles, w: Doubles, strides: tuple[int, int], padding: int, dilation: int, outside: float) -> Doubles:
    """Sums alone. `w` is (filters, channels of a group, size, size); the groups follow from x's channels."""
    filters, depth, size, _ = w.shape
    channels, height, width = x.shape
    per_group = filters * depth // channels
    # The output size leaves dilation out, as convolutional_out_height does.
    rows = (height + 2 * padding - size) // strides[0] + 1
    columns = (width + 2 * padding - size) // strides[1] + 1
    y = np.zeros((filters, rows, columns))
    for f, i, j in np.ndindex(filters, rows, columns):
        for c, m, n in np.ndindex(depth, size, size):
            row = i * strides[0] - padding * dilation + m * dilation
            column = j * strides[1] - padding * dilation + n * dilation
            inside = 0 <= row < height and 0 <= column < width
            tap = x[f // per_group * depth + c, row, column] if inside else outside
            y[f, i, j] += w[f, c, m, n] * tap
    return y


def darknet(text: str, normalize: bool | None = None) -> Oracle:
    """The layer that the options ask for; `normalize` overrides batch_normalize, as a shared layer's master does."""
    options = dict(line.split("=") for line in text.split())

    def number(key: str, default: int) -> int:
        return int(options.get(key, default))

    size, stride = number("size", 1), number("stride", 1)
    strides = number("stride_y", stride), number("stride_x", stride)
    padding = size // 2 if number("pad", 0) else number("padding", 0)
    dilation = number("dilation", 1) if size > 1 else 1
    xnor, antialiasing = number("xnor", 0), number("antialiasing", 0)
    if normalize is None:
        normalize = bool(number("batch_normalize", 0) or number("cbn", 0))

    def oracle(inputs: Sequence[Doubles], arrays: Arrays) -> Doubles:
        x, w = inputs[0], arrays["weights"].astype(np.float64).copy()
        bias = arrays["biases"].astype(np.float64).copy()
        if normalize:
            for f in range(len(w)):
                scale, mean, variance = (float(arrays[name][f]) for name in ("scales", "mean", "variance"))
                bias[f] -= scale * mean / np.sqrt(variance + 0.00001)
                w[f] *= scale / np.sqrt(variance + 0.00001)
        if xnor or number("binary", 0):
            for f in range(len(w)):
                mean = float(np.abs(w[f]).mean())
                w[f] = [[[mean if value > 0 else -mean for value in row] for row in plane] for plane in w[f]]
        if xnor:
            x = np.where(x > 0, 1.0, -1.0)
        host = (1, 1) if antialiasing else strides
        y = convolve(x, w, host, padding, dilation, -1.0 if xnor else 0.0)
        y = ACTIVATIONS[options.get("activation", "logistic")](y + bias[:, None, None])
        if antialiasing:
            kernel = np.full((2, 2), 0.25) if antialiasing == 2 else np.outer([1, 2, 1], [1, 2, 1]) / 16
            blur = np.broadcast_to(kernel, (len(y), 1, *kernel.shape))
            y = convolve(y, blur, strides, 0 if antialiasing == 2 else 1, 1, 0.0)
        return y

    return oracle


def section(options: str) -> str:
    return "[convolutional]\n" + "\n".join(options.split()) + "\n"


OPTIONS = [
    "filters=3",
    "filters=3 activation=linear",
    "filters=6 size=3 pad=1 batch_normalize=1 activation=leaky",
    "filters=6 size=3 pad=1 batch_normalize=2 activation=leaky",
    "filters=6 size=3 pad=1 cbn=1 activation=leaky",
    "filters=2 size=3 pad=0 activation=linear",
    "filters=2 size=3 padding=2 activation=linear",
    "filters=2 size=3 pad=1 padding=2 activation=linear",
    "filters=2 size=4 pad=1 activation=linear",
    "filters=2 size=2 stride=2 activation=linear",
    "filters=2 size=3 stride=2 pad=1 activation=linear",
    "filters=2 size=5 stride=3 pad=1 activation=linear",
    "filters=2 size=3 stride=2 stride_x=1 pad=1 activation=linear",
    "filters=2 size=3 stride=1 stride_y=3 pad=1 activation=linear",
    "filters=2 size=3 stride=0 stride_x=2 stride_y=1 pad=1 activation=linear",
    "filters=2 stride=2 activation=linear",
    "filters=2 stride_y=2 activation=linear",
    "filters=2 padding=1 activation=linear",
    "filters=2 size=3 pad=1 dilation=2 activation=linear",
    "filters=2 size=5 pad=1 dilation=2 stride=2 activation=linear",
    "filters=2 size=1 dilation=7 activation=linear",
    "filters=2 size=1 dilation=2 padding=1 activation=linear",
    "filters=6 size=3 pad=1 groups=2 batch_normalize=1 activation=leaky",
    "filters=4 size=3 pad=1 groups=4 stride=2 activation=leaky",
    "filters=8 size=3 pad=1 groups=4 activation=leaky",
    "filters=4 size=3 pad=1 binary=1 batch_normalize=1 activation=leaky",
    "filters=4 size=3 pad=1 groups=2 binary=1 activation=linear",
    "filters=4 size=3 pad=1 antialiasing=1 stride=2 batch_normalize=1 activation=leaky",
    "filters=4 size=3 pad=1 antialiasing=2 stride=2 activation=leaky",
    "filters=4 size=3 pad=1 antialiasing=1 stride_x=2 stride_y=3 activation=linear",
    "filters=4 size=3 pad=1 antialiasing=1 groups=2 activation=linear",
    "filters=4 size=2 antialiasing=5 stride=2 activation=linear",
    "filters=4 size=3 pad=1 assisted_excitation=1 angle=3 coordconv=1 dot=0.5 activation=linear",
]


@pytest.mark.parametrize("options", OPTIONS)
def test_options(options: str, check: Callable[..., Network]) -> None:
    check(section(options), darknet(options))


@pytest.mark.parametrize(
    "options",
    [
        "filters=4 size=3 pad=1 batch_normalize=1 activation=leaky",
        "filters=4 size=3 pad=1 activation=linear groups=2",
        "filters=4 size=1 activation=linear",
        "filters=2 size=3 stride=2 pad=1 activation=linear",
    ],
)
@pytest.mark.parametrize("channels", [3, 16, 32])
def test_xnor(channels: int, options: str, check: Callable[..., Network]) -> None:
    """Signs alone count; zero is -1, and so is what lies outside. groups are one."""
    options += " xnor=1"
    x = np.random.default_rng(2).normal(size=(2, channels, 5, 6)).astype(np.float32)
    x[:, :, 2, 2:4] = 0.0
    net = f"width=6\nheight=5\nchannels={channels}"
    network = check(section(options), darknet(options), net=net, x=x)
    assert network.layers[0].weights()["weights"][1] == channels


def test_xnor_sees_the_sign_of_folded_weights(check: Callable[..., Network]) -> None:
    """A negative scale turns the signs round, as the weights are folded before they are binarized. 0 counts as less."""
    options = "filters=4 size=3 pad=1 batch_normalize=1 activation=leaky xnor=1"
    network = Network.parse(f"[net]\nwidth=6\nheight=5\nchannels=3\n{section(options)}").with_random_weights(1)
    arrays = {**network.arrays[0], "scales": np.array([-1, 1, 0, -0.5], np.float32)}
    arrays["weights"] = np.where(np.arange(9).reshape(3, 3) % 4 == 0, np.float32(0), arrays["weights"])
    check(network.with_arrays((arrays,)), darknet(options))


BIN = "filters=4 size=3 pad=1 activation=leaky xnor=1 bin_output=1"
NEXT = "[convolutional]\nfilters=4\nxnor=1\nactivation=linear\n"


@pytest.mark.parametrize(
    ("rest", "linear"),
    [
        (NEXT, True),
        ("[route]\nlayers=-1\n", False),
        (NEXT + "[route]\nlayers=0,1\n", False),
        (NEXT + "[shortcut]\nfrom=0\n", False),
        # Of several sources, Darknet clears the flag of the first alone, and of the layer before.
        (NEXT + "[convolutional]\nfilters=4\n[shortcut]\nfrom=1,0\n", True),
        ("[route]\nlayers=0\n[sam]\nfrom=-2\n", False),
    ],
)
def test_bin_output(rest: str, linear: bool, check: Callable[..., Network]) -> None:
    activation = "linear" if linear else "leaky"
    check(section(BIN) + rest, darknet(BIN.replace("activation=leaky", f"activation={activation}")), at=0)


def test_bin_output_wants_xnor(check: Callable[..., Network]) -> None:
    options = BIN.replace("xnor=1", "xnor=0")
    check(section(options), darknet(options))


SHARED = "filters=4 size=3 pad=1 batch_normalize=1 activation=leaky"


@pytest.mark.parametrize(
    "options",
    [
        "filters=4 size=3 pad=1 activation=linear share_index=0",
        "filters=4 size=3 pad=1 activation=linear share_index=-1",
        "filters=4 size=3 pad=1 dilation=2 batch_normalize=1 activation=leaky share_index=0",
        "filters=4 size=3 stride=2 pad=0 activation=leaky share_index=0",
        "filters=4 size=3 pad=1 xnor=1 activation=leaky share_index=0",
    ],
)
def test_share_index(options: str, check: Callable[..., Network]) -> None:
    """Weights, biases and batch normalisation are the master's; geometry and activation its own."""
    network = check(section(SHARED) + section(options), darknet(options, normalize=True))
    assert network.layers[1].weights() == {}
    assert network.arrays[1] is network.arrays[0]
    assert network.parameters() == count(network.layers[0]) == 4 * 4 + 4 * 4 * 9


def test_share_index_of_what_shares(check: Callable[..., Network]) -> None:
    """Absolute, relative, and chains lead to the first."""
    plain = "filters=4 size=3 pad=1 activation=linear share_index="
    text = section(SHARED) + "".join(section(plain + index) for index in ("0", "-1", "2"))
    network = check(text, darknet(plain + "2", normalize=True))
    assert [layer.weights_of for layer in network.layers] == [0, 0, 0, 0]


@st.composite
def configurations(draw: st.DrawFn) -> tuple[str, str]:
    """(options, [net]) of any convolution that Darknet computes."""
    groups = draw(st.integers(1, 3))
    size = draw(st.integers(1, 4))
    options = [f"groups={groups}", f"filters={groups * draw(st.integers(1, 2))}", f"size={size}"]
    if size == 3 and draw(st.booleans()):
        options += ["pad=1", f"dilation={draw(st.integers(1, 2))}"]
    else:
        options += draw(st.sampled_from([["pad=1"], [], ["padding=1"], ["padding=3"]]))
    options += draw(st.sampled_from([[], ["stride=2"], ["stride_x=2"], ["stride_y=3"], ["stride=2", "stride_x=3"]]))
    options += draw(st.sampled_from([[], ["batch_normalize=1"]]))
    options += draw(st.sampled_from([["activation=linear"], ["activation=leaky"], []]))
    options += draw(st.sampled_from([[], [], ["antialiasing=1"], ["antialiasing=2"]]))
    if "groups=1" in options and "antialiasing" not in str(options):
        options += draw(st.sampled_from([[], [], ["xnor=1"], ["binary=1"]]))
    height, width = draw(st.integers(5, 8)), draw(st.integers(5, 8))
    channels = groups * draw(st.integers(1, 2))
    return " ".join(options), f"height={height}\nwidth={width}\nchannels={channels}"


@given(configurations())
@settings(max_examples=40)
def test_any_configuration(check: Callable[..., Network], configuration: tuple[str, str]) -> None:
    options, net = configuration
    check(section(options), darknet(options), net=net, batch=2)


def stored(tmp_path: Path, options: str, floats: npt.NDArray[Any]) -> Network:
    """The layer with these floats as its .weights file."""
    network = Network.parse(f"[net]\nwidth=7\nheight=5\nchannels=4\n{section(options)}")
    path = tmp_path / "net.weights"
    path.write_bytes(Header().pack() + floats.astype("<f4").tobytes())
    return network.with_arrays(read_weights(path, network.layers))


def test_order_of_the_file(tmp_path: Path) -> None:
    network = stored(tmp_path, "filters=2 size=3 batch_normalize=1", np.arange(8 + 72))
    assert {name: array.ravel()[0] for name, array in network.arrays[0].items()} == {
        "biases": 0, "scales": 2, "mean": 4, "variance": 6, "weights": 8,
    }  # fmt: skip
    assert list(network.layers[0].weights()) == ["biases", "scales", "mean", "variance", "weights"]


def test_flipped_is_transposed_at_loading(tmp_path: Path, check: Callable[..., Network]) -> None:
    options = "filters=3 size=2 activation=linear"
    floats = np.random.default_rng(4).normal(size=3 + 3 * 16)
    network = stored(tmp_path, options + " flipped=1", floats)
    for f, c, m, n in np.ndindex(3, 4, 2, 2):
        assert network.arrays[0]["weights"][f, c, m, n] == np.float32(floats[3 + ((c * 2 + m) * 2 + n) * 3 + f])
    check(network, darknet(options))


def test_dontloadscales_leaves_darknets_initial_values(tmp_path: Path, check: Callable[..., Network]) -> None:
    """The file lacks the three arrays; scale 1, mean 0 and variance 0 are what make_convolutional_layer leaves."""
    options = "filters=3 batch_normalize=1 activation=linear"
    network = stored(tmp_path, options + " dontloadscales=1", np.random.default_rng(4).normal(size=3 + 12))
    for name, value in (("scales", 1), ("mean", 0), ("variance", 0)):
        np.testing.assert_array_equal(network.arrays[0][name], np.full(3, value, np.float32))
    check(network, darknet(options))


def test_layer_says() -> None:
    text = "[net]\nwidth=8\nheight=6\nchannels=4\n" + section("filters=8 size=3 pad=1 stride=2 groups=2")
    layer = Network.parse(text).layers[0]
    assert layer.describe() == "8/2  3 x 3 / 2"
    assert layer.flops() == 2 * 8 * 2 * 9 * 3 * 4
    text += section("filters=8 size=3 pad=1 stride_x=2 xnor=1")
    assert Network.parse(text).layers[1].describe() == "8  3 x 3 / 2x1"
    assert Network.parse(text).layers[1].flops() == 2 * 8 * 8 * 9 * 2 * 3 / 32
    text += section("filters=8 size=3 pad=1 dilation=2") + section("filters=8 antialiasing=1 stride=2")
    assert [layer.describe() for layer in Network.parse(text).layers[2:]] == ["8  3 x 3 / 1 (2)", "8  1 x 1 / 2"]


POSITIVE = "Darknet would crash or compute nothing"


@pytest.mark.parametrize(
    ("options", "message", "line", "hint"),
    [
        (
            "filters=8 groups=3",
            "groups=3 does not divide 4 input channels and 8 filters",
            "groups=3",
            "groups must divide both",
        ),
        ("filters=0", "filters=0 must be at least 1", "filters=0", POSITIVE),
        ("size=0", "size=0 must be at least 1", "size=0", POSITIVE),
        ("stride=0", "stride=0 must be at least 1", "stride=0", "Darknet would divide by zero"),
        ("padding=-1", "padding=-1 must be at least 0", "padding=-1", POSITIVE),
        ("size=6", "the output would be empty: 1 x 0 x 2", "", "the input is too small for this layer"),
        (
            "size=3 dilation=2",
            "dilation=2 with size=3 and padding=0 has no defined output",
            "dilation=2",
            "Darknet's own sizes disagree here; use an odd size and pad=1",
        ),
        (
            "size=4 pad=1 dilation=2",
            "dilation=2 with size=4 and padding=2 has no defined output",
            "dilation=2",
            "Darknet's own sizes disagree here; use an odd size and pad=1",
        ),
        ("antialiasing=-1", "antialiasing=-1 must be at least 0", "antialiasing=-1", POSITIVE),
        ("activation=lekay", "activation=lekay is unknown", "activation=lekay", "did you mean 'leaky'?"),
        ("batch_normalise=1", "nothing in [convolutional] reads 'batch_normalise'", "batch_normalise=1",
         "did you mean 'batch_normalize'?"),
        ("share_index=0", "share_index=0 is layer 0, which is not the first layer", "share_index=0",
         "only earlier layers"),
    ],
)  # fmt: skip
def test_refused(options: str, message: str, line: str, hint: str, refused: Callable[..., None]) -> None:
    refused(section(options), message, line, hint)


@pytest.mark.parametrize(
    ("before", "options", "message", "hint"),
    [
        ("[maxpool]\n", "share_index=0", "share_index=0 is a [maxpool], not a [convolutional]", ""),
        (
            section("filters=4 size=3 pad=1"),
            "filters=4 share_index=-1",
            "the weights (4, 4, 3, 3) of layer 0 do not fit (4, 4, 1, 1)",
            "filters, size, groups and input channels must be equal",
        ),
        (section("filters=4"), "share_index=1", "share_index=1 is layer 1, which is not one of layers 0 to 0",
         "only earlier layers"),
    ],
)  # fmt: skip
def test_share_index_refused(before: str, options: str, message: str, hint: str, refused: Callable[..., None]) -> None:
    refused(before + section(options), message, options.split()[-1], hint)


def test_vectors_are_refused(refused: Callable[..., None]) -> None:
    message = "[convolutional] needs an image, but the layer before it has a flat output of 5"
    hint = "place it before the [softmax] or [cost], or set width, height and channels in [net]"
    refused("[convolutional]\n", message, "", hint, net="inputs=5")
