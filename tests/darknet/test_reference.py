"""The reference interpreter: order, memory, states and errors. What layers compute is tested in tests/layers."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from dnc.darknet.network import Network
from dnc.darknet.reference import initial_states, run, run_all
from dnc.errors import DncError, WeightsError

CFG = """[net]
width=6
height=4
channels=3
[convolutional]
filters=4
[convolutional]
filters=4
[shortcut]
from=0
[avgpool]
[softmax]
[cost]
"""


def network(text: str = CFG) -> Network:
    return Network.parse(text, "b.cfg").with_random_weights(1)


def image(batch: int = 2) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(2).random((batch, 3, 4, 6)).astype(np.float32)


def test_every_layer_in_order() -> None:
    net = network()
    outputs = list(run_all(net, image()))
    assert [index for index, _ in outputs] == list(range(6))
    for (_, output), layer in zip(outputs, net.layers, strict=True):
        assert output.shape == (2, *layer.shape)
        assert output.dtype == np.float32


def test_run_gives_the_heads() -> None:
    """The [softmax], not the [cost] after it."""
    net = network()
    (output,) = run(net, image())
    np.testing.assert_array_equal(output, dict(run_all(net, image()))[4])


def test_images_of_a_batch_do_not_touch() -> None:
    net = network()
    (together,) = run(net, image())
    for index in range(2):
        (alone,) = run(net, image()[index : index + 1])
        np.testing.assert_allclose(alone[0], together[index], rtol=0, atol=1e-6)


def test_an_input_of_another_type_is_converted() -> None:
    net = network()
    np.testing.assert_array_equal(run(net, image().astype(np.float64))[0], run(net, image())[0])


def test_outputs_that_nobody_reads_any_more_are_dropped() -> None:
    """Layer 0 lives until the shortcut has read it, layer 1 as long, and no layer as long as the network."""
    alive = []
    kept: list[weakref.ref[object]] = []
    for index, output in run_all(network(), image()):
        kept.append(weakref.ref(output))
        del output
        gc.collect()
        alive.append([number for number, reference in enumerate(kept) if reference() is not None])
        assert index == len(alive) - 1
    assert alive[1] == [0, 1]
    assert 0 not in alive[3]
    assert 1 not in alive[3]


RECURRENT = "[net]\ninputs=3\n[gru]\noutput=4\n[lstm]\noutput=2\n"


def test_states_go_on_and_are_the_callers() -> None:
    net = network(RECURRENT)
    x = np.ones((2, 3), np.float32)
    states = initial_states(net, 2)
    assert {index: {name: value.shape for name, value in own.items()} for index, own in states.items()} == {
        0: {"h": (2, 4)},
        1: {"h": (2, 2), "c": (2, 2)},
    }
    assert not any(value.any() for own in states.values() for value in own.values())
    (first,), (second,) = run(net, x, states), run(net, x, states)
    assert np.abs(first - second).max() > 1e-3
    (again,) = run(net, x)
    np.testing.assert_array_equal(again, first)


def test_errors() -> None:
    with pytest.raises(WeightsError, match="the network has no weights"):
        list(run_all(Network.parse(CFG), image()))
    with pytest.raises(DncError) as caught:
        list(run_all(network(), image()[:, :, :3]))
    assert str(caught.value) == "the input has shape (2, 3, 3, 6), the network wants (N, 3, 4, 6)"
