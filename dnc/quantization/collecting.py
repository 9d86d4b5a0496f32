"""Measuring a calibration: the network runs on images, and every layer's values are counted.

The network is lowered with every layer as an output, and runs in float32 on ONNX Runtime. It goes through no passes:
they change what is computed by rounding alone, and ONNX Runtime's own fusions leave every output in place. Images are
preprocessed as the engine will.

While one image's values are counted, the next one runs: two images are in memory with the outputs of their layers,
besides one `Histogram` per layer. Workers do so with parts of the images, whose histograms are added up. Counts are
whole numbers whose sums do not depend on the order: the same images give the same bytes. A network with memory sees the
images as one sequence from zero, in the order in which they are given.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dnc.darknet.layers.base import layer_value
from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.darknet.reference import initial_states
from dnc.errors import CalibrationError, ImageError, TargetError, warn
from dnc.evaluation.workers import Picture, Task, Work, Workers, each
from dnc.files.writing import scratch_folder
from dnc.graph.quantization import Channels
from dnc.graph.running import Running
from dnc.graph.serialization import serialize_to
from dnc.quantization.calibration import Calibration
from dnc.quantization.histograms import METHODS, PERCENTILE, Histogram
from dnc.runtime.memory import States, carried_states
from dnc.runtime.preprocessing import Preprocessing
from dnc.runtime.runners.onnx import MODEL, OnnxRunner
from dnc.typing import Array, Progress, silent

__all__ = ["Measured", "calibrate", "check_method", "measure"]

_PARTS = 60
"""Means are added up in parts of 2 ** -60."""


def calibrate(
    network: Network,
    preprocessing: Preprocessing | None,
    images: Sequence[Path],
    *,
    method: str = METHODS[0],
    symmetric: bool = False,
    percentile: float = PERCENTILE,
    **options: Any,
) -> Calibration:
    """Runs a network on images and chooses the range of every layer and of the input.

    Args:
        network, preprocessing, images, options: as for `measure`.
        method, symmetric, percentile: as for `Measured.calibration`.

    Raises:
        DncError: as `measure` and `check_method`.
    """
    check_method(method, percentile)
    return measure(network, preprocessing, images, signed=not symmetric, **options).calibration(
        method, symmetric=symmetric, percentile=percentile
    )


def check_method(method: str, percentile: float = PERCENTILE) -> None:
    """Raises CalibrationError for a method or a percentile that is not known."""
    if method not in METHODS or not 0 < percentile <= 100:
        known = f"methods: {', '.join(METHODS)}; percentiles: over 0, up to 100"
        raise CalibrationError(f"method {method} with percentile {percentile} is not known", hint=known)


@dataclass(frozen=True)
class Measured:
    """What was seen of every layer's values, from which any method chooses its ranges."""

    digest: str
    preprocessing: Preprocessing
    images: Mapping[str, Any]
    """`Calibration.images`."""
    observers: Mapping[str, _Observer]
    """By the names of `Calibration.ranges`."""

    def calibration(
        self, method: str = METHODS[0], *, symmetric: bool = False, percentile: float = PERCENTILE
    ) -> Calibration:
        """The ranges.

        Args:
            method: a name of `dnc.quantization.histograms.METHODS`.
            symmetric: one threshold for both sides of 0, else one for each, for which `signed` was measured.
            percentile: what the method percentile keeps, in percent.

        Raises:
            CalibrationError: as `check_method`.
        """
        check_method(method, percentile)
        ranges, histograms = {}, {}
        for name, observer in self.observers.items():
            chosen = observer.histogram.range(method, symmetric=symmetric, percentile=percentile)
            ranges[name] = replace(chosen, channels=observer.channels)
            histograms[name] = {**observer.histogram.summary(), "cut": observer.histogram.cut(chosen)}
        return Calibration(
            digest=self.digest,
            method=f"percentile {percentile:g}" if method == "percentile" else method,
            symmetric=symmetric,
            preprocessing=self.preprocessing.to_json(),
            images=self.images,
            ranges=ranges,
            histograms=histograms,
        )


