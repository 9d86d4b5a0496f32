"""Measuring a calibration: the network runs on images, and every layer's values are counted.

The network is lowered with every layer as an output, and runs in float32 on ONNX Runtime. It goes through no passes:
they change what is computed by rounding alone, and ONNX Runtime's own fusions leave every output in place. Images are
preprocessed as the engine will.

While one image's values are counted, the next one runs: two images are in memory with the outputs of their layers,
besides one `Histogram` per layer. Counts are whole numbers whose sums do not depend on the order: the same images give
the same bytes. A network with memory sees the images as one sequence from zero, in the order in which they are given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dnc.darknet.layers.base import layer_value
from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.darknet.reference import initial_states
from dnc.errors import CalibrationError, ImageError, TargetError, warn
from dnc.graph.quantization import Channels
from dnc.graph.running import Running
from dnc.quantization.calibration import Calibration
from dnc.quantization.histograms import METHODS, PERCENTILE, Histogram
from dnc.runtime.images import read_content, read_image
from dnc.runtime.memory import carried_states
from dnc.runtime.preprocessing import Preprocessing
from dnc.runtime.runners.onnx import OnnxRunner
from dnc.typing import Array, Progress, silent

__all__ = ["Measured", "calibrate", "check_method", "measure"]

_Result = TypeVar("_Result")


def calibrate(
    network: Network,
    preprocessing: Preprocessing | None,
    images: Sequence[Path],
    *,
    method: str = "kl",
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
        self, method: str = "kl", *, symmetric: bool = False, percentile: float = PERCENTILE
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
    observers, seen = _observe(network, preprocessing, images, signed, skip_bad, exif, progress)
    progress("choosing the ranges")
    record = {"source": source, "count": len(seen["files"]), "seed": seed, **seen}
    return Measured(network.digest, preprocessing, record, observers)


class _Observer:
    """Counts the values of one tensor, and keeps the lowest and highest of each of its channels.

    Args:
        signed: bins on both sides of 0.
        by_channel: whether channels are looked at, if there are any.
    """

    def __init__(self, signed: bool, by_channel: bool) -> None:
        self.histogram = Histogram(signed)
        self._by_channel = by_channel
        self._ends: tuple[Array, Array] | None = None

    def add(self, array: Array) -> None:
        """Counts one image's values; raises CalibrationError if one of them is no number."""
        if self._by_channel and array.ndim == 4:
            rows = array.swapaxes(0, 1).reshape(array.shape[1], -1)
            low, high = rows.min(axis=1), rows.max(axis=1)
            before = self._ends
            self._ends = (low, high) if before is None else (np.minimum(before[0], low), np.maximum(before[1], high))
        self.histogram.add(array)

    @property
    def channels(self) -> Channels | None:
        """What was seen in each channel."""
        return None if self._ends is None else Channels(*(tuple(ends.tolist()) for ends in self._ends))


def _observe(
    network: Network,
    preprocessing: Preprocessing,
    images: Sequence[Path],
    signed: bool,
    skip_bad: bool,
    exif: bool | None,
    progress: Progress,
) -> tuple[dict[str, _Observer], dict[str, Any]]:
    """What was seen of each value by name; the digest and the names of the images that were read or skipped."""
    progress("preparing the network")
    run = _every_layer(network)

    def work(path: Path) -> tuple[bytes, dict[str, Array]]:
        content = read_content(path)
        array = preprocessing(read_image(content, preprocessing.channels, exif=exif))[None]
        return content, run(array)

    digest = hashlib.sha256()
    observers: dict[str, _Observer] = {}
    files: list[str] = []
    skipped: list[str] = []
    for number, (path, result) in enumerate(_ahead(work, images), 1):
        progress(f"{number}/{len(images)}  {path}")
        try:
            content, outputs = result()
        except ImageError as error:
            if not skip_bad:
                hint = f"{error.hint}; --skip-bad leaves it out".removeprefix("; ")
                raise ImageError(error.message, path, hint) from error
            warn(ImageError(error.message, path, "it is left out"))
            skipped.append(path.name)
            continue
        digest.update(f"{path.name}\0{len(content)}\0".encode(errors="surrogateescape") + content)
        files.append(path.name)
        for name in list(outputs):
            observer = observers.setdefault(name, _Observer(signed, by_channel=name != "input"))
            try:
                observer.add(outputs.pop(name))
            except CalibrationError as error:
                raise CalibrationError(f"{name} on this image: {error.message}", path, _NUMBERS) from error
    if not files:
        raise ImageError(f"none of the {len(images)} images can be read")
    return observers, {"sha256": digest.hexdigest(), "files": files, "skipped": skipped}


_NUMBERS = "do the weights belong to this cfg? `dnc weights inspect` looks into them"


def _ahead(function: Callable[[Path], _Result], paths: Sequence[Path]) -> Iterator[tuple[Path, Callable[[], _Result]]]:
    """Each path, and a function that gives its result or raises its error; the next one is computed meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(function, paths[0])
        for path, after in zip(paths, [*paths[1:], None], strict=True):
            current = following
            if after is not None:
                following = pool.submit(function, after)
            yield path, current.result
            # Or it would be held until the next one is asked for.
            del current


def _every_layer(network: Network) -> Callable[[Array], dict[str, Array]]:
    """A function that gives the values of the input and of every layer's output by name."""
    runner = OnnxRunner()
    if runner.missing():
        raise TargetError(f"calibrating needs {runner.missing()}, which is not installed", hint=runner.remedy())
    model = lower(network, batch=1, layers=range(len(network.layers)))
    # Threads that wait busily would take the time of those that count.
    running = Running(model, optimize=True, spin=False)
    states = {
        f"state{index:03d}.{name}": array
        for index, entries in initial_states(network, 1).items()
        for name, array in entries.items()
    }
    carried = carried_states(states)
    names = [layer_value(layer.index) for layer in network.layers]

    def run(array: Array) -> dict[str, Array]:
        outputs = running({"input": array, **states})
        states.update({name: outputs[name.replace("state", "next", 1)] for name in carried})
        return {"input": array, **{name: outputs[name] for name in names}}

    return run
