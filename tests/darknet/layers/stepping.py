"""What the tests of the recurrent layers share: three frames go through the graph and through the reference, and the
states of each step go into the next; a convolution as its loop, for the two layers that are made of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dnc.darknet.layers.base import Array, Arrays, States
from dnc.darknet.layers.crnn import ConvolutionalCell
from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.darknet.reference import initial_states, run
from dnc.graph.running import Running
from tests import goldens

Doubles = npt.NDArray[np.float64]

ACTIVATIONS: dict[str, Callable[[Doubles], Doubles]] = {
    "linear": lambda x: x,
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "leaky": lambda x: np.where(x > 0, x, 0.1 * x),
}


def frames(net: Network, count: int = 3, batch: int = 2) -> list[Array]:
    generator = np.random.default_rng(11)
    return [generator.normal(0, 1, (batch, *net.input_shape)).astype(np.float32) for _ in range(count)]


def graph_steps(net: Network, inputs: Sequence[Array], batch: int | str = "N") -> Iterator[tuple[Array, States]]:
    """(output, states) of each frame by onnxruntime; a step's states go into the next."""
    running = Running(lower(net, batch=batch), spin=False)
    feeds = {
        f"state{index:03d}.{name}": state
        for index, states in initial_states(net, len(inputs[0])).items()
        for name, state in states.items()
    }
    for frame in inputs:
        values = running({**feeds, "input": frame})
        following = {name: value for name, value in values.items() if name.startswith("next")}
        feeds.update({name.replace("next", "state"): value for name, value in following.items()})
        yield next(iter(values.values())), {name.partition(".")[2]: value for name, value in following.items()}


def reference_steps(net: Network, inputs: Sequence[Array]) -> Iterator[tuple[Array, States]]:
    """The same by the reference; the states are those of layer 0."""
    states = initial_states(net, len(inputs[0]))
    for frame in inputs:
        (output,) = run(net, frame, states)
        yield output, dict(states.get(0, {}))


def assert_close(actual: Array, expected: Array) -> None:
    """Within 1e-5 of the largest value: float32 sums of a few dozen terms, taken in another order."""
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * max(1.0, float(np.abs(expected).max())))


def assert_graph_is_the_reference(net: Network, batch: int | str) -> None:
    """Output and states, step by step."""
    inputs = frames(net)
    for actual, expected in zip(graph_steps(net, inputs, batch), reference_steps(net, inputs), strict=True):
        assert actual[0].shape == (2, *net.layers[0].shape)
        assert_close(actual[0], expected[0])
        assert list(actual[1]) == list(net.layers[0].states())
        for name, state in actual[1].items():
            assert_close(state, expected[1][name])


def convolution(x: Doubles, arrays: Arrays, part: str, net: Network, activation: str) -> Doubles:
    """forward_convolutional_layer for one image, in double: a loop over the taps, then batch normalisation."""
    (cell,) = net.layers
    assert isinstance(cell, ConvolutionalCell)
    size, dilation, groups = cell.parts[0].size, cell.parts[0].dilation, cell.parts[0].groups
    weights = arrays[part + ".weights"].astype(np.float64)
    (filters, depth), (_, rows, columns) = weights.shape[:2], x.shape
    if cell.parts[0].xnor:
        # binarize_kernel, and fast_binarize_weights before batch normalisation, of the GPU build.
        x = np.where(x >= 0, 1.0, -1.0)
        means = np.abs(weights).mean(axis=(1, 2, 3), keepdims=True)
        weights = np.where(weights > 0, means, -means)
    reach = dilation * (size // 2)
    padded = np.pad(x, [(0, 0), (reach, reach), (reach, reach)])
    y = np.zeros((filters, rows, columns))
    for k in range(filters):
        first = k // (filters // groups) * depth
        for c in range(depth):
            for i in range(size):
                for j in range(size):
                    top, left = i * dilation, j * dilation
                    tap = padded[first + c, top : top + rows, left : left + columns]
                    y[k] += weights[k, c, i, j] * tap
        if part + ".scales" in arrays:
            scale, mean, variance = (float(arrays[f"{part}.{name}"][k]) for name in ("scales", "mean", "variance"))
            y[k] = (y[k] - mean) / np.sqrt(variance + 0.00001) * scale
        y[k] += float(arrays[part + ".biases"][k])
    return ACTIVATIONS[activation](y)


def assert_golden(name: str, tmp_path: Path) -> None:
    """One step through Darknet itself; within 1e-4 of the largest value, as its convolutions sum in another order."""
    golden = goldens.micro(name)
    net, expected = Network.load(*golden.write(tmp_path)), golden.layers[0]
    for steps in (reference_steps, graph_steps):
        ((output, _),) = steps(net, [golden.input[np.newaxis]])
        assert output.shape[1:] == expected.shape
        np.testing.assert_allclose(output[0], expected, rtol=0, atol=1e-4 * float(np.abs(expected).max()))
