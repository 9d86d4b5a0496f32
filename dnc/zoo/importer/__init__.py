"""Weights of other frameworks into Darknet's format: `dnc import`.

Which unit is which layer, and where its kernel stands in the layer's, is `dnc.zoo.importer.matching`'s.

Numbers are computed in float64 and rounded once:

    epsilon       variance' = variance + epsilon - 1e-5, because Darknet's is 1e-5; where that would be negative,
                  variance' = 0 and scale' = scale * sqrt(1e-5 / (variance + epsilon))
    bias and BN   mean' = mean - bias
    only BN       in a layer without batch_normalize: weights' = weights * f, bias' = bias + (b - mean) * f,
                  f = scale / sqrt(variance + epsilon)
    no BN         in a layer with batch_normalize: scale 1, mean 0, and as variance the float32 next to 1 - 1e-5. The
                  factor is then 1 + 7e-9, or exactly 1 in float32: no weight changes

Where the cfg's own size and padding cannot hold a kernel with the source's padding, an adapted cfg is written beside
the weights.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dnc.darknet.cfg import Section, find_cfg, parse_cfg, read_cfg
from dnc.darknet.layers.base import Array, Arrays, Layer, Shape
from dnc.darknet.layers.connected import Connected
from dnc.darknet.layers.convolutional import BATCH_NORM_EPSILON, Convolutional
from dnc.darknet.network import Network
from dnc.darknet.weights import count, write_weights
from dnc.errors import WeightsError, tolerate
from dnc.files.writing import whole_file
from dnc.tables import Table
from dnc.typing import Progress, silent
from dnc.zoo.importer.checkpoint import open_checkpoint
from dnc.zoo.importer.matching import PADDINGS, Match, Place, channels_of, is_normalized, layers_text, match
from dnc.zoo.importer.tensors import Checkpoint, Tensor, Unit
from dnc.zoo.recorded import recorded_path, write_recorded

__all__ = ["ImportReport", "Row", "import_weights"]

EPSILON = 1e-5
"""PyTorch's, for sources that do not say theirs."""

_PLAIN_VARIANCE = np.float32(1 - BATCH_NORM_EPSILON)

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """A layer of the cfg, the unit of the source that it got, and what was done to that."""

    layer: int
    section: str
    shape: Shape
    """Of the layer's weights as they are written; of a batch normalisation, its channels."""
    source: str
    source_shape: Shape
    done: tuple[str, ...]


@dataclass(frozen=True)
class ImportReport:
    """Report on what went where, and what was left."""

    weights: Path
    cfg: Path
    """The cfg that the weights fit: the one that was given, or the adapted one."""
    format: str
    rows: tuple[Row, ...]
    left: tuple[str, ...]
    """Units and tensors of the source that no layer took."""
    notes: tuple[str, ...]
    written: tuple[Path, ...]

    def table(self) -> Table:
        """A row for each layer."""
        titles = ("layer", "type", "shape", "source", "its shape", "done")
        table = Table.of(*titles, right=["layer"], folds=["source", "done"])
        for row in self.rows:
            shape, source_shape = ("x".join(map(str, dims)) for dims in (row.shape, row.source_shape))
            table.add(str(row.layer), row.section, shape, row.source, source_shape, "; ".join(row.done))
        return table

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "weights": str(self.weights),
            "cfg": str(self.cfg),
            "format": self.format,
            "layers": [dataclasses.asdict(row) for row in self.rows],
            "left": list(self.left),
            "notes": list(self.notes),
            "written": [str(path) for path in self.written],
        }


