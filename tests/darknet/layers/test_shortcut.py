"""[shortcut] against shortcut_multilayer_cpu with its flat indices, and against the strided shortcut_cpu of old."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from dnc.darknet.layers.base import Arrays
from dnc.darknet.network import Network
from dnc.darknet.weights import Header, read_weights

Doubles = npt.NDArray[np.float64]
Oracle = Callable[[Sequence[Doubles], Arrays], Doubles]


def body(*filters: int) -> str:
    return "".join(f"[convolutional]\nfilters={count}\nsize=3\npad=1\nactivation=linear\n" for count in filters)


def multilayer(normalization: str = "", leaky: bool = False) -> Oracle:
    """All maps have one width and height, so a flat index below a layer's size is a channel that it has."""

    def oracle(inputs: Sequence[Doubles], arrays: Arrays) -> Doubles:
        sources = [x.ravel() for x in inputs]
        weights = arrays["weights"].ravel().tolist() if normalization else []
        out = np.zeros(sources[0].size)
        steps = len(weights) // len(sources)
        for index in range(out.size):
            scale = [1.0] * len(sources)
            if weights:
                place = index // (out.size // steps)
                own = [weights[place + steps * i] for i in range(len(sources))]
                if normalization == "softmax":
                    scale = [math.exp(w - max(own)) for w in own]
                else:
                    # lrelu of network.c, not relu of blas.c: the weights are normalized when the network is fused.
                    scale = [w if w > 0.001 else 0.001 for w in own]
                total = 0.0001 + sum(scale)
                scale = [w / total for w in scale]
            for source, factor in zip(sources, scale, strict=True):
                if index < source.size:
                    out[index] += source[index] * factor
        y = out.reshape(inputs[0].shape)
        return np.where(y > 0, y, 0.1 * y) if leaky else y

    return oracle


