"""Layers with a memory: [rnn], [gru], [lstm], [crnn], [conv_lstm] and [history], of which KINDS says what differs.

Each is compared with its formulas, written out for one image in double; with Darknet itself, where that runs on a CPU;
and its graph with its reference, step by step, with the states going into the next step.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from dnc.darknet.layers.base import Arrays
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
Given = Mapping[str, str]
Steps = Iterator[tuple[Doubles, dict[str, Doubles]]]
"""The output and the states of each step."""


def logistic(x: Doubles) -> Doubles:
    return ACTIVATIONS["logistic"](x)


def connected(x: Doubles, arrays: Arrays, part: str, activation: str = "linear") -> Doubles:
    """forward_connected_layer."""
    total = arrays[part + ".weights"].astype(np.float64) @ x
    if part + ".scales" in arrays:
        scale, mean, variance = (arrays[f"{part}.{name}"].astype(np.float64) for name in ("scales", "mean", "variance"))
        total = (total - mean) / np.sqrt(variance + 0.00001) * scale
    total = total + arrays[part + ".biases"]
    return 2 * logistic(total) - 1 if activation == "loggy" else ACTIVATIONS[activation](total)


def rnn_steps(net: Network, given: Given, inputs: Sequence[Doubles]) -> Steps:
    """forward_rnn_layer."""
    arrays, activation = net.arrays[0], given.get("activation", "logistic")
    recurrent = {"1": "logistic", "2": "loggy"}.get(given.get("logistic", "0"), activation)
    h = np.zeros(4)
    for x in inputs:
        carried = h if given.get("shortcut") == "1" else 0
        h = carried + connected(x, arrays, "input", activation) + connected(h, arrays, "self", recurrent)
        yield connected(h, arrays, "output", activation), {"h": h}


def gru_steps(net: Network, given: Given, inputs: Sequence[Doubles]) -> Steps:
    """forward_gru_layer: the candidate is logistic, not tanh."""
    arrays, h = net.arrays[0], np.zeros(3)
    for x in inputs:
        z = logistic(connected(x, arrays, "input_z") + connected(h, arrays, "state_z"))
        r = logistic(connected(x, arrays, "input_r") + connected(h, arrays, "state_r"))
        new = logistic(connected(x, arrays, "input_h") + connected(r * h, arrays, "state_h"))
        h = z * h + (1 - z) * new
        yield h, {"h": h}


def lstm_steps(net: Network, given: Given, inputs: Sequence[Doubles]) -> Steps:
    """forward_lstm_layer."""
    arrays, h, c = net.arrays[0], np.zeros(3), np.zeros(3)
    for x in inputs:
        f, i, g, o = (connected(h, arrays, f"w{gate}") + connected(x, arrays, f"u{gate}") for gate in "figo")
        c = logistic(f) * c + logistic(i) * np.tanh(g)
        h = logistic(o) * np.tanh(c)
        yield h, {"h": h, "c": c}


def crnn_steps(net: Network, given: Given, inputs: Sequence[Doubles]) -> Steps:
    """forward_crnn_layer."""
    arrays, activation = net.arrays[0], given.get("activation", "logistic")
    h = np.zeros((6, 4, 5))
    for x in inputs:
        carried = h if given.get("shortcut") == "1" else 0
        read, recur = (convolution(y, arrays, part, net, activation) for y, part in ((x, "input"), (h, "self")))
        h = carried + read + recur
        yield convolution(h, arrays, "output", net, activation), {"h": h}


def conv_lstm_steps(net: Network, given: Given, inputs: Sequence[Doubles]) -> Steps:
    """forward_conv_lstm_layer_gpu."""
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
        yield output, {"h": h, "c": c}


def history_steps(net: Network, given: Given, inputs: Sequence[Doubles]) -> Steps:
    """forward_history_layer: frames stand in a row, the newest first."""
    past = [np.zeros((2, 4, 5))] * int(given.get("history_size", "4"))
    for x in inputs:
        past = [x, *past[:-1]]
        stacked = np.concatenate(past)
        yield stacked, {"frames": stacked} if len(past) > 1 else {}


class Kind(NamedTuple):
    """What is peculiar to a layer."""

    net: str
    """The options of [net]."""
    sizes: str
    """Options that every network here has."""
    options: list[str]
    steps: Callable[[Network, Given, Sequence[Doubles]], Steps]
    parts: Callable[[Given], list[str]] = lambda _: []
    """Names of its matrices in the order of the file."""
    weights_first: bool = False
    """Whether a matrix stands before its scales: those of [connected] do, those of [convolutional] do not."""


def conv_lstm_parts(given: Given) -> list[str]:
    peephole = ["vf", "vi", "vo"] if given.get("peephole") == "1" else []
    recurrent = ["wf"] if given.get("bottleneck") == "1" else ["wf", "wi", "wg", "wo"]
    return [*peephole, *recurrent, "uf", "ui", "ug", "uo"]


NORMALIZED = ["", "batch_normalize=1"]
KINDS = {
    "rnn": Kind(
        "inputs=5",
        "hidden=4\noutput=3",
        [
            "",
            "batch_normalize=1",
            "activation=tanh",
            "activation=relu\nlogistic=1",
            "activation=leaky\nlogistic=2\nbatch_normalize=1",
            "activation=linear\nlogistic=3",
            "activation=tanh\nshortcut=1",
            "activation=relu\nshortcut=1\nbatch_normalize=1\nlogistic=1",
        ],
        rnn_steps,
        lambda _: ["input", "self", "output"],
        weights_first=True,
    ),
    "gru": Kind(
        "inputs=5",
        "output=3",
        NORMALIZED,
        gru_steps,
        lambda _: [f"{side}_{gate}" for side in ("input", "state") for gate in "zrh"],
        weights_first=True,
    ),
    "lstm": Kind(
        "inputs=5",
        "output=3",
        NORMALIZED,
        lstm_steps,
        lambda _: [side + gate for side in "wu" for gate in "figo"],
        weights_first=True,
    ),
    "crnn": Kind(
        "width=5\nheight=4\nchannels=4",
        "hidden=6\noutput=2",
        [
            "pad=1",
            "pad=1\nbatch_normalize=1\nactivation=leaky",
            "pad=1\nactivation=tanh\nshortcut=1",
            "padding=1\nactivation=relu\ngroups=2",
            "size=1\nactivation=linear\nbatch_normalize=1",
            "size=5\npad=1\nactivation=leaky\nshortcut=1",
            "pad=1\ndilation=2\nactivation=leaky",
            "pad=1\nxnor=1\nbatch_normalize=1\nactivation=leaky\ngroups=2",
            "pad=1\nxnor=1\nactivation=linear\nshortcut=1",
        ],
        crnn_steps,
        lambda _: ["input", "self", "output"],
    ),
    "conv_lstm": Kind(
        "width=5\nheight=3\nchannels=4",
        "output=4",
        [
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
        ],
        conv_lstm_steps,
        conv_lstm_parts,
    ),
    "history": Kind(
        "width=5\nheight=4\nchannels=2",
        "",
        ["history_size=1", "history_size=2", "history_size=3", ""],
        history_steps,
    ),
}
VECTORS = ("rnn", "gru", "lstm")
IMAGES = ("crnn", "conv_lstm", "history")
every_case = pytest.mark.parametrize(
    ("kind", "options"), [(kind, options) for kind, entry in KINDS.items() for options in entry.options]
)


def network(kind: str, options: str = "", net: str | None = None, sizes: str | None = None, rest: str = "") -> Network:
    """The layer with random weights, and what follows it."""
    entry = KINDS[kind]
    before, given = entry.net if net is None else net, entry.sizes if sizes is None else sizes
    return Network.parse(f"[net]\n{before}\n[{kind}]\n{given}\n{options}\n{rest}").with_random_weights(7)


def read_options(options: str) -> Given:
    return dict(line.split("=") for line in options.splitlines())


def same_steps(net: Network, count: int = 3) -> None:
    """The graph's outputs are the reference's, of networks of more than one layer as well."""
    inputs = frames(net, count)
    for (graph, _), (reference, _) in zip(graph_steps(net, inputs), reference_steps(net, inputs), strict=True):
        assert_close(graph, reference)


@pytest.mark.parametrize("kind", ["crnn", "conv_lstm"])
def test_darknets_own_numbers(kind: str, tmp_path: Path) -> None:
    assert_golden(kind, tmp_path)


@pytest.mark.parametrize("batch", ["N", 2])
@every_case
def test_graph_is_the_reference(kind: str, options: str, batch: int | str) -> None:
    assert_graph_is_the_reference(network(kind, options), batch)


@every_case
def test_reference_is_darknets_loop(kind: str, options: str) -> None:
    net = network(kind, options)
    inputs = frames(net, 6 if kind == "history" else 3)
    actual = list(reference_steps(net, inputs))
    for image in range(2):
        doubles = [frame[image].astype(np.float64) for frame in inputs]
        expected = KINDS[kind].steps(net, read_options(options), doubles)
        for (output, states), (right, right_states) in zip(actual, expected, strict=True):
            assert_close(output[image].ravel(), right.ravel().astype(np.float32))
            assert list(states) == list(right_states)
            for name, state in right_states.items():
                assert_close(states[name][image], state.astype(np.float32))


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_the_output_is_the_state(kind: str) -> None:
    net = network(kind)
    for output, states in reference_steps(net, frames(net)):
        np.testing.assert_array_equal(output.reshape(2, 3), states["h"])


@every_case
@pytest.mark.parametrize("transposed", [False, True])
def test_weights_file(kind: str, options: str, transposed: bool, tmp_path: Path) -> None:
    """The header's flag is for fully connected layers alone: the matrices of convolutions stay as they are."""
    net, given = network(kind, options), read_options(options)
    (layer,), (arrays,) = net.layers, net.arrays
    normalized = ["scales", "mean", "variance"] if given.get("batch_normalize") == "1" else []
    first = KINDS[kind].weights_first
    fields = ["biases", "weights", *normalized] if first else ["biases", *normalized, "weights"]
    order = [f"{part}.{name}" for part in KINDS[kind].parts(given) for name in fields]
    assert list(layer.weights()) == order
    assert count(layer) == sum(arrays[name].size for name in order)
    path = tmp_path / "net.weights"
    header = Header(major=1001 if transposed else 0)
    stored = [arrays[name].T if transposed and first else arrays[name] for name in order]
    path.write_bytes(header.pack() + b"".join(np.ascontiguousarray(array).tobytes() for array in stored))
    (read,) = read_weights(path, net.layers)
    assert list(read) == order
    for name in order:
        np.testing.assert_array_equal(read[name], arrays[name])
    file = io.BytesIO()
    write_weights(file, net.layers, (read,))
    assert file.getvalue() == Header().pack() + b"".join(arrays[name].tobytes() for name in order)


