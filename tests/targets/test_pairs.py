"""Kernels for CPUs without VNNI really take the inputs two by two that `QuantSpec.pairs` says, and cut off nothing of
what was made for them. This machine is held down to such a CPU by `benchmarks.held`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dnc.graph.pairs import Pairing, adds_pairs, places
from dnc.runtime.arithmetic import of_isa
from dnc.targets.onnx import Onnx
from dnc.targets.openvino import Openvino
from tests.patience import PATIENCE
from tests.targets.saturating import SHAPES


def child(target: str, *held: str) -> dict[str, Any]:
    """What saturating.py finds."""
    command = [sys.executable, *held, "-m", "tests.targets.saturating", target]
    root = Path(__file__).parents[2]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=root, timeout=PATIENCE)
    found: dict[str, Any] = json.loads(said.stdout)
    return found


def expected(shape: tuple[int, ...], groups: int, *pairings: Pairing) -> set[tuple[int, ...]]:
    if not adds_pairs(shape, groups):
        return set()
    return {tuple(sorted(pair)) for pairing in pairings for pair in places(shape, pairing).tolist()}


@pytest.mark.slow
@pytest.mark.skipif(of_isa().saturates, reason="needs a CPU with VNNI to compare with")
@pytest.mark.skipif(not (shutil.which("gcc") and shutil.which("objdump")), reason="needs gcc and objdump")
@pytest.mark.parametrize("kind", ["avx2", "avx512"])
@pytest.mark.parametrize("target", [Onnx, Openvino])
def test_kernels(target: type[Onnx | Openvino], kind: str) -> None:
    spec = target({"precision": "int8", "isa": kind}).quantization()
    assert spec is not None
    here, there = child(target.name), child(target.name, "-m", "benchmarks.held", kind, sys.executable)
    assert not any(here["pairs"]), "sums are exact here"
    for (shape, groups), pairs in zip(SHAPES, there["pairs"], strict=True):
        found = set(map(tuple, pairs))
        assert found <= expected(shape, groups, *spec.pairs), (shape, groups)
        if groups == 1 and shape[1] > 1 and len(shape) > 2:
            assert found == expected(shape, groups, spec.pairs[0]), shape
    for isa, same in (("avx2", True), ("avx512vnni", False)):
        # Of 8 bits and, here, bfloat16 beside them.
        close = np.allclose(here["sums"][isa], there["sums"][isa], rtol=1e-2)
        assert close == same, (isa, here["sums"][isa], there["sums"][isa])