def measure(
    network: Network,
    preprocessing: Preprocessing | None,
    images: Sequence[Path],
    *,
    signed: bool = True,
    skip_bad: bool = False,
    exif: bool | None = None,
    source: str = "",
    seed: int | None = None,
    progress: Progress = silent,
    workers: Workers | None = None,
) -> Measured:
    """Runs a network on images and counts the values of every layer and of the input.

    Args:
        network: the network, with weights.
        preprocessing: how its engine preprocesses: `dnc.compiler.compiling.preprocessing_for`.
        images: the images, each of which is used.
        signed: the two sides of 0 are counted apart, from which symmetric ranges can be read as well.
        skip_bad: an image that cannot be read is a warning.
        exif: whether images are turned as their EXIF says; see `Engine.__call__`.
        source: where the images come from, for the calibration's record.
        seed: what drew them, for the record.
        progress: is told what happens now.
        workers: who runs the network; this process if not given. What is measured is the same, to the bit.

    Raises:
        CalibrationError: there are no images or the network takes none, or it computes infinite numbers.
        ImageError: an image cannot be read, or none can.
        TargetError: ONNX Runtime is not installed.
        WeightsError: the network has no weights.
    """
    if preprocessing is None:
        raise CalibrationError("this network takes no images, so it cannot be calibrated on any", network.file)
    if not images:
        raise CalibrationError("there are no images to calibrate on", hint="100 typical ones are enough")
    observers, seen = _observe(network, preprocessing, images, signed, skip_bad, exif, progress, workers)
    progress("choosing the ranges")
    record = {"source": source, "count": len(seen["files"]), "seed": seed, **seen}
    return Measured(network.digest, preprocessing, record, observers)


class _Observer:
    """Counts the values of one tensor, and keeps the lowest and highest of each of its channels, and their mean.

    Images' means are added up as whole numbers of small parts, so that the sum does not depend on the order.

    Args:
        signed: bins on both sides of 0.
    """

    def __init__(self, signed: bool) -> None:
        self.histogram = Histogram(signed)
        self._ends: tuple[Array, Array] | None = None
        self._sums: list[int] = []
        self._images = 0

    def add(self, array: Array) -> None:
        """Counts one image's values; raises CalibrationError if one of them is no number."""
        self.histogram.add(array)
        if array.ndim == 4:
            rows = array.swapaxes(0, 1).reshape(array.shape[1], -1)
            parts = map(int, np.ldexp(rows.mean(axis=1, dtype=np.float64), _PARTS).tolist())
            self._reach((rows.min(axis=1), rows.max(axis=1)), list(parts), 1)

    def merge(self, other: _Observer) -> None:
        """Takes what another one has seen of other images."""
        self.histogram.merge(other.histogram)
        if other._ends is not None:
            self._reach(other._ends, other._sums, other._images)

    def _reach(self, ends: tuple[Array, Array], sums: list[int], images: int) -> None:
        before, self._images = self._ends, self._images + images
        if before is None:
            self._ends, self._sums = ends, sums
        else:
            self._ends = (np.minimum(before[0], ends[0]), np.maximum(before[1], ends[1]))
            self._sums = list(map(operator.add, self._sums, sums))

    @property
    def channels(self) -> Channels | None:
        """What was seen in each channel."""
        if self._ends is None:
            return None
        low, high = (tuple(ends.tolist()) for ends in self._ends)
        return Channels(low, high, tuple(total / (self._images << _PARTS) for total in self._sums))