@pytest.mark.parametrize(
    ("kind", "options", "shape", "states", "says", "flops"),
    [
        ("rnn", "", (3, 1, 1), {"h": (4,)}, "5 -> 3", 2 * (5 * 4 + 4 * 4 + 4 * 3)),
        ("gru", "", (3,), {"h": (3,)}, "5 -> 3", 2 * 3 * (5 * 3 + 3 * 3)),
        ("lstm", "", (3, 1, 1), {"h": (3,), "c": (3,)}, "5 -> 3", 2 * 4 * (5 * 3 + 3 * 3)),
        ("crnn", "pad=1", (2, 4, 5), {"h": (6, 4, 5)}, "2  3 x 3 / 1", 2 * 9 * 20 * (4 * 6 + 6 * 6 + 6 * 2)),
        ("crnn", "pad=1\nxnor=1", (2, 4, 5), {"h": (6, 4, 5)}, None, 2 * 9 * 20 * (4 * 6 + 6 * 6 + 6 * 2) / 32),
        ("conv_lstm", "pad=1\npeephole=1", (4, 3, 5), None, None, 11 * 2 * 9 * 15 * 16 + 12 * 60),
        ("conv_lstm", "pad=1\nbottleneck=1", (4, 3, 5), None, None, 6 * 2 * 9 * 15 * 16 + 9 * 60),
        ("history", "", (8, 4, 5), {"frames": (8, 4, 5)}, "4 frames", 0),
        ("history", "history_size=1", (2, 4, 5), {}, None, 0),
    ],
)
def test_layer_says(
    kind: str, options: str, shape: tuple[int, ...], states: dict[str, object] | None, says: str | None, flops: float
) -> None:
    layer = network(kind, options).layers[0]
    assert (layer.shape, layer.flops()) == (shape, flops)
    assert states is None or layer.states() == states
    assert says is None or layer.describe() == says


