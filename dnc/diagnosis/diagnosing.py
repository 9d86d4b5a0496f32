"""`dnc diagnose`: which layers of an engine lose accuracy, by which kind of loss, and what that does to what is found.

1. Each layer is looked at on a few images (`looking`), and what it loses is weighed (`weighing`).
2. The noise of each layer by itself is added to the exact network, one layer at a time, and what comes out at the
   inputs of the heads is its noise there. Noises of layers add up.
3. What the engine finds in images is compared with what float32, or the other engine, finds there (`finding`).
4. What keeping layers in float32 would win is estimated from the noise that goes away, and measured for the best: the
   engine is built and evaluated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import numpy as np

from dnc.compiler.options import CompileOptions
from dnc.compiler.preparing import dataset_for
from dnc.compiler.source import is_engine
from dnc.darknet.layers.base import layer_value
from dnc.darknet.network import Network
from dnc.diagnosis.adding import Adding
from dnc.diagnosis.finding import find
from dnc.diagnosis.looking import Looked, Looker
from dnc.diagnosis.parts import ENTRY, Parts, weights_of
from dnc.diagnosis.removing import Removable
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
from dnc.evaluation.datasets import Dataset, evenly
from dnc.files.places import cache_dir
from dnc.files.reading import read_bounded
from dnc.files.writing import scratch_folder
from dnc.graph.rewriting import constant_array
from dnc.quantization.sensitivity import measuring
from dnc.runtime.decoding import BoxHead
from dnc.runtime.engine import load
from dnc.runtime.inputs import Inputs, Prepared
from dnc.targets.onnx import Onnx
from dnc.typing import Array, Progress, silent

__all__ = ["Wanted", "diagnose"]

_ADDED = (1, 4)
"""How many images noise is added on, at least and at most."""
_WORK = 1e12
"""Floating-point operations of case 2; of large networks there are fewer images."""
_LEAST = -60.0
"""dB: what brings less is no culprit."""
_WORTH = -30.0
"""dB: from there on something is advised."""
_WIDE = 8.0
"""A largest channel that is more than so many times the middle one is worth a word."""
_SINGLE = 10
"""So many single layers are proposed, at least."""
_CFG_LIMIT = 1 << 26


@dataclass(frozen=True)
class Wanted:
    """How much is looked at."""

    images: int = 8
    """Layers are looked at on so many."""
    compared: int = 100
    """What is found is compared on so many, and evaluated."""
    shown: int = 12
    """So many of those that changed most are reported."""
    measured: int = 3
    """So many of the layers that win most are evaluated, and the best set; 0: nothing is evaluated."""
    confidence: float = 0.25


def diagnose(
    what: str | PathLike[str],
    weights: str | PathLike[str] | None = None,
    options: CompileOptions | None = None,
    *,
    cfg: str | PathLike[str] | None = None,
    against: str | PathLike[str] | None = None,
    times: Mapping[str, float] | None = None,
    wanted: Wanted | None = None,
    progress: Progress = silent,
) -> Diagnosis:
    """Says where an engine loses accuracy; the command `dnc diagnose` has the same options.

    Args:
        what: an engine folder or package, or a .cfg, which is compiled.
        weights: those of the network; looked for as by `dnc.compile` if not given.
        options: how a .cfg is compiled; of an engine its `calibration` and `data` count.
        cfg: of an engine, the network that it was made of; looked for if not given.
        against: another engine of the network; the network in float32 if not given.
        times: seconds of each layer by its place in the cfg, and of all under "" (`read_times`).
        wanted: how much is looked at.
        progress: is told what happens now.

    Raises:
        CfgError, WeightsError, CalibrationError, BundleError, TargetError: something cannot be read, compiled or run.
        DatasetError, ImageError: the images cannot be read.
        DncError: the network takes no images, or something is missing.
    """
    options, wanted = options or CompileOptions(), wanted or Wanted()
    with scratch_folder("diagnose") as scratch:
        if is_engine(what):
            subject = from_engine(load(what), cfg, weights, options.calibration, progress)
        else:
            subject = from_cfg(what, weights, options, scratch / "engine", progress)
        if subject.candidate.manifest.preprocessing is None:
            raise DncError("this network takes no images, so nothing can be diagnosed on any", subject.source.cfg)
        other = None
        if against is not None:
            other = from_engine(
                load(against), subject.source.cfg, subject.source.network.weights, options.calibration, progress
            )
        dataset = dataset_for(subject.source.calibration, options, wanted.compared, key="valid")
        return _Diagnosing(subject, other, dataset, wanted, times or {}, scratch, progress).diagnosis()


@dataclass
class _Layer:
    """What is summed up of a layer."""

    results: dict[str, Sums] = field(default_factory=dict)
    at_heads: list[float] = field(default_factory=list)
    pairs: int = 0
    saturated: int = 0


class _Diagnosing:
    """Makes a `Diagnosis`."""

    def __init__(
        self,
        subject: Subject,
        other: Subject | None,
        dataset: Dataset,
        wanted: Wanted,
        times: Mapping[str, float],
        scratch: Path,
        progress: Progress,
    ) -> None:
        self._subject, self._other, self._dataset, self._wanted = subject, other, dataset, wanted
        self._times, self._scratch, self._progress = times, scratch, progress
        self._network = subject.source.network
        self._notes: list[str] = []
        self._layers: dict[int, _Layer] = {}
        self._scales: dict[str, Array] = {}
        self._scores: dict[int, float] = {}
        self._saturating = (0.0, 0.0)
        """Powers of the noise of layers whose pairs saturate: computed in integers, and as the engine has it."""

    def diagnosis(self) -> Diagnosis:
        """Does all of it."""
        subject, wanted, progress = self._subject, self._wanted, self._progress
        progress("making an engine that gives the values of its layers")
        looker = self._looker(subject, "looked")
        second = None if self._other is None else self._looker(self._other, "other")
        parts = looker.parts
        self._layers = {number: _Layer() for number in parts.by_layer}
        entries = evenly(self._dataset.entries, wanted.images)
        self._look(looker, second, [entry.path for entry in entries])
        layers = self._described(parts)
        ranked = sorted(self._scores, key=lambda number: -self._scores[number])
        culprits = tuple(number for number in ranked if self._scores[number] >= _LEAST)
        engine = written(float32(subject), self._scratch / "float32") if self._other is None else self._other.engine
        found = find(
            subject.engine, engine, [entry.path for entry in self._dataset.entries], wanted.confidence, progress
        )
        metric, kept = self._measured(parts, layers)
        return Diagnosis(
            network=subject.source.cfg.name,
            engine=subject.side(),
            against=Side("float32", Onnx.name, "fp32") if self._other is None else self._other.side(),
            source=str(self._dataset),
            images=len(entries),
            compared=len(self._dataset.entries),
            layers=tuple(layers),
            culprits=culprits,
            heads=found.heads,
            metric=metric,
            keep=kept,
            boxes=found.boxes,
            gone=found.gone,
            come=found.come,
            confidence=wanted.confidence,
            changes=tuple(found.images[: wanted.shown]),
            passes=subject.passes(),
            seconds=self._times.get(""),
            notes=tuple(self._notes),
        )

    def _looker(self, subject: Subject, name: str) -> Looker:
        folder = self._scratch / name
        folder.mkdir()
        return Looker(subject.candidate, subject.exact, folder, subject.pairing)

    def _look(self, looker: Looker, second: Looker | None, images: Sequence[Path]) -> None:
        """Cases 1 and 2."""
        parts = looker.parts
        adding = Adding(parts, self._heads(parts))
        count = self._added(parts)
        inputs = Inputs(self._subject.candidate.manifest)
        differences: list[tuple[float, float]] = []
        for number, path in enumerate(images, 1):
            self._progress(f"looking at the layers, image {number} of {len(images)}  {path}")
            image = inputs.prepare(inputs.pixels(path))
            looked = looker(image)
            own = _own(self._subject, parts, looked)
            engine, expected = looked.engine, looked.exact
            if second is not None:
                engine, expected, own = self._compared(second, looked, own, image)
            self._sum(parts, looked, engine, expected, own)
            differences.append(self._apart(looked, image))
            if number <= count:
                by_layer = {
                    layer: {name: own[name] for name in names if name in own} for layer, names in parts.by_layer.items()
                }
                loud = {layer: noise for layer, noise in by_layer.items() if noise}
                for layer, share in adding(looked.exact, loud, self._progress):
                    self._layers[layer].at_heads.append(share)
        noise, signal = map(sum, zip(*differences, strict=True))
        apart = decibels(noise, signal)
        if apart is not None and apart > _LEAST:
            self._notes.append(
                f"with the values of its layers as outputs the engine computes heads that differ by {apart:.0f} dB "
                "from its own: its library joins fewer layers then"
            )

        computed, real = self._saturating
        if real * 2 < computed:
            self._notes.append(
                "this machine adds pairs up exactly: sums that saturate are in the noise of layers by themselves and "
                "at the heads, not in what accumulates, in what is found and in the accuracy"
            )

    def _added(self, parts: Parts) -> int:
        """On how many images noise is added."""
        work = sum(layer.flops() for layer in self._network.layers) * len(parts.by_layer)
        least, most = _ADDED
        return int(np.clip(_WORK / max(work, 1), least, most))

    def _apart(self, looked: Looked, image: Prepared) -> tuple[float, float]:
        """Powers of the difference between the engine's heads and those of the one that is looked into, and of both."""
        engine = self._subject.engine
        manifest = engine.manifest
        if manifest.decode != "host" or manifest.input_dtype != "float32" or manifest.states:
            return 0.0, 0.0
        outputs = dict(zip(manifest.outputs, engine.session.run(engine.inputs.batch([image])), strict=False))
        noise = signal = 0.0
        for name, array in outputs.items():
            twin = looked.engine.get(name)
            if twin is not None and twin.shape == array[:1].shape:
                noise += float(by_channel(twin - array[:1]).sum())
                signal += float(by_channel(array[:1]).sum())
        return noise, signal

    def _heads(self, parts: Parts) -> list[str]:
        """The results that the heads read, or where there are none the network's outputs."""
        known = {_plain(name): name for name in parts.results}
        read = [layer_value(source) for layer in self._network.outputs for source in layer.sources if source >= 0]
        found = [known[name] for name in read if name in known]
        return found or [value.name or "" for value in parts.exact.graph.outputs if value.name in parts.results]

    def _compared(
        self, second: Looker, looked: Looked, own: dict[str, Array], image: Prepared
    ) -> tuple[Mapping[str, Array], Mapping[str, Array], dict[str, Array]]:
        """What the engine has, what the other one has in its place, and the noise of one beside the other's. Passes may
        have scaled the channels of a value differently in both: all is in the units of the first."""
        other = second(image)
        names = {_plain(name): name for name in second.parts.results}
        assert self._other is not None
        theirs = _own(self._other, second.parts, other)
        expected, noise = {}, dict(own)
        for name, exact in looked.exact.items():
            twin = names.get(_plain(name))
            if twin is None or other.exact[twin].shape != exact.shape:
                continue
            if name not in self._scales:
                self._scales[name] = _scales(exact, other.exact[twin])
            scale = self._scales[name]
            if twin in other.engine:
                expected[name] = other.engine[twin] * scale
            if twin in theirs:
                noise[name] = noise.get(name, np.float32(0)) - theirs[twin] * scale
        engine = {name: array for name, array in looked.engine.items() if name in expected}
        return engine, expected, {name: array for name, array in noise.items() if array.any()}

    def _sum(
        self,
        parts: Parts,
        looked: Looked,
        engine: Mapping[str, Array],
        expected: Mapping[str, Array],
        own: Mapping[str, Array],
    ) -> None:
        for layer, found in looked.saturations.items():
            self._layers[layer].pairs += sum(item.pairs for item in found)
            self._layers[layer].saturated += sum(item.saturated for item in found)
        for layer, names in parts.by_layer.items():
            for name in names:
                sums = self._layers[layer].results.setdefault(name, Sums())
                pair = parts.pair(name)
                error = engine[name] - expected[name] if name in engine else None
                sums.add(looked.exact[name], error, own.get(name), None if pair is None else pair.ends)
                powers = {NAMES[kind]: power for kind, power in looked.kinds.get(name, {}).items()}
                if name in own and not _rounds(self._subject, parts, layer, name):
                    powers = {ROUNDED: by_channel(own[name])}
                sums.add_kinds(powers)
                noise = own.get(name)
                if noise is not None and powers.get(PAIRS, np.zeros(1)).sum() * 2 > by_channel(noise).sum():
                    computed, real = self._saturating
                    has = by_channel(looked.real[name]).sum() if name in looked.real else 0.0
                    self._saturating = computed + float(by_channel(noise).sum()), real + float(has)

    def _described(self, parts: Parts) -> list[LayerDiagnosis]:
        """The rows of the report."""
        weights = _weights_noise(parts)
        eight = self._subject.eight_bits
        texts = _texts(self._network)
        reasons = {
            remark.where: remark.text
            for item in self._subject.passes()
            if item.name in ("quantize", "to-float16", "to-bfloat16")
            for remark in item.missed
        }
        rounded = {
            remark.where
            for item in self._subject.passes()
            if item.name in ("to-float16", "to-bfloat16")
            for remark in item.applied
        }
        precision = self._subject.precision
        found = []
        for number in (ENTRY, *range(len(self._network.layers))):
            layer = None if number == ENTRY else self._network.layers[number]
            summed = self._layers.get(number)
            where = "input" if layer is None else layer.where.short
            if number in eight:
                kind = "int8"
            elif layer is not None and precision in ("fp16", "bf16") and (where in rounded or not rounded):
                kind = precision
            else:
                kind = "fp32"
            row = LayerDiagnosis(
                number=number,
                section="input" if layer is None else layer.name,
                where=where,
                line=0 if layer is None else layer.where.line,
                text="" if layer is None else texts[number],
                shape=tuple(self._network.input_shape if layer is None else layer.shape),
                precision=kind,
                reason="" if number in eight else reasons.get(where, ""),
                measured=summed is not None and bool(summed.results),
                seconds=self._times.get(where),
            )
            if summed is not None and summed.results:
                row = self._filled(row, parts, summed, weights.get(number))
            found.append(row)
        return found

    def _filled(self, row: LayerDiagnosis, parts: Parts, summed: _Layer, weights: Powers | None) -> LayerDiagnosis:
        """The row with what was summed up."""
        name, main = next(iter(summed.results.items()))
        weighed = weigh(summed.results.values(), weights)
        pair = parts.pair(name)
        counted = main.histogram
        use = None
        if pair is not None:
            low, high = pair.ends
            use = RangeUse(low, high, counted.minimum, counted.maximum, pair.params.scale[0])
        share = float(np.mean(summed.at_heads)) if summed.at_heads else 0.0
        filled = dataclasses.replace(
            row,
            own=weighed.own,
            typical=weighed.typical,
            accumulated=weighed.accumulated,
            at_heads=decibels(share, 1.0) if weighed.own is not None else None,
            largest_error=main.largest_error,
            largest_value=main.largest_value,
            kind=weighed.kind,
            kinds=weighed.kinds,
            saturated=main.beyond / main.values if main.values else 0.0,
            saturated_pairs=summed.saturated / summed.pairs if summed.pairs else 0.0,
            range=use,
            histogram=main.drawn(),
            spread=main.spread,
        )
        self._scores[row.number] = score(filled.at_heads, weighed.hidden)
        worth = self._scores[row.number] >= _WORTH
        return dataclasses.replace(filled, advice=_advice(filled) if worth else "")

    def _measured(self, parts: Parts, layers: Sequence[LayerDiagnosis]) -> tuple[Metric | None, tuple[Kept, ...]]:
        """Case 4."""
        subject, wanted, progress = self._subject, self._wanted, self._progress
        if not wanted.measured or not subject.candidate.manifest.heads:
            return None, ()
        with measuring(self._dataset, cache_dir(to_write=True), progress) as measure:
            full = measure(float32(subject), "float32")
            reached = measure(subject.candidate, "the engine")
            kept = []
            proposals = list(self._proposals(parts, layers))
            for place, (chosen, share) in enumerate(proposals):
                points, measured = max(full - reached, 0.0) * 100 * share, False
                if place < wanted.measured or place == len(proposals) - 1:
                    what = f"it with {', '.join(map(str, chosen))} in float32"
                    points, measured = (measure(subject.with_kept(chosen, progress), what) - reached) * 100, True
                kept.append(Kept(tuple(chosen), points, measured))
            against = full if self._other is None else measure(self._other.candidate, "the other engine")
            name = "mAP@0.50" if isinstance(subject.candidate.manifest.heads[-1], BoxHead) else "top-1"
            metric = Metric(name, reached, against, len(self._dataset.entries), measure.labelled)
        return metric, tuple(kept)

    def _proposals(self, parts: Parts, layers: Sequence[LayerDiagnosis]) -> Iterator[tuple[list[int], float]]:
        """Layers to keep in float32, and the share of the noise at the heads that goes away with them: single ones, and
        the best set."""
        if not self._subject.candidate.target.needs_calibration:
            return
        noise = Removable(self._subject, parts, layers)
        chosen = noise.best()
        single = sorted(noise.units, key=lambda unit: -noise.removed({unit}))
        for unit in single[: max(_SINGLE, self._wanted.measured)]:
            if noise.removed({unit}) > 0 and {unit} != chosen:
                yield [unit], noise.removed({unit})
        if chosen:
            yield sorted(chosen), noise.removed(chosen)