def import_weights(
    source: str | PathLike[str],
    cfg: str | PathLike[str],
    out: str | PathLike[str],
    *,
    padding: str | None = None,
    epsilon: float | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    crop: float | None = None,
    interpolation: str | None = None,
    color: str | None = None,
    pins: Sequence[tuple[int, str]] = (),
    cutoff: int | None = None,
    lenient: bool = False,
    progress: Progress = silent,
) -> ImportReport:
    """Writes the weights of a checkpoint or an ONNX model as a .weights file for a cfg.

    Args:
        source: a PyTorch checkpoint, safetensors or ONNX.
        cfg: the .cfg file, or the name of a network of cfg/.
        out: the .weights file to write.
        padding: "same" if the source pads as TensorFlow does. Then an adapted cfg is written beside `out`, with its
            name, if the cfg's own kernels cannot hold the source's. ONNX says itself how each node pads.
        epsilon: of the source's batch normalisations; ONNX says its own, else 1e-5, PyTorch's.
        mean, std, crop, interpolation, color: recorded beside `out`, for `dnc compile`; see `dnc.zoo.recorded`.
        pins: (layer, name) pairs: that layer takes the unit of that name, its weights or its batch normalisation.
        cutoff: takes the first so many layers of the cfg, as `darknet partial` writes them.
        lenient: what Darknet takes in silence warns instead of failing: in a cfg, and weights that are no numbers.

    Raises:
        CfgError, WeightsError: source and cfg do not fit, or not in one way only; nothing is written then.
        DncError: a file cannot be written, or what is to be recorded is nonsense.
    """
    if padding is not None and padding not in PADDINGS:
        raise WeightsError(f"unknown padding '{padding}'", hint=f"known: {', '.join(PADDINGS)}")
    if epsilon is not None and not 0 <= epsilon < 1:
        raise WeightsError(f"epsilon {epsilon:g} must be at least 0 and less than 1", hint="1e-3 and 1e-5 are common")
    cfg, out = find_cfg(cfg), Path(out)
    sections, data = read_cfg(cfg, lenient)
    network = Network.build(sections, str(cfg), lenient=lenient)
    if cutoff is not None:
        Network.build(sections, str(cfg), lenient=lenient, cutoff=cutoff)
    for path in (cfg, Path(source)):
        if _same(out, path):
            raise WeightsError("the weights would overwrite what they are made of", path, "choose another name for -o")
    progress(f"reading {source}")
    with open_checkpoint(source) as checkpoint:
        matching = match(checkpoint, network.layers, padding=padding, cutoff=cutoff, pins=pins)
        adapted = {index: place for index, place in matching.places.items() if place.adapts}
        text = _adapted(sections, data, adapted)
        cfg_out = out.with_suffix(".cfg") if adapted else cfg
        if adapted and _same(cfg_out, cfg):
            hint = "choose another name for -o: its cfg is written beside it"
            raise WeightsError(f"{layers_text(adapted)} cannot hold the source's padding as they are", cfg, hint)
        layers = (_adapted_layers(network, text, cfg_out, lenient) if adapted else network.layers)[:cutoff]
        arrays, rows = _convert_all(layers, matching, EPSILON if epsilon is None else epsilon, progress, lenient)
        left, notes = _left(checkpoint, matching), [*checkpoint.notes, *_notes(network.layers[:cutoff], padding)]
        if adapted:
            notes.append(f"{layers_text(adapted)} pad otherwise in {cfg}: use {cfg_out} with these weights")
    fields = {"mean": mean, "std": std, "crop": crop, "interpolation": interpolation, "color": color}
    recorded = {key: value for key, value in fields.items() if value is not None}
    progress(f"writing {out}")
    written = [out]
    with ExitStack() as files:
        if adapted:
            files.enter_context(whole_file(cfg_out)).write(text)
            written.append(cfg_out)
        write_weights(files.enter_context(whole_file(out)), layers, arrays)
        if recorded or recorded_path(out).exists():
            # What is recorded of older weights of this name does not hold for these.
            written.append(write_recorded(out, recorded))
    return ImportReport(out, cfg_out, checkpoint.format, tuple(rows), left, tuple(notes), tuple(written))


def _same(path: Path, other: Path) -> bool:
    return path.exists() and other.exists() and path.samefile(other)


