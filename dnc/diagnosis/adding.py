"""What the noise of one layer is at the heads: it is added to the exact network, one layer at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from dnc.diagnosis.parts import Parts, with_noise
from dnc.diagnosis.weighing import by_channel
from dnc.graph.running import Running
from dnc.typing import Array, Progress

__all__ = ["Adding"]


class Adding:
    """Adds noise to the exact network: case 2."""

    def __init__(self, parts: Parts, heads: Sequence[str]) -> None:
        model = with_noise(parts, heads)
        self._heads = [value.name or "" for value in model.graph.outputs]
        self._inputs = [value.name or "" for value in model.graph.inputs]
        self._running = Running(model, optimize=True, spin=False)

    def __call__(
        self, values: Mapping[str, Array], noises: Mapping[int, Mapping[str, Array]], progress: Progress
    ) -> Iterator[tuple[int, float]]:
        """The noise of each layer at the heads, relative to their signal; the mean over heads."""
        clean = self._run(values, {})
        for number, (layer, noise) in enumerate(noises.items(), 1):
            progress(f"noise of layer {layer} at the heads, {number} of {len(noises)}")
            noisy = self._run(values, noise)
            shares = []
            for name in self._heads:
                # A head that computes nothing but 0 has no share.
                signal = float(by_channel(clean[name]).sum())
                shares.append(float(by_channel(noisy[name] - clean[name]).sum()) / signal if signal else 0.0)
                if name in noise and signal:
                    shares[-1] = float(by_channel(noise[name]).sum()) / signal
            yield layer, float(np.mean(shares))

    def _run(self, values: Mapping[str, Array], noise: Mapping[str, Array]) -> dict[str, Array]:
        feeds = {}
        for name in self._inputs:
            added = name.removeprefix("noise/")
            feeds[name] = values[name] if added == name else noise.get(added, np.zeros(1, np.float32))
        return self._running(feeds)