def _rounds(subject: Subject, parts: Parts, layer: int, name: str) -> bool:
    """Whether a result's own noise is what its graph says: it is computed in 8 bits, or rounded to them."""
    return layer in subject.eight_bits or parts.pair(name) is not None


def _own(subject: Subject, parts: Parts, looked: Looked) -> dict[str, Array]:
    """The noise of each result by itself."""
    own = {}
    for layer, names in parts.by_layer.items():
        for name in names:
            noise = (looked.own if _rounds(subject, parts, layer, name) else looked.real).get(name)
            if noise is not None and noise.any() and np.isfinite(noise).all():
                own[name] = noise
    return own


def _plain(name: str) -> str:
    """The name of a result in the network: passes that scale its channels put theirs before it."""
    return name.rpartition("/")[2] if name.rpartition("/")[2].startswith("layer") else name


def _scales(own: Array, other: Array) -> Array:
    """By what the channels of a value are larger than those of another, in a shape that multiplies it."""
    powers = np.sqrt(by_channel(own)), np.sqrt(by_channel(other))
    scale = np.divide(*powers, out=np.ones_like(powers[0]), where=(powers[0] > 0) & (powers[1] > 0))
    return scale.astype(np.float32).reshape([1, -1, *[1] * (own.ndim - 2)] if own.ndim > 2 else [1] * own.ndim)