def _adapted(sections: Sequence[Section], data: bytes, places: Mapping[int, Place]) -> bytes:
    """The cfg with the size and the padding of some layers changed, and no other byte."""
    lines = re.split(rb"(\r\n|\r|\n)", data)

    def change(line: int, text: bytes | None, value: int = 0) -> None:
        at = 2 * (line - 1)
        if text is None:
            lines[at] = re.sub(rb"=(\s*)[+-]?\d+", rb"=\g<1>%d" % value, lines[at], count=1)
        else:
            lines[at] = text

    for index, place in places.items():
        options = sections[index + 1].options
        size, pad, own = options.get("size"), options.get("pad"), options.get("padding")
        if size is not None:
            change(size.line, None, place.size)
        if sections[index + 1].boolean("pad"):
            assert pad is not None
            if place.size // 2 == place.padding:
                continue
            change(pad.line, b"pad=0" if own is not None else b"padding=%d" % place.padding)
        if own is not None:
            change(own.line, None, place.padding)
        elif pad is None or not sections[index + 1].boolean("pad"):
            line = size.line if size is not None else sections[index + 1].where.line
            lines[2 * (line - 1)] += (lines[1] if len(lines) > 1 else b"\n") + b"padding=%d" % place.padding
    return b"".join(lines)


def _adapted_layers(network: Network, text: bytes, cfg: Path, lenient: bool) -> tuple[Layer, ...]:
    """The layers of the adapted cfg; raises CfgError where one gives another shape than before."""
    sections = parse_cfg(text.decode("utf-8", errors="replace"), str(cfg), lenient)
    layers = Network.build(sections, str(cfg), lenient=lenient).layers
    for before, after in zip(network.layers, layers, strict=True):
        if before.shape != after.shape or before.input_shape != after.input_shape:
            after.fail(f"the adapted layer gives {after.shape}, not {before.shape}", "adapt the cfg by hand")
    return layers


def _convert_all(
    layers: Sequence[Layer], match: Match, epsilon: float, progress: Progress, lenient: bool
) -> tuple[list[Arrays], list[Row]]:
    arrays: list[Arrays] = []
    rows: list[Row] = []
    for layer in layers:
        if not count(layer):
            arrays.append({})
            continue
        progress(f"layer {layer.index} [{layer.name}]")
        unit, norm = match.units.get(layer.index), match.norms.get(layer.index)
        named = unit or norm
        assert named is not None
        done: list[str] = []
        converted = _convert(layer, unit, norm, match.places.get(layer.index), epsilon, done, lenient)
        shapes = layer.weights()
        arrays.append({name: _rounded(converted[name].reshape(shapes[name]), layer, named, lenient) for name in shapes})
        shape = shapes["weights"] if "weights" in shapes else (channels_of(layer),)
        stored = named.weights.shape if named.weights is not None else (named.channels,)
        rows.append(Row(layer.index, layer.name, shape, named.name, stored, tuple(done)))
    return arrays, rows


def _rounded(values: Doubles, layer: Layer, unit: Unit, lenient: bool) -> Array:
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float32)
    if not np.isfinite(rounded).all():
        message = f"layer {layer.index} [{layer.name}] would get numbers beyond float32 from '{unit.name}'"
        tolerate(WeightsError(message, layer.where, "is the source damaged?"), lenient)
    return rounded


def _doubles(tensor: Tensor | None, default: float, length: int, lenient: bool) -> Doubles:
    return np.full(length, default) if tensor is None else tensor.array(lenient).astype(np.float64)


def _convert(
    layer: Layer,
    unit: Unit | None,
    norm: Unit | None,
    place: Place | None,
    epsilon: float,
    done: list[str],
    lenient: bool,
) -> dict[str, Doubles]:
    """Converts every array that the layer may have in the file; says in `done` what was done."""
    normalized = None if norm is None else _Norm.read(norm, epsilon, done, lenient)
    if unit is None:
        assert normalized is not None
        return normalized.darknet(done)
    assert unit.weights is not None
    weights = unit.weights.array(lenient).astype(np.float64).reshape(unit.kernel)
    bias = _doubles(unit.bias, 0.0, unit.channels, lenient)
    if place is not None:
        weights = _enlarged(weights, place, done)
    if not is_normalized(layer):
        if normalized is not None:
            factor, shift = normalized.affine()
            weights, bias = weights * factor[:, None, None, None], bias * factor + shift
            done.append("batch normalisation folded into the weights")
        elif unit.bias is None:
            done.append("no bias: zeros")
        return {"weights": weights, "biases": bias}
    if isinstance(layer, Convolutional | Connected) and layer.dontloadscales:
        # Darknet divides by the square root of its epsilon alone then.
        factor, shift = (np.ones(unit.channels), np.zeros(unit.channels)) if normalized is None else normalized.affine()
        by = factor * math.sqrt(BATCH_NORM_EPSILON)
        done.append("batch normalisation folded into the weights, for dontloadscales=1")
        return {"weights": weights * by[:, None, None, None], "biases": bias * factor + shift}
    if normalized is None:
        done.append("batch normalisation that does nothing")
        ones = np.ones(unit.channels)
        variance = ones * np.float64(_PLAIN_VARIANCE)
        return {"weights": weights, "biases": bias, "scales": ones, "mean": 0 * ones, "variance": variance}
    if unit.bias is not None:
        done.append("bias into the mean")
    arrays = normalized.darknet(done)
    return {**arrays, "weights": weights, "mean": arrays["mean"] - bias}


