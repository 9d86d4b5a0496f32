"""Proof that a pass kept a network's numbers: the outputs before it and after it, on noise and on a photograph.

    error = max |after - before| / max |before|, of each output; the largest of them counts

Both models run in ONNX Runtime with its own optimizations off, so that no fusion of its own hides or adds a difference.
What a pass leaves is what the next one is compared with: a network on which n passes applied is run n + 1 times.

A deep network may turn rounding into more than a pass declares, whatever the pass does. Where an error is too large,
the last bits of all weights and inputs are therefore turned at random, and what that does to the outputs is measured: a
pass that is not exact by nature may change them by as much as some such roundings would.

Detections that the graph itself suppressed are compared by their number alone, because rounding turns the order of
boxes with nearly the same score; the maps of the heads, which they are made of, are compared like any output.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from dnc.errors import PassError
from dnc.graph.running import Running
from dnc.runtime.images import Pixels, read_image
from dnc.runtime.inputs import Feeds, noise, prepare, thresholds
from dnc.runtime.preprocessing import Preprocessing
from dnc.typing import Array

__all__ = ["Verifier", "differs", "error_between", "feeds_for", "photograph"]

_ROUNDINGS = 16
"""How many times the effect of rounding everything once an error may have: a factor of 4 was seen."""
_COUNTED = "detections"
_FEW = 0.05
"""By which share the number of detections may differ: those whose score lies at the threshold."""


def photograph(channels: int = 3) -> Pixels:
    """A photograph (H, W, channels), RGB: Grace Hopper's portrait by the US Navy, which is in the public domain. For a
    network of other than 1, 3 or 4 channels these three are repeated."""
    image = read_image((importlib.resources.files("dnc.graph") / "photograph.jpg").read_bytes())
    return image if channels in (1, 3, 4) else image[:, :, np.arange(channels) % 3]


def feeds_for(model: ir.Model, preprocessing: Preprocessing | None = None, *, images: int = 2, seed: int = 0) -> Feeds:
    """Inputs for every input of a lowered model: noise and, if it takes images, the photograph.

    Args:
        model: the model; a fixed batch size of it wins over `images`.
        preprocessing: how images become its input; None if it takes none.
        images: how many of a free batch. The last is the photograph; if there is but one, its left half is noise.
        seed: of the noise.
    """
    generator = np.random.default_rng(seed)
    feeds: Feeds = {}
    for value in model.graph.inputs:
        name, shape = value.name or "", value.shape
        assert shape is not None
        assert value.dtype is not None
        batch = shape[0] if len(shape) and isinstance(shape[0], int) else images
        sides = [side for side in shape[1:] if isinstance(side, int)]
        extra = thresholds(batch)
        if name in extra:
            feeds[name] = extra[name]
        elif name != "input":
            feeds[name] = generator.normal(0, 0.1, (batch, *sides)).astype(np.float32)
        elif preprocessing is None:
            feeds[name] = noise((batch, *sides), np.float32, generator)
        else:
            kind = value.dtype.numpy()
            image = prepare(photograph(preprocessing.channels), preprocessing, kind)
            feeds[name] = x = noise((batch, *image.shape), kind, generator)
            x[-1] = _half(x[-1], image) if batch == 1 else image
    return feeds


def _half(noise: Array, image: Array) -> Array:
    """The image with noise in its left half: (H, W, C) pixels or (C, H, W)."""
    axis = 1 if image.dtype == np.uint8 else 2
    return np.where(np.arange(image.shape[axis]).reshape(-1, *[1] * (2 - axis)) < image.shape[axis] // 2, noise, image)


class Verifier:
    """Compares a model with what it was before, pass after pass.

    Args:
        feeds: the inputs by name, as `feeds_for` makes them.
        watch: values to compare besides the outputs, as long as they are in the graph.
        release: is called now and then while weights are computed, and gives back the memory that they were read into.
    """

    def __init__(
        self, feeds: Mapping[str, Array], watch: Iterable[str] = (), release: Callable[[], None] = lambda: None
    ) -> None:
        self._feeds = dict(feeds)
        self._watch = tuple(watch)
        self._release = release
        self._before: dict[str, Array] = {}

    def start(self, model: ir.Model) -> None:
        """Runs the model that passes are about to change."""
        self._before = self._run(model)

    def compare(self, model: ir.Model, tolerance: float) -> float:
        """The error of the model against the one before it; it is what the next one is compared with. Raises PassError
        if the error is larger than `tolerance`, or an output has another shape or is gone."""
        after = self._run(model)
        rounded: dict[str, Array] | None = None
        worst = 0.0
        for name, expected in self._before.items():
            if name not in after and name in self._watch:
                continue
            if name not in after:
                raise PassError(f"output {name} is gone")
            found = after[name]
            if name == _COUNTED:
                if abs(len(found) - len(expected)) > 1 + _FEW * len(expected):
                    raise PassError(f"it changed the outputs: {len(expected)} detections before, {len(found)} after")
                continue
            if found.shape != expected.shape:
                raise PassError(f"it changed the outputs: {name} was {expected.shape}, is {found.shape}")
            error = error_between(found, expected)
            # Not >: NaN is no small error.
            if not error <= tolerance:
                if tolerance and rounded is None:
                    rounded = self._run(model, rounding=True)
                noise = 0.0 if rounded is None else error_between(rounded[name], found)
                if not error <= _ROUNDINGS * noise:
                    rounding = f", {noise:.1e} by rounding" if tolerance else ""
                    raise PassError(
                        f"it changed the outputs: {name} by {error:.1e} of its largest value, "
                        f"declared {tolerance:.1e}{rounding}"
                    )
            worst = max(worst, error)
        self._before = after
        return worst

    def _run(self, model: ir.Model, rounding: bool = False) -> dict[str, Array]:
        """All outputs; with `rounding`, of weights and inputs whose last bits were turned."""
        running = Running(model, watch=self._watch, release=self._release)
        return running(self._feeds, partial(_rounded, generator=np.random.default_rng(0)) if rounding else None)


def _rounded(array: Array, generator: np.random.Generator) -> Array:
    """float32 values, each one step up, one step down or as it was; anything else as it is."""
    if array.dtype != np.float32:
        return array
    directions = generator.choice(np.array([-np.inf, np.inf], np.float32), array.shape)
    return np.where(generator.random(array.shape, np.float32) < 0.5, np.nextafter(array, directions), array)


def error_between(found: Array, expected: Array) -> float:
    """The largest difference relative to the largest expected value; NaN where one has no number and the other has."""
    if not expected.size:
        return 0.0
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(found)):
        return float("nan")
    wide = np.where(finite, expected, 0).astype(np.float64)
    difference = float(np.abs(np.where(finite, found, 0) - wide).max())
    return difference / (float(np.abs(wide).max()) or 1.0)


def differs(outputs: Sequence[Array], expected: Sequence[Array], bound: float) -> str:
    """How outputs are others than those of something that computes the same in another way; empty if they are not.

    Args:
        bound: by how much of its largest value an output may be off.
    """
    for place, (one, other) in enumerate(zip(outputs, expected, strict=True)):
        error = error_between(one, other) if one.shape == other.shape else float("nan")
        if not error <= bound:
            return f"output {place} is off by {error:.2g} of its largest value, {bound:.2g} would be rounding"
    return ""
