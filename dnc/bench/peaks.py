"""The most that this machine does: measured, never looked up.

    compute      operations a second of the engine's own library, on the convolutions that suit it best, in the same
                 precision and with the same threads; the fastest run of several shapes counts
    bits         operations a second on single bits, on the same convolutions with xnor=1, where the engine computes so
    bandwidth    bytes a second that all threads together copy, read and written, of more than the last cache holds

The compute peak is what the library reaches where nothing is in its way, which is what the layers of a network can be
held against. What a layer moves within the caches may exceed the bandwidth.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dnc.bench.machine import last_cache
from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.files.writing import scratch_folder
from dnc.graph.composites import inline_composites
from dnc.graph.quantization import Range, attach_ranges
from dnc.targets import Target
from dnc.typing import Progress, silent

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Peaks", "bandwidth", "compute", "peaks"]

_SHAPES = {"3x3": (256, 3, 28), "1x1": (512, 1, 28), "1x1 large": (256, 1, 64)}
"""Channels in and out, kernel, height and width."""
_SECONDS = 0.7
_UNKNOWN_CACHE = 64 << 20


@dataclass(frozen=True)
class Peaks:
    """Operations and bytes a second."""

    compute: float
    bandwidth: float
    threads: int
    precision: str
    bits: float = 0.0
    """0 where it was not measured."""

    @property
    def ridge(self) -> float:
        """Operations for each byte from which on computing takes longer than moving."""
        return self.compute / self.bandwidth

    def computing(self, operations: float, bits: float = 0.0) -> float:
        """The fewest seconds that computing takes."""
        return operations / self.compute + (bits / self.bits if self.bits else 0.0)

    def attainable(self, operations: float, moved: float, bits: float = 0.0) -> float:
        """The fewest seconds that work can take."""
        return max(self.computing(operations, bits), moved / self.bandwidth)


def peaks(target: Target, threads: int, progress: Progress = silent, *, bits: bool = False) -> Peaks:
    """Measures the peaks in the precision of the target's options, that of single bits if it is wanted. Raises
    TargetError if the engine does not run."""
    precision = str(target.options.get("precision", "fp32"))
    progress("measuring the compute peak")
    operations = compute(target, threads)
    single = 0.0
    if bits:
        progress("measuring the peak of operations on bits")
        single = compute(target, threads, xnor=True)
    progress("measuring the bandwidth")
    return Peaks(operations, bandwidth(threads), threads, precision, single)


def compute(
    target: Target, threads: int, clock: Callable[[], float] = time.perf_counter, *, xnor: bool = False
) -> float:
    """Operations a second; with `xnor`, of convolutions of signs, on single bits."""
    best = 0.0
    for channels, kernel, side in _SHAPES.values():
        model = _convolution(channels, kernel, side, target, xnor)
        with scratch_folder("peak") as scratch:
            target.build(model, scratch)
            session = target.runner().open(scratch, threads)
            x = {"input": np.random.default_rng(0).random((1, channels, side, side), np.float32)}
            fastest, start = np.inf, clock()
            while clock() - start < _SECONDS or fastest == np.inf:
                before = clock()
                session.run(x)
                fastest = min(fastest, clock() - before)
            del session
        best = max(best, 2 * channels * channels * kernel * kernel * side * side / fastest)
    return best


def _convolution(channels: int, kernel: int, side: int, target: Target, xnor: bool = False) -> ir.Model:
    """Writes a large convolution; with 8 bits a small one follows, as the last one of a network stays in float."""
    text = (
        f"[net]\nwidth={side}\nheight={side}\nchannels={channels}\n"
        f"[convolutional]\nfilters={channels}\nsize={kernel}\npad=1\nxnor={xnor:d}\nactivation=linear\n"
    )
    if target.needs_calibration:
        text += "[convolutional]\nfilters=1\nsize=1\nactivation=linear\n"
    model = lower(Network.parse(text).with_random_weights(0), batch=1)
    # Noise from 0 to 1 goes in; what comes out need not be right.
    attach_ranges(model, dict.fromkeys(("input", "layer000"), Range(0, 1)))
    inline_composites(model, keep=target.composites | target.pipeline().expanded())
    target.pipeline().run(model)
    return model


def bandwidth(
    threads: int, size: int | None = None, seconds: float = _SECONDS, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Bytes a second that are read and written.

    Args:
        threads: that copy at the same time, each its own part.
        size: bytes to copy; four times the last cache if not given.
        seconds: how long to measure.
    """
    total = size or 4 * (last_cache() or _UNKNOWN_CACHE)
    parts = [np.ones(total // threads // 8) for _ in range(threads)]
    copies = [np.zeros_like(part) for part in parts]
    moved = 2 * sum(part.nbytes for part in parts)
    fastest = np.inf
    with ThreadPoolExecutor(threads) as pool:
        start = clock()
        while clock() - start < seconds or fastest == np.inf:
            before = clock()
            list(pool.map(np.copyto, copies, parts))
            fastest = min(fastest, clock() - before)
    return moved / fastest
