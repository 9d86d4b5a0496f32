"""The accuracy that less precision costs, and which layers stay in float32 so that mixed precision costs no more of it
than is allowed.

1. The noise of each layer alone is measured on a few images (`dnc.quantization.noise`). Noises add up, so that the
   layers with most of it for what they cost are worth most in float32.
2. The engine with all layers in 8 bits is built, and what it finds is measured on images. If it loses too much, the
   first of them stay in float32, until less noise is left: differences between two engines are as random as the noise
   is, so that they go with its square root. An engine confirms that, or even less is left; where one does, others with
   fewer layers in float32 are tried. After `_ENGINES` of them the best one is taken, all of the network in float32 if
   there is none. A gain counts as a drop: it is the same noise, which on other images is a loss.

What is measured is what `dnc eval` measures, mAP@0.50 or top-1, on the images' labels. Where they have none, what the
float32 engine finds counts as the truth. What was measured once is kept (`dnc.quantization.remembered`), so that
another `max_drop` is asked in no time.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from dnc.errors import DatasetError, TargetError
from dnc.evaluation.datasets import Dataset
from dnc.evaluation.metrics import evaluate
from dnc.evaluation.truth import read_truth
from dnc.files.writing import scratch_folder
from dnc.graph.pipeline import Pipeline
from dnc.graph.running import Running
from dnc.graph.work import described_work
from dnc.passes.shared.reduced_precision import layer_of
from dnc.quantization.noise import Quantization, enough_images, noises
from dnc.quantization.remembered import Remembered, digest_of, digest_of_model
from dnc.runtime.arithmetic import this_isa
from dnc.runtime.decoding import BoxHead
from dnc.runtime.engine import Engine, load
from dnc.runtime.inputs import Feeds, Inputs
from dnc.runtime.manifest import Manifest, write_folder
from dnc.runtime.memory import States
from dnc.runtime.timing import device_name
from dnc.targets import Target
from dnc.targets.base import Candidate
from dnc.typing import Progress, is_number, silent

__all__ = ["Measure", "Mixed", "choose_float_layers", "drop", "measuring"]

_ENGINES = 4
"""Engines with 8 bits that are measured, at most."""
_STEPS = (1 / 16, 1 / 4)
"""What may be left of the noise that is too much, at the least and at the most."""
_CLASSES = 1 << 30
"""Of any network, where labels are only compared."""
_OBJECT = 0.25
"""The confidence from which on a box of the float32 engine counts as an object that is there."""


@dataclass(frozen=True)
class Mixed:
    """The layers that mixed precision leaves in float32, and what the engine then reaches."""

    kept: tuple[int, ...]
    """Layers that stay in float32; where nothing is quantized, all of the network's."""
    layers: int
    """The number of layers that could be quantized."""
    full: float
    """What the float32 engine reaches, from 0 to 1."""
    reached: float
    labelled: bool
    """Whether it is measured against labels, and not against what the float32 engine finds."""

    def __str__(self) -> str:
        against = "on the images' labels" if self.labelled else "against what float32 finds"
        kept = min(len(self.kept), self.layers)
        return (
            f"{kept} of {self.layers} layers in float32; {self.reached * 100:.2f} % {against}, "
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
    cache: Path | None = None,
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
        cache: the folder in which measurements are kept (`dnc.files.places.cache_dir`); none are if not given.
    """
    if manifest.preprocessing is None:
        raise DatasetError("the network takes no images, so nothing can be measured on any", hint="--precision int8")
    noise = noises(model, quantization, _feeds(model, manifest, dataset), cache=cache, progress=progress)
    cost = _costs(model, manifest)
    order = sorted(noise, key=lambda layer: -noise[layer] / cost.get(layer, 1.0))
    with measuring(dataset, cache, progress) as measure:
        full = measure(Candidate(target, model, manifest), "float32")

        def reached(count: int) -> float:
            quantized = model.clone()
            Pipeline(quantization([str(layer) for layer in order[:count]])).run(quantized)
            return measure(Candidate(target, quantized, manifest), f"{count} of {len(order)} layers in float32")

        count, best = _fewest(reached, [noise[layer] for layer in order], full, max_drop)
    if count < len(order):
        return Mixed(tuple(sorted(order[:count])), len(order), full, best, measure.labelled)
    # What moves and joins numbers, too: 8 bits there are for those around it.
    every = {number for node in model.graph if (number := layer_of(node)) is not None}
    return Mixed(tuple(sorted(every)), len(order), full, full, measure.labelled)


def _costs(model: ir.Model, manifest: Manifest) -> dict[int, float]:
    """What it costs to compute a layer in float32, by its number: its operations, as multiples of the mean layer's, and
    one more for turning numbers into 8 bits and back on either side."""
    work = {item["place"][1:]: item["operations"] for item in described_work(model, manifest)}
    found = {int(place): operations for place, operations in work.items() if place.isdecimal()}
    mean = sum(found.values()) / max(len(found), 1)
    return {layer: 1 + operations / mean for layer, operations in found.items()} if mean else {}


def _fewest(reached: Callable[[int], float], noise: Sequence[float], full: float, max_drop: float) -> tuple[int, float]:
    """How many layers stay in float32, and what is reached then.

    Args:
        reached: builds and measures an engine with so many in float32.
        noise: of each layer, in the order in which they get there.
        full: what is reached in float32.
        max_drop: percentage points.
    """
    left = [*itertools.accumulate(reversed(noise), initial=0.0)][::-1]
    low, high, best = -1, len(noise), full
    count = 0
    for _ in range(_ENGINES):
        if high - low < 2:
            break
        value = reached(count)
        loss = abs(full - value) * 100
        if loss <= max_drop:
            high, best = count, value
        else:
            low = count
            share = min(max((max_drop / loss) ** 2, _STEPS[0]), _STEPS[1])
        wanted = left[low] * share if high == len(noise) else math.sqrt(left[low] * left[high])
        # Of an infinite noise nothing is left to be compared.
        count = next((place for place, noise_left in enumerate(left) if noise_left <= wanted), high)
        count = min(max(count, low + 1), high - 1)
    return high, best


def drop(
    exact: Candidate, other: Candidate, dataset: Dataset, *, cache: Path | None = None, progress: Progress = silent
) -> float:
    """By how many percentage points mAP@0.50 or top-1 of one engine differs from that of another, which is in float32.

    Raises DatasetError if the network takes no images.
    """
    with measuring(dataset, cache, progress) as measure:
        values = [measure(variant, variant.target.title) for variant in (exact, other)]
    return abs(values[0] - values[1]) * 100


def _feeds(model: ir.Model, manifest: Manifest, dataset: Dataset) -> list[Feeds]:
    """What the model is fed for some images: each with what it remembers of those before, where it has a memory."""
    inputs = Inputs(manifest)
    running = Running(model, optimize=True) if manifest.carried else None
    feeds: list[Feeds] = []
    states: States = {}
    for entry in dataset.entries[: enough_images(model)]:
        feeds.append(inputs.batch([inputs.prepare(inputs.pixels(entry.path))], states=states))
        if running is not None:
            states = inputs.following(list(running(feeds[-1]).values()))
    return feeds


class Measure:
    """Builds engines and measures their accuracy. The first one is in float32: what it finds counts as the truth where
    images have no labels."""

    def __init__(self, dataset: Dataset, folder: Path, cache: Path | None, progress: Progress) -> None:
        self._dataset = dataset
        self._folder = folder
        self._progress = progress
        self._remembered = Remembered(cache)
        self._images = "" if cache is None else _digest_of_images(dataset)
        self._exact: Candidate | None = None
        self._digest = ""
        self._labels: Path | None = None
        self._classes: list[int] = []
        self.labelled = True
        """Whether it is measured against labels, and not against what the first engine finds."""

    def __call__(self, candidate: Candidate, what: str) -> float:
        """The accuracy of this engine, from 0 to 1; `what` it is is told."""
        self._progress(f"measuring {what}")
        manifest = candidate.manifest
        if manifest.preprocessing is None or not manifest.heads:
            reason = "the network finds nothing in images, so nothing can be measured on any"
            raise DatasetError(reason, hint="--precision says what to take without measuring")
        digest = _digest_of(candidate) if self._images else ""
        if self._exact is None:
            self._exact, self._digest = candidate, digest
        key = digest_of([digest, self._digest, self._images])
        known = self._remembered.get(key)
        if isinstance(known, dict) and is_number(value := known.get("accuracy")) and 0 <= value <= 1:
            self.labelled = known.get("labelled") is not False
            return float(value)
        value = self._accuracy(candidate, what)
        self._remembered.put(key, {"accuracy": value, "labelled": self.labelled})
        return value

    def _accuracy(self, candidate: Candidate, what: str) -> float:
        assert self._exact is not None
        if candidate is self._exact:
            engine = self._engine(candidate)
            try:
                return self._evaluate(engine, what)
            except DatasetError:
                self.labelled = False
                self._learn(engine)
            return self._evaluate(engine, what)
        if not self.labelled and self._labels is None and not self._classes:
            # What the float32 engine reaches was known.
            self._learn(self._engine(self._exact))
        return self._evaluate(self._engine(candidate), what)

    def _evaluate(self, engine: Engine, what: str) -> float:
        if self._classes:
            return float(np.mean(np.equal(self._best(engine), self._classes)))
        report = evaluate(
            engine,
            self._dataset,
            like_darknet=True,
            labels=self._labels,
            allow_unlabelled=True,
            progress=lambda done, count: self._progress(f"measuring {what}, image {done} of {count}"),
        )
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

    def _engine(self, candidate: Candidate) -> Engine:
        folder = self._folder / "engine"
        with write_folder(folder) as writer:
            report = candidate.target.build(candidate.model, writer.folder, candidate.manifest)
            writer.finish(dataclasses.replace(candidate.manifest, report=report))
        try:
            engine = load(folder)
            # It is opened when it is first used.
            _ = engine.session
        except TargetError as error:
            what = f"accuracy is measured on engines, which cannot run here: {error.message}"
            hint = "compile where they can; or --precision int8, with --keep LAYERS for what is to stay in float"
            raise TargetError(what, hint=hint) from error
        return engine


def _digest_of(candidate: Candidate) -> str:
    """Of all that decides what an engine finds here."""
    target, manifest = candidate.target, candidate.manifest
    takes = (
        manifest.preprocessing,
        manifest.heads,
        manifest.decode,
        manifest.batch,
        manifest.input_dtype,
        manifest.labels,
    )
    runs = (target.name, target.options, target.engine(), device_name(), this_isa(), target.versions())
    return digest_of([digest_of_model(candidate.model), repr(takes), repr(runs)])


def _digest_of_images(dataset: Dataset) -> str:
    """Of images and of what is known of them. What cannot be read is told by who needs it."""
    parts: list[str | bytes] = [repr(dataset.data), *map(repr, dataset.entries)]
    files = [entry.path for entry in dataset.entries]
    with suppress(DatasetError):
        files += [found for found in [dataset.data and dataset.data.find("labels")] if found]
    for path in files:
        with suppress(OSError):
            parts.append(path.read_bytes())
    with suppress(DatasetError):
        for truth in read_truth(dataset.entries, _CLASSES, allow_unlabelled=True):
            parts += [np.ascontiguousarray(array).tobytes() for array in vars(truth).values()]
    return digest_of(parts)


@contextmanager
def measuring(dataset: Dataset, cache: Path | None, progress: Progress) -> Iterator[Measure]:
    """What measures engines on these images; what it measured is kept in `cache`, if there is one."""
    with scratch_folder("drop") as folder:
        yield Measure(dataset, folder, cache, progress)
