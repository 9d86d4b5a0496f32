"""What the noise of one layer is at the heads: it is added to the exact network, one layer at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
import numpy as np
from dnc.compiler.options import CompileOptions
from dnc.compiler.source import is_engine
from dnc.darknet.layers.base import layer_value
from dnc.darknet.network import Network
from dnc.diagnosis.finding import find
from dnc.diagnosis.looking import Looked, Looker
from dnc.diagnosis.parts import ENTRY, Parts, weights_of, with_noise
from dnc.diagnosis.report import (
    CUT,
    PAIRS,
    ROUNDED,
    STEP,
    WEIGHTS,
    Diagnosis,
    Kept,
    LayerDiagnosis,
    Metric,
    RangeUse,
    Side,
)
from dnc.diagnosis.subjects import Subject, float32, from_cfg, from_engine, written
from dnc.diagnosis.weighing import NAMES, Powers, Sums, by_channel, decibels, score, weigh
from dnc.errors import DncError
from dnc.evaluation.datasets import Dataset, evenly, read_dataset
from dnc.files.places import cache_dir
from dnc.files.reading import read_bounded
from dnc.files.writing import scratch_folder
from dnc.graph.rewriting import constant_array
from dnc.graph.running import Running
from dnc.quantization.calibration import Calibration
from dnc.quantization.sensitivity import measuring
from dnc.runtime.decoding import BoxHead
from dnc.runtime.engine import load
from dnc.runtime.inputs import Inputs, Prepared
from dnc.targets.onnx import Onnx
from dnc.typing import Array, Progress, silent
from dnc.diagnosis.removing import Removable

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