def test_layer_says_more() -> None:
    """Three channels into four; sizes that are not given."""
    layer = network("conv_lstm", "pad=1", net="width=5\nheight=3\nchannels=3").layers[0]
    assert layer.shape == (4, 3, 5)
    assert layer.states() == {"h": (4, 3, 5), "c": (4, 3, 5)}
    assert layer.describe() == "4  3 x 3 / 1"
    assert layer.flops() == 4 * 2 * 9 * 15 * (3 * 4 + 4 * 4) + 9 * 60
    assert network("rnn", sizes="").layers[0].shape == (1, 1, 1)
    assert network("crnn", "pad=1", sizes="").layers[0].shape == (1, 4, 5)


@pytest.mark.parametrize("kind", VECTORS)
def test_an_image_is_flattened(kind: str) -> None:
    net = network(kind, net="width=4\nheight=2\nchannels=3")
    inputs = frames(net)
    flat = network(kind, net="inputs=24").with_arrays(net.arrays)
    expected = reference_steps(flat, [frame.reshape(2, -1) for frame in inputs])
    for actual, graph, (output, _) in zip(
        reference_steps(net, inputs), graph_steps(net, inputs), expected, strict=True
    ):
        assert_close(actual[0], output)
        assert_close(graph[0], output)


@pytest.mark.parametrize("kind", IMAGES)
def test_vectors_are_refused(kind: str) -> None:
    message = rf"\[{kind}\] needs an image, but the layer before it has a flat output of 9"
    with pytest.raises(CfgError, match=message):
        network(kind, "pad=1" if kind != "history" else "", net="inputs=9")


