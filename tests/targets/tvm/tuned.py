"""Measurements with a result that is known, for tests of tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from dnc.runtime.timing import Timings
from dnc.targets.tvm import tuning

__all__ = ["plant"]


def plant(monkeypatch: pytest.MonkeyPatch, kernel: float, network: float) -> None:
    """Has timings say what a candidate and the tuned network take, as a multiple of the rule's, whatever they take."""

    def interleave(runs: Mapping[str, Any], **_: Any) -> Timings:
        noise = np.random.default_rng(0).uniform(0.999, 1.001, 30)
        factor = network if "tuned" in runs else kernel
        return Timings({name: noise * (1.0 if name == "rule" else factor) for name in runs})

    monkeypatch.setattr(tuning, "interleave", interleave)
    monkeypatch.setattr(tuning, "_HOPELESS", 1e9)
