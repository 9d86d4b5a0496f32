"""What keeping layers in float32 would win: the noise at the heads that goes away with each."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from dnc.diagnosis.parts import ENTRY, Parts
from dnc.diagnosis.report import (
    PAIRS,
    WEIGHTS,
    LayerDiagnosis,
)
from dnc.diagnosis.subjects import Subject

__all__ = ["Removable"]

_MOST_KEPT = 8
"""Layers of the set that is proposed together."""

_ENOUGH = 0.8
"""The share of the noise that such a set takes away, if it can."""


class Removable:
    """The noise at the heads that goes away where layers are kept in float32.

    That of weights and sums goes with their layer; that of a rounded result only with all that round it: the layers
    that read it, and where the target rounds results, the one that computes it.
    """

    def __init__(self, subject: Subject, parts: Parts, layers: Sequence[LayerDiagnosis]) -> None:
        self._terms: list[tuple[frozenset[int], float]] = []
        self.units = sorted(subject.eight_bits - {ENTRY})
        known = set(self.units)
        for layer in layers:
            if layer.at_heads is None or not layer.kinds:
                continue
            powers = {kind: 10 ** (loss / 10) for kind, loss in layer.kinds.items()}
            total = sum(powers.values())
            share = 10 ** (layer.at_heads / 10)
            inner = sum(powers.get(kind, 0.0) for kind in (WEIGHTS, PAIRS)) / total
            if inner and layer.number in known:
                self._terms.append((frozenset([layer.number]), share * inner))
            if inner < 1:
                holders = frozenset(_holders(parts, layer.number) & known)
                if holders:
                    self._terms.append((holders, share * (1 - inner)))
        self._total = sum(share for _, share in self._terms)

    def removed(self, kept: Collection[int]) -> float:
        """The share of the noise, from 0 to 1."""
        gone = sum(share for holders, share in self._terms if holders.issubset(kept))
        return gone / self._total if self._total else 0.0

    def best(self) -> set[int]:
        """A small set that removes most of it: what removes most for each further layer, one after the other."""
        chosen: set[int] = set()
        while self.removed(chosen) < _ENOUGH:
            steps = [holders - chosen for holders, _ in self._terms if not holders.issubset(chosen)]
            steps = [step for step in steps if len(chosen | step) <= _MOST_KEPT]
            if not steps:
                break
            chosen |= max(steps, key=lambda step: (self.removed(chosen | step) - self.removed(chosen)) / len(step))
        return chosen


def _holders(parts: Parts, layer: int) -> set[int]:
    """The layers that round the results of a layer."""
    found: set[int] = set()
    for name in parts.by_layer[layer]:
        value = parts.other(parts.results[name])
        pair = parts.pair(name)
        if value is None or pair is None:
            continue
        found |= {number for use in pair.dequantize.outputs[0].uses() for number in parts.numbers(use.node)}
        found.add(layer)
    return found
