"""Finds or compiles the engines that `dnc bench` is to measure, their peers, and the cfg behind them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dnc import zoo
from dnc.bench.peers import Peer, Plain, check_names
from dnc.bench.remote import RemoteSubject
from dnc.bench.subject import Subject, engine_name, unique
from dnc.compiler.compiling import compile_engine
from dnc.compiler.options import CompileOptions
from dnc.compiler.source import is_engine
from dnc.darknet.cfg import bundled_cfg, find_cfg, missing_hint
from dnc.darknet.network import Network
from dnc.darknet.weights import write_weights
from dnc.errors import DncError, close_match, warn
from dnc.graph.verification import photograph
from dnc.runtime.manifest import MANIFEST
from dnc.runtime.options import CALIBRATED
from dnc.runtime.package import SUFFIX
from dnc.targets import find
from dnc.targets.tvm.remote import Device
from dnc.typing import Progress, silent

__all__ = [
    "BenchOptions",
    "find_here",
    "make_peers",
    "make_subjects",
    "network_of",
    "sections",
    "weights_or_random",
]

RANDOM = "random.weights"


@dataclass(frozen=True)
class BenchOptions:
    """Options of `dnc bench`."""

    threads: int
    batch: int = 1
    streams: int = 1
    seconds: float = 20.0
    """How long to time, all together."""
    targets: Sequence[str] = ()
    """For a cfg: cpu if there is none."""
    precisions: Sequence[str] = ()
    weights: Path | None = None
    width: int | None = None
    height: int | None = None
    calibration: Path | None = None
    peers: Sequence[str] = ()
    interpreters: Mapping[str, str] = field(default_factory=dict)
    """The Python of a peer."""
    device: Device | None = None
    """Where engines run, if not here."""
    files: list[dict[str, str]] = field(default_factory=list)
    """Filled by `make_subjects`: the `cfg` and `weights` of what it compiled."""

    def __post_init__(self) -> None:
        """Raises DncError where there is no such peer."""
        check_names([*self.peers, *self.interpreters])


def find_here(folder: Path) -> str:
    """The only engine of a folder, or the folder itself, or else its only cfg. Raises DncError if there is none, or
    there are several."""
    if (folder / MANIFEST).is_file():
        return str(folder)
    try:
        inside = sorted(folder.iterdir())
    except OSError as error:
        raise DncError(f"cannot read the folder: {error.strerror or error}", folder) from error
    engines = [path for path in inside if path.suffix == SUFFIX or (path / MANIFEST).is_file()]
    paths = engines or [path for path in inside if path.suffix == ".cfg"]
    if len(paths) == 1:
        return str(paths[0])
    if not paths:
        raise DncError("there is no engine and no cfg here", folder, "name one: dnc bench NET.cfg")
    names = ", ".join(path.name for path in paths[:5]) + (", ..." if len(paths) > 5 else "")
    kind = "engines" if engines else "cfgs"
    raise DncError(f"there are {len(paths)} {kind} here: {names}", folder, "name those to measure")


def make_subjects(
    what: Sequence[str], options: BenchOptions, scratch: Path, progress: Progress = silent
) -> list[Subject]:
    """Opens engines that are named, and compiles cfgs that are named.

    Args:
        what: engine folders, packages, cfg files or names of networks of cfg/.
        scratch: a folder for what is compiled.

    Raises:
        DncError: something is no engine and no cfg, cannot be compiled, or does not take the batch.
    """
    for name in options.targets:
        # Before anything is compiled.
        find(name)
    places: list[tuple[str, Path]] = []
    for item in what:
        if is_engine(item):
            places.append((engine_name(Path(item).absolute()), Path(item)))
        else:
            places += _compile(item, options, scratch / str(len(places)), progress)
    names = unique([name for name, _ in places])
    named = [(name, place) for name, (_, place) in zip(names, places, strict=True)]
    device, batch = options.device, options.batch
    if device is not None:
        return [RemoteSubject(name, place, device.threads, batch, device=device) for name, place in named]
    return [Subject(name, place, options.threads, batch, options.streams) for name, place in named]


def _compile(
    item: str, options: BenchOptions, scratch: Path, progress: Callable[[str], None]
) -> list[tuple[str, Path]]:
    cfg = find_cfg(item)
    if not os.access(cfg, os.F_OK):
        known = [path.name for path in Path().iterdir() if is_engine(path) or path.suffix == ".cfg"]
        hint = close_match(item, known) or missing_hint(item)
        raise DncError(f"there is no engine and no cfg '{item}'", hint=hint)
    scratch.mkdir()
    weights = options.weights or weights_or_random(cfg, scratch)
    if weights.name == RANDOM:
        what = "no weights beside the cfg or in the zoo's cache: random ones stand in"
        warn(DncError(what, cfg, "--weights names some"))
    options.files.append({"cfg": str(cfg), "weights": "random" if weights.name == RANDOM else str(weights)})
    engines = []
    for target in options.targets or ["cpu"]:
        for precision in options.precisions or [""]:
            title = " ".join(filter(None, [cfg.stem, target if options.targets else "", precision]))
            place = scratch / f"{target}-{precision}"
            calibration = options.calibration if precision in CALIBRATED else None
            wanted = CompileOptions(
                target=target,
                width=options.width,
                height=options.height,
                precision=precision or None,
                calibration=calibration,
                verify=False,
            )
            tell = partial(_tell, progress, title)
            engine = compile_engine(cfg, weights, place, wanted, tell)
            if target == "cpu" and engine.manifest.target != target:
                title = title.replace(" cpu", "", 1) + f" ({engine.manifest.target})"
            engines.append((title, engine.folder))
    return engines


def _tell(progress: Callable[[str], None], title: str, text: str) -> None:
    progress(f"{title}: {text}")


def weights_or_random(cfg: Path, folder: Path) -> Path:
    """The weights that are found for a cfg, or random ones written to `folder`, which take as long."""
    known = zoo.weights_for(cfg)
    if known is not None:
        return known
    network = Network.load(cfg).with_random_weights()
    path = folder / RANDOM
    with path.open("wb") as file:
        write_weights(file, network.layers, network.arrays)
    return path


def network_of(
    subject: Subject, what: Sequence[str], options: BenchOptions, scratch: Path
) -> tuple[Network, Path] | None:
    """The network that an engine was compiled from, with its weights and their file; None if it is not found.

    It is looked for among the cfgs that were named, beside the engine, here, and in cfg/.
    """
    name = str(subject.manifest.network.get("cfg"))
    named = [find_cfg(item) for item in what if not is_engine(item)]
    random = list(scratch.glob(f"*/{RANDOM}"))
    for cfg in [*named, subject.folder.parent / name, Path(name), bundled_cfg(name)]:
        if not os.access(cfg, os.F_OK):
            continue
        for weights in [options.weights, zoo.weights_for(cfg), *random]:
            try:
                network = Network.load(cfg, weights) if weights is not None else None
            except DncError:
                continue
            if network is not None and weights is not None and network.digest == subject.manifest.network.get("digest"):
                return network.sized(subject.manifest.input_shape), weights
    return None


def sections(network: Network) -> dict[str, str]:
    """The place of each section in the cfg, by `#` and its number."""
    return {f"#{layer.index}": layer.where.short for layer in network.layers}


def make_peers(subject: Subject, what: Sequence[str], options: BenchOptions, scratch: Path) -> list[Peer]:
    """The peers on the network of an engine. Raises DncError if the network's cfg is not found, or it takes no arrays
    of float32."""
    if not options.peers:
        return []
    source = network_of(subject, what, options, scratch)
    if source is None:
        cfg = subject.manifest.network.get("cfg")
        hint = "put the cfg and its weights beside the engine, or name the cfg instead of the engine"
        what_is_missing = f"peers read {cfg} and its weights, which are not found as the engine has them"
        raise DncError(what_is_missing, subject.folder, hint)
    network, weights = source
    folder = scratch / "peers"
    folder.mkdir()
    plain = Plain.write(network, weights, _array(subject), folder)
    return [
        Peer(name, plain, options.threads, folder, options.interpreters.get(name, sys.executable))
        for name in dict.fromkeys(options.peers)
    ]


def _array(subject: Subject) -> npt.NDArray[np.float32]:
    """The engine's input, preprocessed if the engine does that itself."""
    preprocessing = subject.manifest.preprocessing
    if subject.manifest.input_dtype == "uint8" and preprocessing is not None:
        return np.stack([preprocessing(photograph(preprocessing.channels))] * subject.batch)
    return np.asarray(subject.feeds["input"], np.float32)