KEEPS = "a recurrent convolution must keep its size"
SMALLER = "use stride=1, pad=1 and an odd size; a [convolutional] or [maxpool] before can reduce the size"
CRASHES = "Darknet would crash or compute nothing"
DIVIDES = "groups must divide both"


@pytest.mark.parametrize(
    ("kind", "options", "message", "line", "hint"),
    [
        ("rnn", "output=0", "output=0 must be at least 1", 0, CRASHES),
        ("rnn", "hidden=-4", "hidden=-4 must be at least 1", 0, CRASHES),
        (
            *("rnn", "hidden=2000000000", "the weights up to this layer are 4000000016000000001 floats", None),
            "an engine holds 2 GiB",
        ),
        ("rnn", "hiden=3", "nothing in [rnn] reads 'hiden'", 0, "did you mean 'hidden'?"),
        ("gru", "output=0", "output=0 must be at least 1", 0, CRASHES),
        (
            *("gru", "batch_normalise=1", "nothing in [gru] reads 'batch_normalise'", 0),
            "did you mean 'batch_normalize'?",
        ),
        ("lstm", "output=0", "output=0 must be at least 1", 0, CRASHES),
        (
            *("lstm", "batch_normalise=1", "nothing in [lstm] reads 'batch_normalise'", 0),
            "did you mean 'batch_normalize'?",
        ),
        ("crnn", "pad=1\nstride=2", f"size=3, stride=2, padding=1 would make 3 x 2 of 5 x 4, but {KEEPS}", 1, SMALLER),
        ("crnn", "", f"size=3, stride=1, padding=0 would make 3 x 2 of 5 x 4, but {KEEPS}", None, SMALLER),
        ("crnn", "size=2\npad=1", f"size=2, stride=1, padding=1 would make 6 x 5 of 5 x 4, but {KEEPS}", 0, SMALLER),
        ("crnn", "pad=1\ngroups=3", "groups=3 does not divide 4 input channels and 6 filters", 1, DIVIDES),
        ("crnn", "pad=1\ngroups=4", "groups=4 does not divide 4 input channels and 6 filters", 1, DIVIDES),
        ("crnn", "pad=1\nstride=0", "stride=0 must be at least 1", 1, "Darknet would divide by zero"),
        ("crnn", "pad=1\nshortcuts=1", "nothing in [crnn] reads 'shortcuts'", 1, "did you mean 'shortcut'?"),
        (
            "conv_lstm",
            "stride=2\npad=1",
            f"size=3, stride=2, padding=1 would make 3 x 2 of 5 x 3, but {KEEPS}",
            0,
            SMALLER,
        ),
        ("conv_lstm", "size=3", f"size=3, stride=1, padding=0 would make 3 x 1 of 5 x 3, but {KEEPS}", 0, SMALLER),
        (
            "conv_lstm",
            "bottleneck=1\npad=1",
            "bottleneck=1 with output=4 and 6 input channels: they must be equal",
            0,
            "use output=6; Darknet would read past the bottleneck's output",
        ),
        (
            "conv_lstm",
            "lstm_activation=mish\npad=1",
            "lstm_activation=mish is unknown",
            0,
            "one of: tanh, leaky, linear",
        ),
        ("conv_lstm", "state_constrain=-1\npad=1", "state_constrain=-1 must be at least 0", 0, CRASHES),
        ("conv_lstm", "groups=4\npad=1", "groups=4 does not divide 6 input channels and 4 filters", 0, DIVIDES),
        ("conv_lstm", "peephol=1\npad=1", "nothing in [conv_lstm] reads 'peephol'", 0, "did you mean 'peephole'?"),
        ("history", "history_size=0", "history_size=0 must be at least 1", 0, CRASHES),
        (
            *("history", "history_size=1000000000", "the output would have 2000000000 x 4 x 5 elements", 0),
            "at most 2147483647 are possible",
        ),
        (
            *("history", "histroy_size=3", "nothing in [history] reads 'histroy_size'", 0),
            "did you mean 'history_size'?",
        ),
    ],
)
def test_refused(kind: str, options: str, message: str, line: int | None, hint: str) -> None:
    """At a line of the options, or at the section."""
    net = KINDS[kind].net.replace("channels=4", "channels=6") if kind == "conv_lstm" else KINDS[kind].net
    sizes = KINDS[kind].sizes if kind in IMAGES else ""
    text = "\n".join(filter(None, ["[net]", net, f"[{kind}]", sizes, options])) + "\n"
    section = net.count("\n") + 3
    number = section if line is None else section + (sizes.count("\n") + 1 if sizes else 0) + line + 1
    with pytest.raises(CfgError) as caught:
        Network.parse(text, "net.cfg")
    shown = f"{number:>7} | {text.splitlines()[number - 1]}"
    assert str(caught.value) == f"{message}\n  at net.cfg:{number} [{kind}] #0\n{shown}\n  hint: {hint}"


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(CfgError, match="activation=tahn is unknown"):
        network("rnn", "activation=tahn")