def _observe(
    network: Network,
    preprocessing: Preprocessing,
    images: Sequence[Path],
    signed: bool,
    skip_bad: bool,
    exif: bool | None,
    progress: Progress,
    workers: Workers | None,
) -> tuple[dict[str, _Observer], dict[str, Any]]:
    """What was seen of each value by name; the digest and the names of the images that were read or skipped."""
    progress("preparing the network")
    digest = hashlib.sha256()
    files: list[str] = []
    skipped: list[str] = []
    observers: dict[str, _Observer] = {}

    def gather(found: dict[str, _Observer]) -> None:
        for name, observer in found.items():
            known = observers.setdefault(name, observer)
            if known is not observer:
                known.merge(observer)

    with ExitStack() as stack:
        folder = stack.enter_context(scratch_folder("calibrate"))
        work = _work(network, preprocessing, folder, signed, exif)
        if workers is None:
            task = work.open(folder, None)({})
            # Nobody else will open it.
            stack.close()
            found = each(task, map(Picture, images))
        else:
            found = workers.each(work, images, gather)
        for number, (picture, result) in enumerate(found, 1):
            path = picture.path
            progress(f"{number}/{len(images)}  {path}")
            try:
                result()
            except ImageError as error:
                if not skip_bad:
                    hint = f"{error.hint}; --skip-bad leaves it out".removeprefix("; ")
                    raise ImageError(error.message, path, hint) from error
                warn(ImageError(error.message, path, "it is left out"))
                skipped.append(path.name)
                continue
            content = picture.content
            digest.update(f"{path.name}\0{len(content)}\0".encode(errors="surrogateescape") + content)
            files.append(path.name)
        if workers is None:
            gather(task.rest())
    if not files:
        raise ImageError(f"none of the {len(images)} images can be read")
    return observers, {"sha256": digest.hexdigest(), "files": files, "skipped": skipped}


_NUMBERS = "do the weights belong to this cfg? `dnc weights inspect` looks into them"


def _work(network: Network, preprocessing: Preprocessing, folder: Path, signed: bool, exif: bool | None) -> _EveryLayer:
    """Writes the network into a folder, with every layer as an output."""
    runner = OnnxRunner()
    if runner.missing():
        raise TargetError(f"calibrating needs {runner.missing()}, which is not installed", hint=runner.remedy())
    serialize_to(lower(network, batch=1, layers=range(len(network.layers))), folder / MODEL)
    states = {
        f"state{index:03d}.{name}": array.shape
        for index, entries in initial_states(network, 1).items()
        for name, array in entries.items()
    }
    names = tuple(layer_value(layer.index) for layer in network.layers)
    return _EveryLayer(folder, (MODEL,), bool(carried_states(states)), preprocessing, states, names, signed, exif)


@dataclass(frozen=True)
class _EveryLayer(Work):
    """Opens the network: see `_Counting`."""

    folder: Path
    files: tuple[str, ...]
    in_order: bool
    preprocessing: Preprocessing
    shapes: Mapping[str, tuple[int, ...]]
    """Of the states."""
    names: tuple[str, ...]
    """Of the layers' outputs."""
    signed: bool
    exif: bool | None

    def open(self, folder: Path, threads: int | None) -> Callable[[States], Task]:
        # Threads that wait busily would take the time of those that count.
        running = Running(folder / MODEL, spin=False, threads=threads)
        return lambda states: _Counting(self, running, states)


class _Counting(Task):
    """Counts the values of the input and of every layer's output."""

    def __init__(self, work: _EveryLayer, running: Running, states: States) -> None:
        self._work, self._running = work, running
        self._initial = {name: np.zeros(shape, np.float32) for name, shape in work.shapes.items()}
        self._carried = carried_states(self._initial)
        self._observers: dict[str, _Observer] = {}
        self.states = dict(states)

    def read(self, picture: Picture) -> tuple[Path, dict[str, Array]]:
        """The values of an image, by name."""
        preprocessing = self._work.preprocessing
        # Its digest is wanted, and it is read once.
        _ = picture.content
        array = preprocessing(picture.pixels(preprocessing.channels, self._work.exif))[None]
        outputs = self._running({"input": array, **self._initial, **self.states})
        self.states.update({name: outputs[name.replace("state", "next", 1)] for name in self._carried})
        return picture.path, {"input": array, **{name: outputs[name] for name in self._work.names}}

    def see(self, read: tuple[Path, dict[str, Array]]) -> None:
        path, outputs = read
        for name in list(outputs):
            observer = self._observers.setdefault(name, _Observer(self._work.signed))
            try:
                observer.add(outputs.pop(name))
            except CalibrationError as error:
                raise CalibrationError(f"{name} on this image: {error.message}", path, _NUMBERS) from error

    def rest(self) -> dict[str, _Observer]:
        return self._observers
