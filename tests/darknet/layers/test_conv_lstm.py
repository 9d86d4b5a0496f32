"""[conv_lstm] against its formulas in numpy, against Darknet itself, and its graph against its reference."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from dnc.darknet.network import Network
from dnc.darknet.weights import Header, count, read_weights, write_weights
from dnc.errors import CfgError
from tests.darknet.layers.stepping import (
    ACTIVATIONS,
    assert_close,
    assert_golden,
    assert_graph_is_the_reference,
    convolution,
    frames,
    graph_steps,
    reference_steps,
)

Doubles = npt.NDArray[np.float64]

OPTIONS = [
    "pad=1",
    "pad=1\nbatch_normalize=1\nactivation=leaky",
    "pad=1\npeephole=1",
    "pad=1\npeephole=1\nbatch_normalize=1\nactivation=leaky\ngroups=2",
    "pad=1\nlstm_activation=leaky",
    "pad=1\nlstm_activation=linear\nstate_constrain=1",
    "pad=1\nlstm_activation=linear\nstate_constrain=1\npeephole=1",
    "pad=1\nstate_constrain=0\nshortcut=1",
    "pad=1\nbottleneck=1",
    "pad=1\nbottleneck=1\nshortcut=1\nactivation=leaky\nlstm_activation=leaky",
    "pad=1\nbottleneck=1\nshortcut=1\npeephole=1\nbatch_normalize=1\ngroups=2\nactivation=relu",
    "size=1\nactivation=tanh",
    "padding=2\nsize=5",
    "pad=1\ndilation=2\npeephole=1",
    "pad=1\nxnor=1\nbatch_normalize=1\nactivation=leaky\npeephole=1",
    "pad=1\ntime_normalizer=2.0",
]


def network(options: str, channels: int = 4) -> Network:
    text = f"[net]\nwidth=5\nheight=3\nchannels={channels}\n[conv_lstm]\noutput=4\n{options}\n"
    return Network.parse(text).with_random_weights(7)


def parts(options: str) -> list[str]:
    peephole = ["vf", "vi", "vo"] if "peephole=1" in options else []
    recurrent = ["wf"] if "bottleneck=1" in options else ["wf", "wi", "wg", "wo"]
    return [*peephole, *recurrent, "uf", "ui", "ug", "uo"]


def test_darknets_own_numbers(tmp_path: Path) -> None:
    assert_golden("conv_lstm", tmp_path)


@pytest.mark.parametrize("batch", ["N", 2])
@pytest.mark.parametrize("options", OPTIONS)
def test_graph_is_the_reference(options: str, batch: int | str) -> None:
    assert_graph_is_the_reference(network(options), batch)


def darknet_steps(net: Network, options: str, inputs: Sequence[Doubles]) -> Iterator[tuple[Doubles, Doubles, Doubles]]:
    """forward_conv_lstm_layer_gpu for one image, in double: (output, h, c) of each step."""
    given = dict(line.split("=") for line in options.splitlines())
    activation, lstm = given.get("activation", "linear"), ACTIVATIONS[given.get("lstm_activation", "tanh")]
    logistic, constrain = ACTIVATIONS["logistic"], float(given.get("state_constrain", 32))
    peephole, bottleneck = (given.get(key) == "1" for key in ("peephole", "bottleneck"))
    h, c = np.zeros(net.layers[0].shape), np.zeros(net.layers[0].shape)

    def conv(x: Doubles, part: str) -> Doubles:
        return convolution(x, net.arrays[0], part, net, activation)

    for x in inputs:
        vf, vi = (conv(c, "vf"), conv(c, "vi")) if peephole else (0, 0)
        if bottleneck:
            wf = lstm(conv(np.concatenate([h, x]), "wf"))
            source, w = wf, dict.fromkeys("figo", np.zeros_like(h))
        else:
            source, w = x, {gate: conv(h, "w" + gate) for gate in "figo"}
        u = {gate: conv(source, "u" + gate) for gate in "figo"}
        f, i, g = logistic(w["f"] + u["f"] + vf), logistic(w["i"] + u["i"] + vi), lstm(w["g"] + u["g"])
        c = f * c + i * g
        vo = conv(c, "vo") if peephole else 0
        o = logistic(w["o"] + u["o"] + vo)
        h = lstm(c) * o
        if constrain:
            c = np.minimum(constrain, np.maximum(-constrain, c))
        output = h.copy()
        if given.get("shortcut") == "1" and bottleneck:
            for k in range(output.size // 2):
                output.flat[k] += source.flat[k]
        yield output, h, c


@pytest.mark.parametrize("options", OPTIONS)
def test_reference_is_darknets_loop(options: str) -> None:
    net = network(options)
    inputs = frames(net)
    actual = list(reference_steps(net, inputs))
    for image in range(2):
        expected = darknet_steps(net, options, [frame[image].astype(np.float64) for frame in inputs])
        for (output, states), (y, h, c) in zip(actual, expected, strict=True):
            assert_close(output[image], y.astype(np.float32))
            assert_close(states["h"][image], h.astype(np.float32))
            assert_close(states["c"][image], c.astype(np.float32))


@pytest.mark.parametrize(("option", "bound"), [("", 32.0), ("state_constrain=2", 2.0), ("state_constrain=0", None)])
def test_state_constrain_clips_the_cell_but_not_the_output(option: str, bound: float | None) -> None:
    net = network(f"pad=1\nlstm_activation=linear\n{option}")
    large = {name: array * (1000 if name == "ug.weights" else 1) for name, array in net.arrays[0].items()}
    net = net.with_arrays((large,))
    inputs = frames(net)
    for (actual, graph), (expected, states) in zip(graph_steps(net, inputs), reference_steps(net, inputs), strict=True):
        assert_close(actual, expected)
        # The cell was as large as the output before it was clipped, and so is its rounding error.
        np.testing.assert_allclose(graph["c"], states["c"], rtol=0, atol=1e-5 * float(np.abs(expected).max()))
        largest = float(np.abs(states["c"]).max())
        assert largest == bound if bound else largest > 100
        assert float(np.abs(expected).max()) > 100


@pytest.mark.parametrize("size", ["width=5\nheight=3", "width=4\nheight=2"])
def test_shortcut_of_an_odd_number_of_channels_halves_a_channel(size: str) -> None:
    options = "pad=1\nbottleneck=1\nshortcut=1"
    text = f"[net]\n{size}\nchannels=3\n[conv_lstm]\noutput=3\n{options}\n"
    net = Network.parse(text).with_random_weights(5)
    inputs = frames(net, batch=1)
    expected = darknet_steps(net, options, [frame[0].astype(np.float64) for frame in inputs])
    triples = zip(reference_steps(net, inputs), graph_steps(net, inputs), expected, strict=True)
    for (reference, _), (graph, _), (y, _, _) in triples:
        assert_close(reference[0], y.astype(np.float32))
        assert_close(graph[0], y.astype(np.float32))


def test_other_numbers_of_channels() -> None:
    net = network("pad=1\npeephole=1", channels=3)
    inputs = frames(net)
    for actual, expected in zip(graph_steps(net, inputs), reference_steps(net, inputs), strict=True):
        assert_close(actual[0], expected[0])


def test_layer_says() -> None:
    layer = network("pad=1", channels=3).layers[0]
    assert layer.shape == (4, 3, 5)
    assert layer.states() == {"h": (4, 3, 5), "c": (4, 3, 5)}
    assert layer.describe() == "4  3 x 3 / 1"
    assert layer.flops() == 4 * 2 * 9 * 15 * (3 * 4 + 4 * 4) + 9 * 60
    assert network("pad=1\npeephole=1").layers[0].flops() == 11 * 2 * 9 * 15 * 16 + 12 * 60
    assert network("pad=1\nbottleneck=1").layers[0].flops() == 6 * 2 * 9 * 15 * 16 + 9 * 60


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("transposed", [False, True])
def test_weights_file(tmp_path: Path, options: str, transposed: bool) -> None:
    """The header's flag is for fully connected layers alone: these matrices stay as they are."""
    net = network(options)
    (layer,), (arrays,) = net.layers, net.arrays
    fields = ["biases", *(["scales", "mean", "variance"] if "batch_normalize=1" in options else []), "weights"]
    order = [f"{part}.{name}" for part in parts(options) for name in fields]
    assert list(layer.weights()) == order
    assert count(layer) == sum(arrays[name].size for name in order)
    path = tmp_path / "net.weights"
    header = Header(major=1001 if transposed else 0)
    path.write_bytes(header.pack() + b"".join(arrays[name].tobytes() for name in order))
    (read,) = read_weights(path, net.layers)
    assert list(read) == order
    for name in order:
        np.testing.assert_array_equal(read[name], arrays[name])
    file = io.BytesIO()
    write_weights(file, net.layers, (read,), header)
    assert file.getvalue() == path.read_bytes()