def strided(inputs: Sequence[Doubles], arrays: Arrays) -> Doubles:
    """shortcut_cpu: `stride` is how many pixels of the source make one, `sample` how many of the output."""
    out = inputs[0].copy()
    (c2, h2, w2) = out.shape
    for add in inputs[1:]:
        (c1, h1, w1) = add.shape
        stride, sample = max(1, w1 // w2), max(1, w2 // w1)
        for k, j, i in np.ndindex(min(c1, c2), min(h1, h2), min(w1, w2)):
            out[k, j * sample, i * sample] += add[k, j * stride, i * stride]
    return out


@pytest.mark.parametrize("source", ["-2", "0", "-2,-3", "0,1,0", "-3"])
@pytest.mark.parametrize("leaky", [False, True])
def test_sum(source: str, leaky: bool, check: Callable[..., Network]) -> None:
    text = f"{body(4, 4, 4)}[shortcut]\nfrom={source}\n" + ("activation=leaky\n" if leaky else "")
    check(text, multilayer(leaky=leaky), bound=1e-6)


@pytest.mark.parametrize(("filters", "source"), [((2, 5), "-2"), ((6, 5), "-2"), ((2, 7, 5), "-2,-3"), ((1, 3), "0")])
def test_other_numbers_of_channels(filters: tuple[int, ...], source: str, check: Callable[..., Network]) -> None:
    """The output has those of the layer before; the rest of a wider source is dropped, of a narrower one zero."""
    network = check(f"{body(*filters)}[shortcut]\nfrom={source}\n", multilayer(), bound=1e-6)
    assert network.layers[-1].shape == (filters[-1], 5, 7)


@pytest.mark.parametrize("normalization", ["relu", "avg_relu", "softmax"])
@pytest.mark.parametrize("kind", ["per_feature", "per_layer", "per_channel"])
@pytest.mark.parametrize("filters", [(4, 4, 4), (2, 6, 4)])
def test_weights(kind: str, normalization: str, filters: tuple[int, ...], check: Callable[..., Network]) -> None:
    text = f"[shortcut]\nfrom=-2,-3\nactivation=leaky\nweights_type={kind}\nweights_normalization={normalization}\n"
    network = check(body(*filters) + text, multilayer(normalization, leaky=True), bound=1e-6)
    weights = {"weights": (3, 4 if kind == "per_channel" else 1)}
    assert network.layers[-1].weights() == weights
    assert network.layers[-1].describe().startswith("1 0  per_")


def test_weights_under_the_least(check: Callable[..., Network]) -> None:
    """Where all are, each counts the same: 0.001 of 0.002 + 0.0001."""
    text = body(4, 4) + "[shortcut]\nfrom=0\nweights_type=per_feature\nweights_normalization=relu\n"
    network = Network.parse(f"[net]\nwidth=7\nheight=5\nchannels=4\n{text}").with_random_weights()
    for values in ([[-1.0], [-0.5]], [[0.0], [0.0005]]):
        network = network.with_arrays((*network.arrays[:2], {"weights": np.array(values, np.float32)}))
        check(network, multilayer("relu"), bound=1e-6)
        check(network, lambda inputs, arrays: (inputs[0] + inputs[1]) / 2.1, bound=1e-6)


def test_file(tmp_path: Path) -> None:
    """The previous layer's weights first, then those of `from` in its order."""
    text = "[net]\nwidth=3\nheight=3\nchannels=2\n[empty]\n[empty]\n"
    text += "[shortcut]\nfrom=0\nweights_type=per_channel\nweights_normalization=relu\n"
    network = Network.parse(text)
    path = tmp_path / "net.weights"
    path.write_bytes(Header().pack() + np.arange(4, dtype="<f4").tobytes())
    np.testing.assert_array_equal(read_weights(path, network.layers)[2]["weights"], [[0, 1], [2, 3]])


TWICE = "[convolutional]\nfilters={}\nactivation=linear\n[maxpool]\nsize={}\nstride={}\n[convolutional]\nfilters=4\n"


@pytest.mark.parametrize("filters", [2, 4, 6])
@pytest.mark.parametrize("factor", [2, 3])
def test_a_larger_source_gives_every_nth_pixel(factor: int, filters: int, check: Callable[..., Network]) -> None:
    """The ResNets before 2019 rely on it."""
    text = TWICE.format(filters, factor, factor) + "activation=linear\n[shortcut]\nfrom=0\n"
    net = f"width={4 * factor}\nheight={3 * factor}\nchannels=2"
    network = check(text, strided, net=net, bound=1e-6)
    assert network.layers[-1].shape == (4, 3, 4)


@pytest.mark.parametrize("filters", [2, 4, 6])
@pytest.mark.parametrize("factor", [2, 3])
def test_a_smaller_source_lands_on_every_nth_pixel(factor: int, filters: int, check: Callable[..., Network]) -> None:
    text = f"[convolutional]\nfilters={filters}\nactivation=linear\n[upsample]\nstride={factor}\n"
    text += "[convolutional]\nfilters=4\nactivation=linear\n[shortcut]\nfrom=0\nactivation=linear\n"
    network = check(text, strided, net="width=4\nheight=3\nchannels=2", bound=1e-6)
    assert network.layers[-1].shape == (4, 3 * factor, 4 * factor)


def test_vectors(check: Callable[..., Network]) -> None:
    check("[softmax]\n[softmax]\n[shortcut]\nfrom=0\n", multilayer(), net="inputs=5", bound=1e-6)
    check(
        "[connected]\noutput=5\n[connected]\noutput=5\n[shortcut]\nfrom=0\n", multilayer(), net="inputs=5", bound=1e-6
    )


SIZES = "width and height must be equal (or one a multiple of the other, as in the old ResNets)"


@pytest.mark.parametrize(
    ("text", "line", "message", "hint"),
    [
        (
            "[convolutional]\nfilters=3\n[convolutional]\nfilters=3\nsize=3\n[shortcut]\nfrom=0\n",
            "from=0",
            "layer 0 of 3 x 5 x 7 cannot be added to the previous layer of 3 x 3 x 5",
            SIZES,
        ),
        (
            body(4, 4) + "[shortcut]\nfrom=0\nweights_type=per_feature\n",
            "weights_type=per_feature",
            "weights_type=per_feature needs weights_normalization=relu or softmax",
            "Darknet ends here too",
        ),
        (
            body(4, 4) + "[shortcut]\nfrom=0\nweights_type=per_pixel\n",
            "weights_type=per_pixel",
            "weights_type=per_pixel is unknown",
            "did you mean 'per_channel'?",
        ),
        (
            body(4, 4) + "[shortcut]\nfrom=0\nweights_normalization=softmx\n",
            "weights_normalization=softmx",
            "weights_normalization=softmx is unknown",
            "did you mean 'softmax'?",
        ),
        (body(4, 4) + "[shortcut]\nfrom=2\n", "from=2", "from=2 is layer 2, which is not one of layers 0 to 1",
         "only earlier layers"),
        (body(4) + "[shortcut]\nfrom=-1,-2\n", "from=-1,-2", "from=-2 is layer -1, which is not one of layers 0 to 0",
         "only earlier layers"),
        (body(4, 4) + "[shortcut]\n", "", "[shortcut] must say from=", "for instance from=-2"),
    ],
)  # fmt: skip
def test_refused(text: str, line: str, message: str, hint: str, refused: Callable[..., None]) -> None:
    refused(text, message, line, hint)


def test_weights_of_a_strided_source_are_refused(refused: Callable[..., None]) -> None:
    text = TWICE.format(4, 2, 2) + "[shortcut]\nfrom=0\nweights_type=per_feature\nweights_normalization=relu\n"
    message = "layer 0 of 4 x 6 x 8 cannot be added to the previous layer of 4 x 3 x 4"
    refused(text, message, "from=0", SIZES, net="width=8\nheight=6\nchannels=2")