def test_a_convolution_cannot_follow_gru() -> None:
    with pytest.raises(CfgError) as caught:
        Network.parse("[net]\ninputs=5\n[gru]\noutput=3\n[convolutional]\n", "net.cfg")
    assert str(caught.value) == (
        "[convolutional] needs an image, but the layer before it has a flat output of 3\n"
        "  at net.cfg:5 [convolutional] #1\n      5 | [convolutional]\n"
        "  hint: place it before the [softmax] or [cost], or set width, height and channels in [net]"
    )


def test_a_convolution_can_follow_lstm() -> None:
    """The output is (output, 1, 1) to what comes next, as in Darknet; that of [gru] stays flat."""
    net = network("lstm", rest="[convolutional]\nfilters=2\n")
    assert [layer.shape for layer in net.layers] == [(3, 1, 1), (2, 1, 1)]
    same_steps(net)


def test_a_convolution_reads_the_past() -> None:
    net = network("history", "history_size=3", rest="[convolutional]\nfilters=3\nsize=3\npad=1\nactivation=leaky\n")
    assert net.layers[1].shape == (3, 4, 5)
    same_steps(net, 4)


def test_the_candidate_is_logistic_not_tanh() -> None:
    """With every weight and bias at zero, z and n are 1/2: h = 1/4, 3/8, ... and not 0, as tanh would give."""
    net = network("gru")
    net = net.with_arrays(tuple({name: np.zeros_like(array) for name, array in own.items()} for own in net.arrays))
    outputs = [float(output[0, 0]) for output, _ in reference_steps(net, frames(net))]
    assert outputs == [0.25, 0.375, 0.4375]


