"""`dnc.compile`: cfg + weights -> engine folder. The command `dnc compile` has the same options."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any

import onnx_ir as ir

import dnc
from dnc import zoo
from dnc.bundle import Bundle, write_folder
from dnc.decode import ClassifierHead, Head
from dnc.errors import DncError, TargetError, WeightsError, close_match
from dnc.layers.base import layer_value
from dnc.lower import DECODE, lower
from dnc.network import Network
from dnc.passes import passes as known_passes
from dnc.pipeline import Applied, run_passes
from dnc.preprocess import COLORS, MODES, Preprocessing
from dnc.runtime import Engine, load
from dnc.targets import Target, targets

__all__ = ["INPUTS", "compile", "find_labels", "find_target", "find_weights"]

INPUTS = ("f32", "u8")


def compile(
    cfg: str | PathLike[str],
    weights: str | PathLike[str] | None = None,
    target: str = "cpu",
    out: str | PathLike[str] | None = None,
    *,
    batch: int | None = None,
    input: str = "f32",
    preprocess: str | None = None,
    color: str | None = None,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    decode: str = "host",
    labels: str | PathLike[str] | None = None,
    skip: Sequence[str] = (),
    keep_layers: bool = False,
    dump_dir: str | PathLike[str] | None = None,
    lenient: bool = False,
    cutoff: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Engine:
    """Compiles a Darknet network to an engine.

    Args:
        cfg: the .cfg file, or the name of a network of cfg/.
        weights: the .weights file; looked for beside the cfg and in the zoo's cache if not given.
        target: a name of `dnc.targets.targets`.
        out: the engine folder; the cfg's name with .engine, in the current folder, if not given.
        batch: the batch size; any if not given.
        input: "f32": the engine takes preprocessed arrays; "u8": pixels, and preprocesses them itself.
        preprocess: a mode of `dnc.preprocess`; if not given "letterbox" where the cfg says letter_box=1,
            "center-crop" for classifiers, else "resize".
        color: "rgb", "bgr" or "gray"; rgb, or gray for one channel, if not given.
        mean, std: of one number or one per channel; the network's input is (pixel / 255 - mean) / std.
        decode: where boxes are decoded: "host", "graph", or "graph+nms".
        labels: a file with one class name a line; looked for beside the cfg if not given.
        skip: passes to leave out.
        keep_layers: makes the output of every layer an output of the engine, for comparisons.
        dump_dir: a folder for the graph after each pass.
        lenient: what Darknet takes in silence warns instead of failing.
        cutoff: takes the first so many layers.
        progress: is told what happens now.

    Returns:
        The engine, not opened yet.

    Raises:
        CfgError, WeightsError: the network cannot be read.
        TargetError: the target is not installed, or cannot run the network.
        BundleError: the folder cannot be written.
    """
    tell = progress or (lambda _: None)
    choice = find_target(target)
    for name in skip:
        if name not in known_passes:
            raise DncError(f"unknown pass '{name}'", hint=close_match(name, known_passes) or "see `dnc passes`")
    if decode not in DECODE or input not in INPUTS:
        raise DncError(f"decode={decode}, input={input}: not known", hint=f"{', '.join(DECODE)}; {', '.join(INPUTS)}")
    if batch is not None and batch < 1:
        raise DncError(f"batch={batch} must be at least 1", hint="leave it out for batches of any size")
    tell("reading the network")
    cfg = zoo.find_cfg(cfg)
    weights = find_weights(cfg, weights)
    network = Network.load(cfg, weights, lenient=lenient, cutoff=cutoff)
    heads = _heads(network)
    preprocessing = _preprocessing(network, heads, preprocess, color, mean, std)
    tell("lowering")
    layers = range(len(network.layers)) if keep_layers else ()
    model = lower(
        network,
        batch=batch or "N",
        layers=layers,
        decode=decode,
        preprocessing=preprocessing,
        pixels=input == "u8",
    )
    wanted = [item for item in choice.passes() if item.name not in skip]
    dump = None if dump_dir is None else Path(dump_dir)
    applied = run_passes(model, wanted, dump=dump, progress=tell)
    unsupported = choice.unsupported(model)
    if unsupported:
        listing = "\n    ".join(unsupported)
        raise TargetError(f"target {choice.name} cannot run this network:\n    {listing}", cfg, "choose another target")
    folder = Path(out) if out is not None else Path(f"{cfg.stem}.engine")
    tell("writing the engine")
    with write_folder(folder) as writer:
        choice.build(model, writer.folder)
        names = find_labels(cfg, labels, heads)
        writer.finish(_bundle(network, model, choice, preprocessing, heads, names, applied, batch, input, decode))
    return load(folder)


def find_target(name: str) -> Target:
    """The target of this name, or the one that it chooses; raises TargetError if unknown or not installed."""
    if name not in targets:
        hint = close_match(name, targets) or f"one of: {', '.join(targets)}"
        raise TargetError(f"unknown target '{name}'", hint=hint)
    target = targets[name]().resolve()
    missing = target.missing()
    if missing:
        hint = f'pip install "darknet-compiler[{target.extra}]", or pip install {missing}'
        raise TargetError(f"target {name} needs {missing}, which is not installed", hint=hint)
    return target


def find_weights(cfg: str | PathLike[str], weights: str | PathLike[str] | None) -> Path:
    """The given weights, else those beside the cfg, else the zoo's; raises WeightsError if there are none."""
    if weights is not None:
        return Path(weights)
    # Unlike Path.exists, os.access raises nothing where the name is too long.
    if not os.access(cfg, os.F_OK) or Path(cfg).is_dir():
        # The cfg is what is missing, which Network.load says better.
        return Path()
    found = zoo.weights_for(Path(cfg))
    if found is None:
        known = any(Path(entry.cfg).stem == Path(cfg).stem for entry in zoo.entries())
        hint = f"`dnc zoo fetch {Path(cfg).stem}` gets them" if known else "name them with --weights"
        raise WeightsError("no weights beside the cfg or in the zoo's cache", cfg, hint)
    return found


