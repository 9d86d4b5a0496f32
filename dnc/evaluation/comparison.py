"""Compares what a network computes, output by output, against what it should.

Each of the two is a `Side`: an engine, the reference interpreter, or numbers that Darknet itself computed and that were
recorded. For one or more inputs, every output that both have is compared by

    max error = max |actual - expected|         relative = max error / max |expected|

and differs where `relative` exceeds the tolerance. The first that differs, in the order of the layers, is where to
look: later ones read it.

A recording is an .npz with `input` (C, H, W) and `layerNNN`, or for several inputs `input_X` and `X_layerNNN`; it may
carry the network as `cfg` (text) and `weights` (bytes). Three of Darknet's layers are not what they seem in it:

1. [convolutional] and [maxpool] with antialiasing have the shape from before the blur; what the blur leaves fills the
   first part, and the rest is old.
2. [cost] is a layer without an output of its own. Skipped.
3. xnor=1 on a multiple of 32 channels is garbage of Darknet's shared library on the CPU, and so is all that depends
   on it. Skipped.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dnc.darknet.layers.base import layer_value
from dnc.darknet.layers.convolutional import Convolutional
from dnc.darknet.network import Network
from dnc.darknet.reference import run_all
from dnc.errors import DncError
from dnc.files.reading import open_regular
from dnc.typing import Array

if TYPE_CHECKING:
    from dnc.darknet.layers import Layer
    from dnc.runtime.engine import Engine
    from dnc.runtime.images import Pixels

__all__ = ["TOLERANCE", "Comparison", "EngineSide", "Recording", "ReferenceSide", "Row", "Sample", "Side", "compare"]

TOLERANCE = 1e-4
"""float32 rounds by 6e-8 of a value; the sums of a deep network, in another order, bring that to some 1e-6."""


@dataclass(frozen=True)
class Sample:
    """An input: `x` has a batch axis."""

    name: str
    x: Array
    pixels: Pixels | None = None
    """The same for an engine that does its own preprocessing: (H, W, channels)."""


@dataclass(frozen=True)
class Row:
    """How one output compares."""

    sample: str
    name: str
    where: str
    shape: tuple[int, ...]
    """Without the batch axis."""
    absolute: float = 0.0
    relative: float = 0.0
    skipped: bool = False
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """All rows, in the order of the layers, sample by sample."""

    actual: str
    expected: str
    tolerance: float
    rows: tuple[Row, ...]
    files: tuple[Mapping[str, str], ...] = ()
    """The `cfg` and `weights` that were read for it."""

    def differs(self, row: Row) -> bool:
        """Whether the error exceeds the tolerance; NaN does."""
        return not row.skipped and not row.relative <= self.tolerance

    @property
    def first(self) -> Row | None:
        """The first row that differs."""
        return next(filter(self.differs, self.rows), None)


class Side(ABC):
    """One of the two that are compared."""

    title: str

    @abstractmethod
    def outputs(self, sample: Sample) -> Iterable[tuple[str, Array]]:
        """Names and values, with a batch axis, in the order of the layers."""

    def where(self, name: str) -> str:
        """The cfg section that an output comes from; empty if unknown."""
        return ""

    def skip(self, name: str) -> str:
        """Why this side's output means nothing; empty for most."""
        return ""


class ReferenceSide(Side):
    """The reference interpreter."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.title = f"{Path(network.file).name} in the reference interpreter"

    def outputs(self, sample: Sample) -> Iterator[tuple[str, Array]]:
        """All layers, one after the other, so that they need not fit into memory together."""
        return ((layer_value(index), value) for index, value in run_all(self.network, sample.x))

    def where(self, name: str) -> str:
        return _sections(self.network).get(name, "")


class EngineSide(Side):
    """An engine; `network` is what it was made from, if that is known."""

    def __init__(self, engine: Engine, network: Network | None = None, title: str = "") -> None:
        self.engine = engine
        self.title = title or str(engine.folder)
        heads = {head.output: head.where for head in engine.manifest.heads}
        self._sections = {**heads, **(_sections(network) if network is not None else {})}

    def outputs(self, sample: Sample) -> list[tuple[str, Array]]:
        """The outputs that the engine has: all layers if it was made with --keep-layers."""
        manifest = self.engine.manifest
        x = sample.x
        if manifest.input_dtype == "uint8":
            if sample.pixels is None or manifest.preprocessing is None:
                hint = "give an --image or nothing, or compile it without --input u8"
                raise DncError("this engine takes pixels, not an array", self.engine.folder, hint)
            x = self.engine.inputs.prepare(sample.pixels).array[None]
        if isinstance(manifest.batch, int) and len(x) == 1:
            x = np.repeat(x, manifest.batch, axis=0)
        named = zip(manifest.outputs, self.engine.forward(x), strict=True)
        # The heads come before the other layers.
        return sorted(named, key=lambda item: (len(item[0]), item[0]))

    def where(self, name: str) -> str:
        return self._sections.get(name, "")


class Recording(Side):
    """What Darknet computed, see the module's docstring; `network` is what it ran, if the recording has none."""

    def __init__(self, path: str | PathLike[str], network: Network | None = None) -> None:
        self.path = Path(path)
        self.title = f"{self.path.name}, recorded from Darknet"
        self._arrays = _read_npz(self.path)
        self._inputs = {name[6:]: name for name in self._arrays if name == "input" or name.startswith("input_")}
        if not self._inputs:
            raise DncError("the recording has no input", path, "its arrays are called input and layerNNN")
        self._network = network

    @property
    def carries_network(self) -> bool:
        """Whether the recording holds its network."""
        return {"cfg", "weights"} <= self._arrays.keys()

    def write_network(self, folder: Path) -> tuple[Path, Path]:
        """Writes the .cfg and the .weights that the recording carries into a folder."""
        cfg, weights = (folder / f"{self.path.stem}{suffix}" for suffix in (".cfg", ".weights"))
        cfg.write_text(str(self._arrays["cfg"]), encoding="utf-8")
        weights.write_bytes(self._arrays["weights"].tobytes())
        return cfg, weights

    def samples(self) -> list[Sample]:
        """The inputs."""
        return [Sample(name, np.asarray(self._arrays[key], np.float32)[None]) for name, key in self._inputs.items()]

    def outputs(self, sample: Sample) -> Iterator[tuple[str, Array]]:
        prefix = f"{sample.name}_layer" if sample.name else "layer"
        for key in sorted(self._arrays, key=lambda key: (len(key), key)):
            if key.startswith(prefix):
                name, value = f"layer{key.removeprefix(prefix)}", self._arrays[key]
                layer = self._layers.get(name)
                if layer is not None and getattr(layer, "antialiasing", False):
                    # Case 1.
                    value = value.ravel()[: int(np.prod(layer.shape))].reshape(layer.shape)
                yield name, value[None]

    @cached_property
    def _layers(self) -> dict[str, Layer]:
        network = self._network
        if network is None and "cfg" in self._arrays:
            network = Network.parse(str(self._arrays["cfg"]), f"{self.path.stem}.cfg", lenient=True)
        return {layer_value(layer.index): layer for layer in network.layers} if network is not None else {}

    @cached_property
    def _skipped(self) -> dict[str, str]:
        reasons = {}
        garbage: set[int] = set()
        for name, layer in self._layers.items():
            convolution = layer.convolution if isinstance(layer, Convolutional) else None
            wrong = convolution is not None and convolution.xnor and convolution.input_shape[0] % 32 == 0
            if layer.name == "cost":
                reasons[name] = "Darknet does not fill this layer"
            elif wrong or not garbage.isdisjoint(layer.sources):
                garbage.add(layer.index)
                reasons[name] = "Darknet's library gets xnor on 32n channels wrong"
        return reasons

    def where(self, name: str) -> str:
        return self._layers[name].where.short if name in self._layers else ""

    def skip(self, name: str) -> str:
        """Cases 2 and 3."""
        return self._skipped.get(name, "")


