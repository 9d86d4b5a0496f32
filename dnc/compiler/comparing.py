"""`dnc compare`: what files hold, compared: engines, cfgs that are compiled for it, recordings of Darknet's numbers."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from dnc.compiler.compiling import compile_engine
from dnc.compiler.options import CompileOptions
from dnc.compiler.source import find_weights
from dnc.darknet.cfg import find_cfg
from dnc.darknet.network import Network
from dnc.darknet.weights import write_weights
from dnc.errors import DncError, ImageError, TargetError, close_match, warn
from dnc.evaluation.comparison import TOLERANCE, Comparison, EngineSide, Recording, ReferenceSide, Sample, Side, compare
from dnc.evaluation.datasets import is_folder
from dnc.files.reading import open_regular
from dnc.files.writing import scratch_folder
from dnc.runtime.engine import Engine, load
from dnc.runtime.images import read_image
from dnc.runtime.preprocessing import Preprocessing
from dnc.targets import targets
from dnc.typing import Array, Progress, silent

__all__ = ["REFERENCE", "compare_files"]

REFERENCE = "reference"
"""Stands for the reference interpreter where a target is named."""


def compare_files(
    a: str | PathLike[str],
    b: str | PathLike[str] | None = None,
    *,
    golden: str | PathLike[str] | None = None,
    weights: str | PathLike[str] | None = None,
    random_weights: bool = False,
    target: str | None = None,
    image: str | PathLike[str] | None = None,
    input: str | PathLike[str] | None = None,
    exif: bool | None = None,
    seed: int = 0,
    tolerance: float = TOLERANCE,
    skip: Sequence[str] = (),
    lenient: bool = False,
    cutoff: int | None = None,
    width: int | None = None,
    height: int | None = None,
    progress: Progress = silent,
) -> Comparison:
    """Compares what files hold; the command `dnc compare` has the same options.

    Args:
        a: what is tested: an engine folder, a .cfg, or a recording that carries its network. A network is compiled
            with the outputs of all its layers.
        b: what it is tested against: an engine folder, a recording, or a .cfg for the reference interpreter. If not
            given: the recording, or the network in the reference interpreter.
        golden: a recording, as `b`.
        weights: those of the .cfg; looked for as by `dnc.compile` if not given.
        random_weights: gives a .cfg random weights.
        target: what a network is compiled for, cpu if not given; or "reference", to test the interpreter itself.
        image, input: an image, or an .npy with the input; random numbers if neither is given.
        exif: whether the image is turned as its EXIF says; see `Engine.__call__`.
        seed: of random inputs and weights.
        tolerance: see the module's docstring.
        skip, lenient, cutoff, width, height: as for `dnc.compile`; a network that an engine is compared with
            has the engine's size if none is given.

    Raises:
        DncError: something cannot be read, there is nothing to compare with, or sizes differ.
    """
    if b is not None and golden is not None:
        raise DncError("two things to compare with", hint="give either B or --golden")
    b = b if b is not None else golden
    with scratch_folder("compare") as scratch:
        progress("reading")
        recording: Recording | None = None
        if _is_recording(a):
            recording = Recording(a)
            if not recording.carries_network:
                raise DncError("this recording carries no network", a, f"dnc compare NET.cfg --golden {a}")
            a, weights = recording.write_network(scratch)
        reading = {"lenient": lenient, "cutoff": cutoff, "width": width, "height": height}
        loader = _Loader(scratch, weights, random_weights, seed, reading)
        network: Network | None = None
        actual: Side
        if is_folder(a):
            if target is not None:
                raise DncError("an engine has its target already", a, "leave --target out, or give the .cfg")
            actual = EngineSide(load(a))
        else:
            network, path = loader.network(a)
            actual = loader.compiled(network, path, target or "cpu", skip, progress)
        expected: Side
        if b is not None and (golden is not None or _is_recording(b)):
            expected = recording = Recording(b, network)
        elif b is not None and is_folder(b):
            expected = EngineSide(load(b), network)
        elif b is not None:
            expected = ReferenceSide(loader.network(b)[0])
            if isinstance(actual, EngineSide):
                _warn_of_another(actual.engine, expected.network)
                if width is None and height is None:
                    expected = ReferenceSide(expected.network.sized(actual.engine.manifest.input_shape))
        elif recording is not None:
            expected = recording
        elif network is None:
            hint = f"dnc compare {a} NET.cfg --weights NET.weights; or --golden, or another engine"
            raise DncError("an engine does not hold what to compare it with", a, hint)
        elif isinstance(actual, ReferenceSide):
            raise DncError("the reference interpreter would be compared with itself", a, "give --golden or an engine")
        else:
            expected = ReferenceSide(network)
        if recording is None:
            samples = [_sample(actual, expected, image, input, exif, seed)]
        elif image is None and input is None:
            samples = recording.samples()
        else:
            raise DncError("a recording has its own input", recording.path, "leave --image and --input out")
        progress("computing")
        comparison = compare(actual, expected, samples, tolerance)
        return dataclasses.replace(comparison, files=tuple(loader.files))


def _is_recording(path: str | PathLike[str]) -> bool:
    return Path(path).suffix == ".npz"


@dataclass(frozen=True)
class _Loader:
    folder: Path
    weights: str | PathLike[str] | None
    random_weights: bool
    seed: int
    reading: Mapping[str, Any]
    """How cfgs are read: arguments of `Network.load`, and fields of `CompileOptions`."""
    files: list[dict[str, str]] = dataclasses.field(default_factory=list)

    def network(self, cfg: str | PathLike[str]) -> tuple[Network, Path]:
        """The network and its .weights file."""
        cfg = find_cfg(cfg)
        if self.random_weights:
            bare = Network.load(cfg, **self.reading)
            weights = self.folder / "random.weights"
            with weights.open("wb") as file:
                write_weights(file, bare.layers, bare.with_random_weights(self.seed).arrays)
        else:
            weights = find_weights(cfg, self.weights)
        self.files.append({"cfg": str(cfg), "weights": "random" if self.random_weights else str(weights)})
        return Network.load(cfg, weights, **self.reading), weights

    def compiled(self, network: Network, weights: Path, target: str, skip: Sequence[str], progress: Progress) -> Side:
        """An engine of the network with the outputs of all layers, or the reference interpreter."""
        if target == REFERENCE:
            return ReferenceSide(network)
        if target not in targets:
            hint = close_match(target, [*targets, REFERENCE]) or f"one of: {', '.join([*targets, REFERENCE])}"
            raise TargetError(f"unknown target '{target}'", hint=hint)
        cfg = Path(network.file)
        options = CompileOptions(target=target, skip=skip, keep_layers=True, **self.reading)
        engine = compile_engine(cfg, weights, self.folder / f"{cfg.stem}.engine", options, progress)
        return EngineSide(engine, network, f"{cfg.name} for {engine.manifest.target}")


def _warn_of_another(engine: Engine, network: Network) -> None:
    made_from = engine.manifest.network
    if made_from.get("digest") != network.digest:
        what = "the engine was made from another cfg or other weights than it is compared with"
        warn(
            DncError(what, engine.folder, f"it was made from a {made_from.get('cfg')} of digest {made_from['digest']}")
        )


def _sample(
    actual: Side,
    expected: Side,
    image: str | PathLike[str] | None,
    input: str | PathLike[str] | None,
    exif: bool | None,
    seed: int,
) -> Sample:
    engines = [side.engine for side in (actual, expected) if isinstance(side, EngineSide)]
    networks = [side.network for side in (actual, expected) if isinstance(side, ReferenceSide)]
    shape = engines[0].manifest.input_shape if engines else networks[0].input_shape
    if image is not None and input is not None:
        raise DncError("two inputs", hint="give either --image or --input")
    if input is not None:
        return Sample("", _read_input(Path(input), shape))
    generator = np.random.default_rng(seed)
    preprocessing: Preprocessing | None = engines[0].manifest.preprocessing if engines else None
    if image is not None:
        if preprocessing is None:
            raise ImageError("this network takes no images", image, "give an .npy with --input")
        pixels = read_image(image, preprocessing.channels, exif=exif)
        return Sample("", preprocessing(pixels)[None], pixels)
    if preprocessing is not None and any(engine.manifest.input_dtype == "uint8" for engine in engines):
        channels, height, width = shape
        pixels = generator.integers(0, 256, (height, width, channels), np.uint8)
        return Sample("", preprocessing(pixels)[None], pixels)
    return Sample("", generator.random((1, *shape), np.float32))


def _read_input(path: Path, shape: tuple[int, ...]) -> Array:
    try:
        with open_regular(path):
            # Mapped: whatever its header says, no more is read than is there.
            x = np.load(path, "r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, MemoryError, OverflowError, zipfile.BadZipFile) as error:
        raise DncError(f"cannot read the input: {error}", path, "an .npy file of numpy.save") from error
    if not isinstance(x, np.ndarray) or x.dtype.kind not in "fiu" or x.shape[-len(shape) :] != shape:
        have = f"{x.shape} of {x.dtype}" if isinstance(x, np.ndarray) else "several arrays"
        raise DncError(f"the input is {have}, the network wants {shape}", path, "with or without a batch axis")
    return x.astype(np.float32).reshape(-1, *shape)