@pytest.mark.parametrize(
    ("options", "message", "line", "hint"),
    [
        (
            "stride=2\npad=1",
            "size=3, stride=2, padding=1 would make 3 x 2 of 5 x 3, but a recurrent convolution must keep its size",
            "stride=2",
            "use stride=1, pad=1 and an odd size; a [convolutional] or [maxpool] before can reduce the size",
        ),
        (
            "size=3",
            "size=3, stride=1, padding=0 would make 3 x 1 of 5 x 3, but a recurrent convolution must keep its size",
            "size=3",
            "use stride=1, pad=1 and an odd size; a [convolutional] or [maxpool] before can reduce the size",
        ),
        (
            "bottleneck=1\npad=1",
            "bottleneck=1 with output=4 and 6 input channels: they must be equal",
            "bottleneck=1",
            "use output=6; Darknet would read past the bottleneck's output",
        ),
        (
            "lstm_activation=mish\npad=1",
            "lstm_activation=mish is unknown",
            "lstm_activation=mish",
            "one of: tanh, leaky, linear",
        ),
        (
            "state_constrain=-1\npad=1",
            "state_constrain=-1 must be at least 0",
            "state_constrain=-1",
            "Darknet would crash or compute nothing",
        ),
        (
            "groups=4\npad=1",
            "groups=4 does not divide 6 input channels and 4 filters",
            "groups=4",
            "groups must divide both",
        ),
        ("peephol=1\npad=1", "nothing in [conv_lstm] reads 'peephol'", "peephol=1", "did you mean 'peephole'?"),
    ],
)
def test_refused(options: str, message: str, line: str, hint: str) -> None:
    text = f"[net]\nwidth=5\nheight=3\nchannels=6\n[conv_lstm]\noutput=4\n{options}\n"
    with pytest.raises(CfgError) as caught:
        Network.parse(text, "net.cfg")
    assert str(caught.value) == f"{message}\n  at net.cfg:7 [conv_lstm] #0\n      7 | {line}\n  hint: {hint}"


def test_vectors_are_refused() -> None:
    with pytest.raises(CfgError, match=r"\[conv_lstm\] needs an image, but the layer before it has a flat output of 9"):
        Network.parse("[net]\ninputs=9\n[conv_lstm]\npad=1\n")