def compare(actual: Side, expected: Side, samples: Sequence[Sample], tolerance: float = TOLERANCE) -> Comparison:
    """Compares the outputs that both sides have. Raises DncError if they have none in common, or one has different
    sizes."""
    rows: list[Row] = []
    for sample in samples:
        computed = dict(actual.outputs(sample))
        names: list[str] = []
        for name, want in expected.outputs(sample):
            names.append(name)
            if name not in computed:
                continue
            got = computed.pop(name)
            where, note = expected.where(name) or actual.where(name), expected.skip(name)
            if note:
                rows.append(Row(sample.name, name, where, got.shape[1:], skipped=True, note=note))
            else:
                rows.append(_row(sample.name, name, where, got, want, actual.title, expected.title))
        if not any(row.sample == sample.name for row in rows):
            have, other = (_some(list(listed)) for listed in (computed, names))
            what = f"no outputs in common: {actual.title} has {have}, {expected.title} has {other}"
            raise DncError(what, hint="an engine of `dnc compile --keep-layers` has the outputs of all layers")
    if all(row.skipped for row in rows):
        raise DncError(f"nothing in {expected.title} can be compared: {rows[0].note}")
    return Comparison(actual.title, expected.title, tolerance, tuple(rows))


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:3], "..."] if len(names) > 3 else names) or "none"


def _row(sample: str, name: str, where: str, got: Array, want: Array, actual: str, expected: str) -> Row:
    shape = got.shape[1:]
    # One input may have been repeated to fill the batch that an engine wants; the rows of "detections" are no batch.
    repeated = len(got) != len(want) and name != "detections"
    if repeated:
        want = want[:1]
    if got[:1].size != want[:1].size or (len(got) != len(want) and not repeated):
        what = f"{name} has {got.shape} values in {actual}, but {want.shape} in {expected}"
        raise DncError(what, where or None, "are both of the same network?")
    first, second = got.reshape(len(got), -1), want.reshape(len(want), -1)
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(first - second)
    # Equal infinities are no difference, nor is NaN in both.
    error[(first == second) | (np.isnan(first) & np.isnan(second))] = 0
    absolute = float(error.max(initial=0.0))
    scale = float(np.abs(second).max(initial=0.0))
    relative = 0.0 if absolute == 0 else absolute / scale if scale and np.isfinite(scale) else float("inf")
    note = "has NaN" if np.isnan(second).any() else ""
    return Row(sample, name, where, shape, absolute, relative, note=note)


_LARGEST = 1 << 31
"""Bytes of all arrays."""
_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    AttributeError,
    TypeError,
    SyntaxError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)
"""What numpy and zipfile raise for what is damaged, or says that it is larger than any memory."""


def _read_npz(path: Path) -> dict[str, Array]:
    try:
        with open_regular(path) as file, np.load(file, allow_pickle=False) as archive:
            if sum(info.file_size for info in archive.zip.infolist()) > _LARGEST:
                raise ValueError(f"it holds more than {_LARGEST >> 30} GiB")
            return {name: archive[name] for name in archive.files}
    except _UNREADABLE as error:
        raise DncError(f"cannot read the recording: {error}", path, "an .npz file of numpy.savez") from error


def _sections(network: Network) -> Mapping[str, str]:
    return {layer_value(layer.index): layer.where.short for layer in network.layers}
