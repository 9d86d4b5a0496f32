"""[history] against a list of frames, its graph against its reference, and in front of a convolution."""

from __future__ import annotations

import numpy as np
import pytest

from dnc.darknet.network import Network
from dnc.errors import CfgError
from tests.darknet.layers.stepping import (
    assert_close,
    frames,
    graph_steps,
    reference_steps,
)


def network(size: int | None, rest: str = "") -> Network:
    option = "" if size is None else f"history_size={size}\n"
    text = f"[net]\nwidth=5\nheight=4\nchannels=2\n[history]\n{option}{rest}"
    return Network.parse(text).with_random_weights(7)


@pytest.mark.parametrize("batch", ["N", 2])
@pytest.mark.parametrize("size", [1, 2, 3, None])
def test_frames_stack_newest_first(size: int | None, batch: int | str) -> None:
    net = network(size)
    inputs = frames(net, 6)
    past = [np.zeros((2, 2, 4, 5), np.float32)] * (size or 4)
    for frame, (graph, graph_states), (reference, _) in zip(
        inputs, graph_steps(net, inputs, batch), reference_steps(net, inputs), strict=True
    ):
        past = [frame, *past[:-1]]
        np.testing.assert_array_equal(reference, np.concatenate(past, axis=1))
        np.testing.assert_array_equal(graph, reference)
        assert list(graph_states) == list(net.layers[0].states())


def test_the_first_step_is_darknets() -> None:
    """Darknet with one time step copies the frame in front of zeros."""
    net = network(3)
    (frame,) = frames(net, 1)
    ((output, _),) = reference_steps(net, [frame])
    np.testing.assert_array_equal(output[:, :2], frame)
    assert not output[:, 2:].any()


def test_in_front_of_a_convolution() -> None:
    net = network(3, "[convolutional]\nfilters=3\nsize=3\npad=1\nactivation=leaky\n")
    assert net.layers[1].shape == (3, 4, 5)
    inputs = frames(net, 4)
    for (graph, _), (reference, _) in zip(graph_steps(net, inputs), reference_steps(net, inputs), strict=True):
        assert_close(graph, reference)


def test_layer_says() -> None:
    layer = network(None).layers[0]
    assert layer.shape == (8, 4, 5)
    assert layer.states() == {"frames": (8, 4, 5)}
    assert network(1).layers[0].states() == {}
    assert layer.weights() == {}
    assert layer.describe() == "4 frames"
    assert layer.flops() == 0


@pytest.mark.parametrize(
    ("option", "message", "hint"),
    [
        ("history_size=0", "history_size=0 must be at least 1", "Darknet would crash or compute nothing"),
        (
            "history_size=1000000000",
            "the output would have 2000000000 x 4 x 5 elements",
            "at most 2147483647 are possible",
        ),
        ("histroy_size=3", "nothing in [history] reads 'histroy_size'", "did you mean 'history_size'?"),
    ],
)
def test_refused(option: str, message: str, hint: str) -> None:
    with pytest.raises(CfgError) as caught:
        Network.parse(f"[net]\nwidth=5\nheight=4\nchannels=2\n[history]\n{option}\n", "net.cfg")
    assert str(caught.value) == f"{message}\n  at net.cfg:6 [history] #0\n      6 | {option}\n  hint: {hint}"


def test_vectors_are_refused() -> None:
    with pytest.raises(CfgError, match=r"\[history\] needs an image, but the layer before it has a flat output of 9"):
        Network.parse("[net]\ninputs=9\n[history]\n")