def _enlarged(weights: Doubles, place: Place, done: list[str]) -> Doubles:
    kernel = weights.shape[2]
    if kernel == place.size:
        return weights
    rows, columns = place.before
    enlarged = np.zeros((*weights.shape[:2], place.size, place.size))
    enlarged[:, :, rows : rows + kernel, columns : columns + kernel] = weights
    done.append(f"{kernel} x {kernel} within {place.size} x {place.size}, behind {rows} rows and {columns} columns")
    return enlarged


@dataclass(frozen=True)
class _Norm:
    """A batch normalisation's numbers."""

    scale: Doubles
    bias: Doubles
    mean: Doubles
    variance: Doubles
    epsilon: float

    @classmethod
    def read(cls, unit: Unit, epsilon: float, done: list[str], lenient: bool) -> _Norm:
        done.append(f"batch normalisation '{unit.name}'")
        epsilon = epsilon if unit.epsilon is None else unit.epsilon
        length = unit.channels
        norm = cls(
            _doubles(unit.weights, 1.0, length, lenient),
            _doubles(unit.bias, 0.0, length, lenient),
            _doubles(unit.mean, 0.0, length, lenient),
            _doubles(unit.variance, 1.0, length, lenient),
            epsilon,
        )
        bad = norm.variance + epsilon <= 0
        if bad.any():
            at = int(np.argmax(bad))
            message = f"'{unit.name}' of the source has variance {norm.variance[at]:g} at {at}, epsilon {epsilon:g}"
            hint = "the file is damaged, or comes from a training run that diverged"
            tolerate(WeightsError(message, hint=hint), lenient)
        if below := int((norm.variance < 0).sum()):
            done.append(f"{below} variance{'s' if below > 1 else ''} below zero")
        return norm

    def affine(self) -> tuple[Doubles, Doubles]:
        """(factor, shift): y = factor * x + shift."""
        factor = self.scale / np.sqrt(self.variance + self.epsilon)
        return factor, self.bias - factor * self.mean

    def darknet(self, done: list[str]) -> dict[str, Doubles]:
        """The same with Darknet's epsilon; see the module's rule."""
        variance, scale = self.variance + (self.epsilon - BATCH_NORM_EPSILON), self.scale
        small = variance < 0
        if small.any():
            with np.errstate(invalid="ignore", divide="ignore"):
                ratio = np.sqrt(BATCH_NORM_EPSILON / (self.variance + self.epsilon))
            variance, scale = np.where(small, 0.0, variance), np.where(small, scale * ratio, scale)
        if self.epsilon != BATCH_NORM_EPSILON:
            done.append(f"epsilon {self.epsilon:g} into the variance" + (" and the scales" if small.any() else ""))
        return {"scales": scale, "biases": self.bias, "mean": self.mean, "variance": variance}


def _left(checkpoint: Checkpoint, match: Match) -> tuple[str, ...]:
    used = {unit.name for unit in (*match.units.values(), *match.norms.values())}
    return (*(unit.name for unit in checkpoint.units if unit.name not in used), *checkpoint.rest)


def _notes(layers: Sequence[Layer], padding: str | None) -> list[str]:
    """Notes on what the importer cannot know."""
    pools = [layer.index for layer in layers if layer.name == "maxpool"]
    return [f"{layers_text(pools)} [maxpool] pad as Darknet does, not by SAME"] if pools and padding == "same" else []
