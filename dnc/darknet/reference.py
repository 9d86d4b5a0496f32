"""The reference interpreter: runs a Network layer by layer in numpy, straight from Darknet's formulas.

It shares no code with the ONNX graph but the Layer classes' geometry, so that it can serve as the oracle where
Darknet's own numbers are not at hand.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dnc.darknet.layers.base import Array, States
from dnc.darknet.network import Network
from dnc.errors import DncError

__all__ = ["initial_states", "run", "run_all"]


def initial_states(network: Network, batch: int = 1) -> dict[int, States]:
    """Zero states of the recurrent layers, by layer index."""
    return {
        layer.index: {name: np.zeros((batch, *shape), np.float32) for name, shape in layer.states().items()}
        for layer in network.layers
        if layer.states()
    }


def run_all(network: Network, x: Array, states: dict[int, States] | None = None) -> Iterator[tuple[int, Array]]:
    """Yields (index, output) of every layer, outputs of shape (N, *layer.shape).

    An output is dropped once no later layer reads it, so that memory stays near that of the largest few.

    Args:
        x: the input, (N, *network.input_shape), float32 in [0, 1].
        states: states of the recurrent layers, updated in place; zero if not given.

    Raises:
        DncError: the input has another shape.
    """
    network.need_weights()
    x = np.asarray(x, np.float32)
    if x.shape[1:] != network.input_shape:
        wanted = ", ".join(map(str, network.input_shape))
        raise DncError(f"the input has shape {x.shape}, the network wants (N, {wanted})")
    states = initial_states(network, len(x)) if states is None else states
    last_use = {source: layer.index for layer in network.layers for source in layer.sources}
    values = {-1: x}
    for layer, arrays in zip(network.layers, network.arrays, strict=True):
        inputs = [values[source] for source in layer.sources]
        values[layer.index] = layer.reference(inputs, arrays, states.get(layer.index, {}))
        yield layer.index, values[layer.index]
        for source in set(layer.sources):
            if last_use[source] == layer.index:
                del values[source]


def run(network: Network, x: Array, states: dict[int, States] | None = None) -> list[Array]:
    """The outputs of the heads in cfg order, or of the last layer; see `run_all`."""
    wanted = {layer.index for layer in network.outputs}
    return [output for index, output in run_all(network, x, states) if index in wanted]