def find_labels(cfg: Path, labels: str | PathLike[str] | None, heads: Sequence[Head]) -> tuple[str, ...]:
    """The names of the classes: from the file given; else beside the cfg, by its name or if it is the only one with
    as many lines as there are classes; else the zoo's for a network of that name; else none.

    Raises:
        DncError: the file given cannot be read, or has another number of lines than there are classes.
    """
    if not heads:
        return ()
    classes = heads[-1].classes
    if labels is not None:
        names = _names(Path(labels))
        if len(names) != classes:
            raise DncError(f"{len(names)} labels for {classes} classes", labels, "one class name a line")
        return names
    own = cfg.with_suffix(".names")
    if own.is_file() and len(names := _names(own)) == classes:
        return names
    beside = []
    for path in sorted(cfg.parent.glob("*.names")):
        # Nobody asked for these files: one that cannot be read is no error.
        with suppress(DncError):
            beside.append(_names(path))
    fitting = [names for names in beside if len(names) == classes]
    if len(fitting) == 1:
        return fitting[0]
    for entry in zoo.entries():
        path = Path(__file__).parent / "data" / f"{entry.labels}.names"
        if Path(entry.cfg).stem == cfg.stem and path.is_file() and len(names := _names(path)) == classes:
            return names
    return ()


def _names(path: Path) -> tuple[str, ...]:
    try:
        return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise DncError(f"cannot read the labels: {error}", path, "a text file with one class name a line") from error


def _heads(network: Network) -> tuple[Head, ...]:
    heads = tuple(head for head in (layer.head() for layer in network.layers) if head is not None)
    last = network.outputs[-1]
    if not heads and math.prod(last.shape) == last.shape[0] and not network.layers[0].states():
        # A classifier without [softmax]: its last layer has one value for each class.
        return (ClassifierHead(output=layer_value(last.index), where=last.where.short, classes=last.shape[0]),)
    return heads


def _preprocessing(
    network: Network,
    heads: Sequence[Head],
    mode: str | None,
    color: str | None,
    mean: Sequence[float],
    std: Sequence[float],
) -> Preprocessing | None:
    if len(network.input_shape) != 3 or network.input_shape[0] not in (1, 3, 4):
        if mode or color:
            raise DncError("this network does not take images, so it has no preprocessing", network.file)
        return None
    channels, height, width = network.input_shape
    classifier = bool(heads) and isinstance(heads[-1], ClassifierHead)
    usual = "letterbox" if network.letter_box else "center-crop" if classifier else "resize"
    try:
        return Preprocessing(
            width=width,
            height=height,
            channels=channels,
            mode=mode or usual,
            color=color or ("gray" if channels == 1 else "rgb"),
            mean=tuple(mean),
            std=tuple(std),
        )
    except ValueError as error:
        known = f"modes: {', '.join(MODES)}; colors: {', '.join(COLORS)}"
        raise DncError(f"unusable preprocessing: {error}", network.file, known) from error


def _bundle(
    network: Network,
    model: ir.Model,
    target: Target,
    preprocessing: Preprocessing | None,
    heads: tuple[Head, ...],
    labels: tuple[str, ...],
    applied: Sequence[Applied],
    batch: int | None,
    input: str,
    decode: str,
) -> Bundle:
    outputs = [value for value in model.graph.outputs if not (value.name or "").startswith("next")]
    shapes = []
    for value in outputs:
        sides = tuple(value.shape)[1:] if value.shape is not None else ()
        shapes.append(tuple(side for side in sides if isinstance(side, int)))
    states = {
        f"state{layer.index:03d}.{name}": shape for layer in network.layers for name, shape in layer.states().items()
    }
    tools = {"dnc": dnc.__version__, **target.versions()}
    summary: dict[str, Any] = {
        "cfg": Path(network.file).name,
        "digest": network.digest,
        "layers": len(network.layers),
        "parameters": network.parameters(),
        "bflops": round(sum(layer.flops() for layer in network.layers) / 1e9, 6),
    }
    return Bundle(
        name=Path(network.file).stem,
        target=target.name,
        network=summary,
        input_shape=network.input_shape,
        batch=batch or "N",
        outputs=tuple(value.name or "" for value in outputs),
        output_shapes=tuple(shapes),
        preprocessing=preprocessing,
        input_dtype="uint8" if input == "u8" else "float32",
        decode=decode,
        heads=heads,
        extra_inputs=tuple(
            value.name or "" for value in model.graph.inputs if value.name != "input" and value.name not in states
        ),
        states=states,
        labels=labels,
        passes=tuple({"name": item.name, "applied": item.count} for item in applied),
        tools=tools,
    )