def test_a_stride_that_keeps_the_size_is_fine() -> None:
    """4 x 4 with padding=3 and stride=2 stays 4 x 4; odd, but Darknet takes it."""
    text = "[net]\nwidth=4\nheight=4\nchannels=3\n[crnn]\nhidden=2\noutput=2\nstride=2\npadding=3\n"
    net = Network.parse(text).with_random_weights(1)
    assert net.layers[0].shape == (2, 4, 4)
    inputs = frames(net)
    for actual, expected in zip(graph_steps(net, inputs), reference_steps(net, inputs), strict=True):
        assert_close(actual[0], expected[0])


def test_groups_must_divide_the_output_too() -> None:
    text = "[net]\nwidth=5\nheight=4\nchannels=4\n[crnn]\nhidden=6\noutput=3\npad=1\ngroups=2\n"
    with pytest.raises(CfgError, match="groups=2 does not divide 6 input channels and 3 filters"):
        Network.parse(text)


@pytest.mark.parametrize(("option", "bound"), [("", 32.0), ("state_constrain=2", 2.0), ("state_constrain=0", None)])
def test_state_constrain_clips_the_cell_but_not_the_output(option: str, bound: float | None) -> None:
    net = network("conv_lstm", f"pad=1\nlstm_activation=linear\n{option}")
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
    expected = conv_lstm_steps(net, read_options(options), [frame[0].astype(np.float64) for frame in inputs])
    triples = zip(reference_steps(net, inputs), graph_steps(net, inputs), expected, strict=True)
    for (reference, _), (graph, _), (y, _) in triples:
        assert_close(reference[0], y.astype(np.float32))
        assert_close(graph[0], y.astype(np.float32))


def test_other_numbers_of_channels() -> None:
    net = network("conv_lstm", "pad=1\npeephole=1", net="width=5\nheight=3\nchannels=3")
    inputs = frames(net)
    for actual, expected in zip(graph_steps(net, inputs), reference_steps(net, inputs), strict=True):
        assert_close(actual[0], expected[0])


def test_the_first_step_is_darknets() -> None:
    """Darknet with one time step copies the frame in front of zeros."""
    net = network("history", "history_size=3")
    (frame,) = frames(net, 1)
    ((output, _),) = reference_steps(net, [frame])
    np.testing.assert_array_equal(output[:, :2], frame)
    assert not output[:, 2:].any()


CELLS = {
    "rnn": "[rnn]\nbatch_normalize=1\noutput=32\nhidden=32\nactivation=leaky\n",
    "gru": "[gru]\nbatch_normalize=1\noutput=32\n",
    "lstm": "[lstm]\nbatch_normalize=1\noutput=32\n",
}


@pytest.mark.parametrize("kind", CELLS)
def test_character_network(kind: str) -> None:
    """The shape of Darknet's rnn.cfg, gru.cfg and lstm.train.cfg, narrower."""
    head = "[connected]\noutput=256\nactivation=linear\n\n[softmax]\n\n[cost]\ntype=sse\n"
    text = f"[net]\nsubdivisions=1\ninputs=256\nbatch=1\ntime_steps=576\nmomentum=0.9\n\n{CELLS[kind] * 3}\n{head}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = Network.parse(text).with_random_weights(3)
    assert [layer.name for layer in net.layers] == [kind] * 3 + ["connected", "softmax", "cost"]
    inputs = [np.eye(256, dtype=np.float32)[[letter, letter + 1]] for letter in (100, 97, 114)]
    graph, reference = list(graph_steps(net, inputs)), list(reference_steps(net, inputs))
    for (actual, _), (expected, _) in zip(graph, reference, strict=True):
        assert_close(actual, expected)
        np.testing.assert_allclose(actual.sum(axis=1), 1, rtol=0, atol=1e-5)
    # The same letter gives another answer once the network has a past.
    again = list(reference_steps(net, [inputs[0], inputs[0]]))
    assert float(np.abs(again[0][0] - again[1][0]).max()) > 1e-4
