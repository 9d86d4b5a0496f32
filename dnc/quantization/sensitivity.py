"""The accuracy that less precision costs, and which layers stay in float32 so that mixed precision costs no more of it
than is allowed.

1. The noise of each layer alone is measured on a few images (`dnc.quantization.noise`). Those with most of it are worth
   most in float32.
2. The engine is built with the k noisiest layers in float32, and what it finds is measured on images: k is 0 if that is
   enough, else the least, by bisection, with which the drop stays below `max_drop`. A gain counts as a drop: it is the
   same noise, which on other images is a loss.

What is measured is what `dnc eval` measures, mAP@0.50 or top-1, on the images' labels. Where they have none, what the
float32 engine finds counts as the truth.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from dnc.errors import DatasetError
from dnc.evaluation.datasets import Dataset
from dnc.evaluation.metrics import evaluate
from dnc.files.writing import scratch_folder
from dnc.graph.pipeline import Pipeline
from dnc.graph.running import Running
from dnc.quantization.noise import Quantization, noises
from dnc.runtime.decoding import BoxHead
from dnc.runtime.engine import Engine, load
from dnc.runtime.inputs import Feeds, Inputs
from dnc.runtime.manifest import Manifest, write_folder
from dnc.runtime.memory import States
from dnc.targets import Target
from dnc.targets.base import Candidate
from dnc.typing import Progress, silent

__all__ = ["Mixed", "choose_float_layers", "drop"]

_IMAGES = 4
"""The number of images on which layers are compared with each other; their order was the same with 16."""
_OBJECT = 0.25
"""The confidence from which on a box of the float32 engine counts as an object that is there."""


@dataclass(frozen=True)
class Mixed:
    """The layers that mixed precision leaves in float32, and what the engine then reaches."""

    kept: tuple[int, ...]
    """Layers that stay in float32."""
    layers: int
    """The number of layers that could be quantized."""
    full: float
    """What the float32 engine reaches, from 0 to 1."""
    reached: float
    labelled: bool
    """Whether it is measured against labels, and not against what the float32 engine finds."""

    def __str__(self) -> str:
        against = "on the images' labels" if self.labelled else "against what float32 finds"
        return (
            f"{len(self.kept)} of {self.layers} layers in float32; {self.reached * 100:.2f} % {against}, "
            f"float32 {self.full * 100:.2f} %"
        )


def choose_float_layers(
    model: ir.Model,
    target: Target,
    manifest: Manifest,
    quantization: Quantization,
    dataset: Dataset,
    *,
    max_drop: float = 0.5,
    progress: Progress = silent,
) -> Mixed:
    """The layers that `quantization` has to leave out.

    Args:
        model: after the target's passes, in float32; it stays as it is.
        target: what the engine is measured on.
        manifest: the engine's heads, labels and preprocessing.
        quantization: makes the passes.
        dataset: the images to measure on, best with labels, and best not those of the final evaluation.
        max_drop: percentage points.
    """
    if manifest.preprocessing is None:
        raise DatasetError("the network takes no images, so nothing can be measured on any", hint="--precision int8")
    images = [entry.path for entry in dataset.entries[:_IMAGES]]
    noise = noises(model, quantization, _feeds(model, manifest, images), progress=progress)
    order = sorted(noise, key=lambda layer: -noise[layer])
    with _measure(dataset) as measure:
        progress("measuring float32")
        full = measure(model, target, manifest)

        def reached(count: int) -> float:
            progress(f"measuring with {count} of {len(order)} layers in float32")
            quantized = model.clone()
            Pipeline(quantization([str(layer) for layer in order[:count]])).run(quantized)
            return measure(quantized, target, manifest)

        def enough(value: float) -> bool:
            return abs(full - value) * 100 <= max_drop

        best, low, high = reached(0), 0, len(order)
        if enough(best):
            high = 0
        else:
            best = full
        while high - low > 1:
            middle = (low + high) // 2
            value = reached(middle)
            if enough(value):
                best, high = value, middle
            else:
                low = middle
    return Mixed(tuple(sorted(order[:high])), len(order), full, best, measure.labelled)


def drop(exact: Candidate, other: Candidate, dataset: Dataset, *, progress: Progress = silent) -> float:
    """By how many percentage points mAP@0.50 or top-1 of one engine differs from that of another, which is in float32.

    Raises DatasetError if the network takes no images.
    """
    with _measure(dataset) as measure:
        values = []
        for variant in (exact, other):
            progress(f"measuring {variant.target.title}")
            values.append(measure(variant.model, variant.target, variant.manifest))
    return abs(values[0] - values[1]) * 100


def _feeds(model: ir.Model, manifest: Manifest, images: Sequence[Path]) -> list[Feeds]:
    """What the model is fed for these images: each with what it remembers of those before, where it has a memory."""
    inputs = Inputs(manifest)
    running = Running(model, optimize=True) if manifest.carried else None
    feeds: list[Feeds] = []
    states: States = {}
    for image in images:
        feeds.append(inputs.batch([inputs.prepare(inputs.pixels(image))], states=states))
        if running is not None:
            states = inputs.following(list(running(feeds[-1]).values()))
    return feeds


class _Measure:
    """Builds engines and measures their accuracy. The first one is in float32: what it finds counts as the truth where
    images have no labels."""

    def __init__(self, dataset: Dataset, folder: Path) -> None:
        self._dataset = dataset
        self._folder = folder
        self._labels: Path | None = None
        self._classes: list[int] = []
        self._first = True
        self.labelled = True

    def __call__(self, model: ir.Model, target: Target, manifest: Manifest) -> float:
        """The accuracy of this engine, from 0 to 1."""
        if manifest.preprocessing is None or not manifest.heads:
            what = "the network finds nothing in images, so nothing can be measured on any"
            raise DatasetError(what, hint="--precision says what to take without measuring")
        engine = self._engine(model, target, manifest)
        first, self._first = self._first, False
        if first:
            try:
                return self._evaluate(engine)
            except DatasetError:
                self.labelled = False
                self._learn(engine)
        return self._evaluate(engine)

    def _evaluate(self, engine: Engine) -> float:
        if self._classes:
            return float(np.mean(np.equal(self._best(engine), self._classes)))
        report = evaluate(engine, self._dataset, like_darknet=True, labels=self._labels, allow_unlabelled=True)
        return float(report.figures[0].value)

    def _learn(self, engine: Engine) -> None:
        """Takes what the engine finds for the truth."""
        if not isinstance(engine.manifest.heads[-1], BoxHead):
            self._classes = self._best(engine)
            return
        self._labels = self._folder / "labels"
        self._labels.mkdir()
        frames = engine.stream([entry.path for entry in self._dataset.entries], confidence=_OBJECT, with_frames=True)
        for path, boxes in frames:
            # A box may reach out of the image, a label may not.
            lines = [
                " ".join(map(str, (box.class_id, *np.clip((box.center_x, box.center_y, box.width, box.height), 0, 1))))
                for box in boxes
            ]
            (self._labels / f"{path.stem}.txt").write_text("\n".join(lines), encoding="utf-8")

    def _best(self, engine: Engine) -> list[int]:
        """The class of each image."""
        return [best.class_id for (best,) in engine.stream([entry.path for entry in self._dataset.entries], top=1)]

    def _engine(self, model: ir.Model, target: Target, manifest: Manifest) -> Engine:
        folder = self._folder / "engine"
        with write_folder(folder) as writer:
            report = target.build(model, writer.folder, manifest)
            writer.finish(dataclasses.replace(manifest, report=report))
        return load(folder)


@contextmanager
def _measure(dataset: Dataset) -> Iterator[_Measure]:
    with scratch_folder("drop") as folder:
        yield _Measure(dataset, folder)