def _weights_noise(parts: Parts) -> dict[int, Powers]:
    """Of each layer with 8-bit weights, their noise beside their power, for each kernel: (outputs x inputs,)."""
    found: dict[int, Powers] = {}
    for layer, node in parts.products():
        mirror, rounded = parts.twin(node), weights_of(node.inputs[1])
        plain = constant_array(mirror.inputs[1]) if mirror is not None else None
        integers, scales = (
            (constant_array(value) for value in rounded.inputs[:2]) if rounded is not None else (None,) * 2
        )
        if plain is None or integers is None or scales is None:
            continue
        exact = plain.numpy().astype(np.float64)
        noise = integers.numpy() * scales.numpy().reshape(-1, *[1] * (exact.ndim - 1)) - exact
        powers = [np.square(array.reshape(*array.shape[:2], -1)).sum(axis=2).reshape(-1) for array in (noise, exact)]
        alive = powers[1] > 0
        if alive.any():
            found[layer] = powers[0][alive] / powers[1][alive]
    return found


def _texts(network: Network) -> list[str]:
    """The section of each layer, as the cfg has it."""
    lines = read_bounded(network.file, _CFG_LIMIT).decode("utf-8", "replace").splitlines()
    texts = []
    for layer in network.layers:
        start = layer.where.line - 1
        end = start + 1
        while end < len(lines) and not lines[end].lstrip().startswith("["):
            end += 1
        texts.append("\n".join(line.rstrip() for line in lines[start:end]).rstrip())
    return texts


def _advice(layer: LayerDiagnosis) -> str:
    """What could be done about what a layer loses."""
    use = layer.range
    wide = f"its largest channel is {layer.spread:.0f} times the middle one; " if (layer.spread or 0) > _WIDE else ""
    if layer.kind == CUT and use is not None:
        return (
            f"its range is {use.low:.3g} to {use.high:.3g}, its values {use.seen_low:.3g} to {use.seen_high:.3g}; "
            f"{wide}calibrate it on images like these, or with --method minmax"
        )
    if layer.kind in (CUT, STEP):
        return f"{wide}keep it and what reads it in float32, or calibrate with another --method"
    if layer.kind == PAIRS:
        return "compile it for this arithmetic (--option isa=…), or keep it in float32"
    if layer.kind == WEIGHTS:
        return "keep it in float32"
    return "take a precision with more bits"
