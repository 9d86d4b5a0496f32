"""Pictures of a measurement: bars with their intervals, and a roofline for each engine whose layers were measured.

bars        median latency of each engine and peer
roofline    both axes logarithmic: operations for each byte, operations a second; the roof is what the measured
            peaks allow, a dot is a section of the cfg, its area its share of the time
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from dnc.bench.layers import Layers
from dnc.bench.measure import Recording
from dnc.errors import DncError
from dnc.files.places import cache_dir
from dnc.files.writing import whole_file

__all__ = ["FORMATS", "import_matplotlib", "plot"]

FORMATS = (".png", ".svg")
_NAMED = 5
"""Dots that have their names beside them: those that take longest."""


def import_matplotlib(path: Path) -> ModuleType:
    """Matplotlib, that draws into files. Raises DncError if it is not installed, or the file's format is another
    one."""
    if path.suffix.lower() not in FORMATS:
        raise DncError(f"a picture is {' or '.join(FORMATS)}, not '{path.suffix}'", path)
    # Its list of fonts stands with all else that can be made again.
    os.environ.setdefault("MPLCONFIGDIR", str(cache_dir(to_write=True) / "matplotlib"))
    try:
        matplotlib = importlib.import_module("matplotlib")
        matplotlib.use("agg")
        pyplot = importlib.import_module("matplotlib.pyplot")
    except ImportError as error:
        hint = 'pip install "darknet-compiler[plot]", or pip install matplotlib'
        raise DncError("--plot needs matplotlib, which is not installed", hint=hint) from error
    return pyplot


def plot(recording: Recording, layers: Sequence[Layers], path: Path) -> None:
    """Draws a recording, and the layers of its engines, into a file.

    Raises:
        DncError: see `import_matplotlib`; or the file cannot be written.
    """
    pyplot = import_matplotlib(path)
    heights = [1.5 + 0.4 * len(recording.figures), *[5] * len(layers)]
    figure, axes = pyplot.subplots(
        len(heights), 1, figsize=(8, sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    _bars(axes[0, 0], recording)
    for axis, engine in zip(axes[1:, 0], layers, strict=True):
        _roofline(axis, engine)
    with whole_file(path) as file:
        # Without a date, the same measurement gives the same bytes.
        figure.savefig(file, format=path.suffix.lower()[1:], metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def _bars(axis: Any, recording: Recording) -> None:
    names = [figures.name for figures in recording.figures]
    medians = np.array([figures.latency["median"] for figures in recording.figures]) * 1e3
    ends = [
        (figures.latency.get("low", figures.latency["median"]), figures.latency.get("high", figures.latency["median"]))
        for figures in recording.figures
    ]
    reach = np.abs(np.array(ends).T * 1e3 - medians)
    colors = ["tab:blue" if figures.kind == "engine" else "tab:gray" for figures in recording.figures]
    axis.barh(names, medians, xerr=reach, color=colors, capsize=3)
    axis.invert_yaxis()
    axis.set_xlabel(f"ms, median with its {recording.confidence:.1%} interval")
    axis.set_title(f"{recording.machine.get('cpu', '')}, {recording.settings.threads} threads", fontsize="medium")


def _roofline(axis: Any, layers: Layers) -> None:
    rows = [row for row in layers.rows if row.operations and row.bytes and row.seconds]
    peaks = layers.peaks
    intensity = np.array([row.operations / row.bytes for row in rows])
    speed = np.array([row.operations_per_second for row in rows]) / 1e9
    axis.set_xscale("log")
    axis.set_yscale("log")
    if peaks is not None:
        span = np.array([min(*intensity, peaks.ridge) / 2, max(*intensity, peaks.ridge) * 2])
        axis.plot(
            [span[0], peaks.ridge, span[1]],
            np.array([span[0] * peaks.bandwidth, peaks.compute, peaks.compute]) / 1e9,
            color="black",
            label=f"{peaks.compute / 1e9:.0f} GFLOP/s, {peaks.bandwidth / 1e9:.0f} GB/s, measured",
        )
        axis.legend()
    axis.scatter(intensity, speed, s=[2000 * row.share for row in rows], alpha=0.5)
    longest = sorted(range(len(rows)), key=lambda place: -rows[place].seconds)[:_NAMED]
    for place in longest:
        name = rows[place].where.rpartition(" ")[2]
        axis.annotate(f"{name} {rows[place].share:.0%}", (intensity[place], speed[place]), fontsize="small")
    axis.set_xlabel("operations for each byte")
    axis.set_ylabel("GFLOP/s")
    axis.set_title(f"{layers.engine}: sections of the cfg, area by time", fontsize="medium")
