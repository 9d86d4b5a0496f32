"""What networks with memory give for a sequence of frames, by the reference interpreter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dnc.darknet.layers.base import States
from dnc.darknet.network import Network
from dnc.darknet.reference import initial_states, run
from dnc.runtime.decoding import Detection
from dnc.runtime.engine import Engine

__all__ = ["CLOSE", "Frames", "forget_history", "interpreted", "near", "noise", "numbers"]

Frames = list[np.ndarray]

CLOSE = 1e-3
"""Of confidences and edges in pixels: engines sum in another order than the interpreter."""


def noise(count: int) -> Frames:
    """Frames of several sizes, so that a result in the wrong place is seen."""
    generator = np.random.default_rng(4)
    return [generator.integers(0, 256, (20 + n % 3, 30 + n % 2, 3), np.uint8) for n in range(count)]


def interpreted(engine: Engine, frames: Sequence[np.ndarray], *, history: bool = False, **options: Any) -> list[Any]:
    """What the reference interpreter gives, of the cfg and the weights that lie beside an engine, which decodes.

    Args:
        history: whether [history] gets the frames before, as in Darknet's training alone.
    """
    cfg = engine.folder.with_name(f"{engine.manifest.name}.cfg")
    network = Network.load(cfg, cfg.with_suffix(".weights"))
    states = initial_states(network)
    assert engine.manifest.preprocessing is not None
    preprocessed = [engine.manifest.preprocessing(frame)[None] for frame in frames]
    results = []
    for x, frame in zip(preprocessed, frames, strict=True):
        results.append(engine.postprocess(run(network, x, states), (frame.shape[1], frame.shape[0]), **options))
        if not history:
            forget_history(network, states)
    return results


def forget_history(network: Network, states: dict[int, States]) -> None:
    """Sets the frames of [history] to zero, as they are for each image at Darknet's inference."""
    for index, zero in initial_states(network).items():
        if network.layers[index].name == "history":
            states[index] = zero


def numbers(results: Sequence[Sequence[Any]]) -> list[list[tuple[float, ...]]]:
    """Boxes or classes of each frame, by place: of two that are as sure, rounding makes either the first."""
    return [
        sorted((one.class_id, *(one.box if isinstance(one, Detection) else ()), one.confidence) for one in result)
        for result in results
    ]


def near(found: Sequence[Sequence[Any]], expected: Sequence[Sequence[Any]]) -> None:
    """Fails if results are not the same but for rounding."""
    assert [len(one) for one in found] == [len(one) for one in expected]
    for one, other in zip(numbers(found), numbers(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=CLOSE, atol=CLOSE)
