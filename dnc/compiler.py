"""`dnc.compile`: cfg + weights -> engine folder. The command `dnc compile` has the same options."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any

import onnx_ir as ir

import dnc
from dnc import zoo
from dnc.autotune import Tuned
from dnc.autotune import autotune as tune
from dnc.bundle import Bundle, write_folder
from dnc.decode import ClassifierHead, Head
from dnc.errors import DncError, TargetError, WeightsError, close_match
from dnc.layers.base import layer_value
from dnc.lower import DECODE, lower
from dnc.network import Network
from dnc.passes import Pass
from dnc.passes import passes as known_passes
from dnc.pipeline import Applied, run_passes
from dnc.preprocess import COLORS, MODES, Preprocessing
from dnc.recorded import read_recorded
from dnc.runtime import Engine, load
from dnc.targets import Target, find
from dnc.verify import Verifier, available, feeds_for
from dnc.weights import release_pages

__all__ = ["INPUTS", "compile", "explain", "find_labels", "find_target", "find_weights"]

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
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    crop: float | None = None,
    interpolation: str | None = None,
    decode: str = "host",
    labels: str | PathLike[str] | None = None,
    passes: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    verify: bool = True,
    autotune: bool = False,
    options: Mapping[str, str] | None = None,
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
        batch: the batch size; any if not given, or what the target has to have.
        input: "f32": the engine takes preprocessed arrays; "u8": pixels, and preprocesses them itself.
        preprocess: a mode of `dnc.preprocess`; if not given what is recorded beside the weights (`dnc.recorded`), else
            "letterbox" where the cfg says letter_box=1, "center-crop" for classifiers, else "resize".
        color: "rgb", "bgr" or "gray"; if not given what is recorded, else rgb, or gray for one channel.
        mean, std: of one number or one per channel; the network's input is (pixel / 255 - mean) / std. If not given
            what is recorded, else 0 and 1.
        crop: the share of the short side that center-crop keeps; if not given what is recorded, else 1.
        interpolation: "bilinear" or "bicubic", how center-crop resizes; if not given what is recorded, else bilinear.
        decode: where boxes are decoded: "host", "graph", or "graph+nms".
        labels: a file with one class name a line; looked for beside the cfg if not given.
        passes: the passes to run, in order, in place of the target's own.
        skip: passes to leave out.
        verify: compares the outputs after each pass with those before it, on noise and on a photograph, and fails if
            they differ by more than the pass declares. Needs ONNX Runtime, and is left out without it.
        autotune: measures on the target how each grouped convolution runs fastest (`dnc.autotune`).
        options: what to tell the target, by name, as text (`Target.known_options`).
        keep_layers: makes the output of every layer an output of the engine, for comparisons.
        dump_dir: a folder for the graph after each pass.
        lenient: what Darknet takes in silence warns instead of failing.
        cutoff: takes the first so many layers.
        progress: is told what happens now.

    Returns:
        The engine, not opened yet.

    Raises:
        CfgError, WeightsError: the network cannot be read.
        DncError: the preprocessing makes no sense, or its record is damaged.
        PassError: a pass failed, or changed the outputs.
        TargetError: the target is not installed, or cannot run the network.
        BundleError: the folder cannot be written.
    """
    tell = progress or (lambda _: None)
    choice = find_target(target, options)
    wanted = _wanted(choice, passes, skip)
    batch = choice.batch if batch is None else batch
    if decode not in DECODE or input not in INPUTS:
        raise DncError(f"decode={decode}, input={input}: not known", hint=f"{', '.join(DECODE)}; {', '.join(INPUTS)}")
    if batch is not None and batch < 1:
        raise DncError(f"batch={batch} must be at least 1", hint="leave it out for batches of any size")
    tell("reading the network")
    cfg = zoo.find_cfg(cfg)
    weights = find_weights(cfg, weights)
    network = Network.load(cfg, weights, lenient=lenient, cutoff=cutoff)
    heads = _heads(network)
    wishes: dict[str, Any] = {"mode": preprocess, "color": color, "mean": mean, "std": std}
    wishes |= {"crop": crop, "interpolation": interpolation}
    preprocessing = _preprocessing(network, heads, wishes, read_recorded(weights))
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
    dump = None if dump_dir is None else Path(dump_dir)
    proof = _verifier(network, model, preprocessing) if verify else None
    applied = run_passes(model, wanted, dump=dump, verify=proof, progress=tell)
    unsupported = choice.unsupported(model)
    if unsupported:
        listing = "\n    ".join(unsupported)
        raise TargetError(f"target {choice.name} cannot run this network:\n    {listing}", cfg, "choose another target")
    tuned: Tuned | None = None
    if autotune:
        tuned = tune(model, choice, batch=batch or 1, cache=zoo.cache_dir(), progress=tell)
        more = tuned.passes()
        if more:
            more.append(known_passes["eliminate-dead-code"]())
        applied += run_passes(model, more, dump=dump, verify=proof, progress=tell, before=len(applied))
    folder = Path(out) if out is not None else Path(f"{cfg.stem}.engine")
    tell("writing the engine")
    with write_folder(folder) as writer:
        names = find_labels(cfg, labels, heads)
        about = _bundle(network, model, choice, preprocessing, heads, names, applied, tuned, batch, input, decode)
        report = choice.build(model, writer.folder, about)
        writer.finish(dataclasses.replace(about, report=report))
    return load(folder)


def explain(
    cfg: str | PathLike[str],
    weights: str | PathLike[str] | None = None,
    target: str = "cpu",
    *,
    passes: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    verify: bool = True,
    lenient: bool = False,
    cutoff: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> tuple[list[Applied], bool]:
    """What each pass does to a network, layer by layer, and why it does nothing elsewhere.

    Returns:
        What each pass did, in order; and whether the weights are real: where there are none, random ones stand in, in
        which passes that look at weights (trim-kernels) find nothing.

    Raises:
        CfgError, WeightsError, PassError, TargetError: as `compile`.
    """
    tell = progress or (lambda _: None)
    choice = find_target(target)
    wanted = _wanted(choice, passes, skip)
    tell("reading the network")
    cfg = zoo.find_cfg(cfg)
    found = Path(weights) if weights is not None else zoo.weights_for(cfg)
    network = Network.load(cfg, found, lenient=lenient, cutoff=cutoff)
    if found is None:
        network = network.with_random_weights()
    model = lower(network)
    preprocessing = _preprocessing(network, _heads(network), {}, {} if found is None else read_recorded(found))
    proof = _verifier(network, model, preprocessing) if verify else None
    return run_passes(model, wanted, verify=proof, progress=tell), found is not None


def _wanted(target: Target, names: Sequence[str] | None, skip: Sequence[str]) -> list[Pass]:
    """The passes to run, as the target sets them up where it has them; raises DncError for names that no pass has."""
    for name in (*(names or ()), *skip):
        if name not in known_passes:
            raise DncError(f"unknown pass '{name}'", hint=close_match(name, known_passes) or "see `dnc passes`")
    wanted = list(target.passes())
    if names is not None:
        own = {item.name: item for item in wanted}
        wanted = [own.get(name) or known_passes[name]() for name in names]
    return [item for item in wanted if item.name not in skip]


_LARGE = 20e9
"""Floating-point operations from which on one image proves a pass instead of two."""


def _verifier(network: Network, model: ir.Model, preprocessing: Preprocessing | None) -> Verifier | None:
    if not available():
        return None
    images = 1 if sum(layer.flops() for layer in network.layers) > _LARGE else 2
    # A softmax or a logistic that is saturated would hide what happens before it.
    watch = [layer_value(index) for layer in network.outputs for index in (layer.index, *layer.sources) if index >= 0]
    feeds = feeds_for(model, preprocessing, images=images)
    return Verifier(feeds, watch, lambda: release_pages(network.arrays))


def find_target(name: str, options: Mapping[str, str] | None = None) -> Target:
    """The target of this name, or the one that it chooses; raises TargetError if it or an option is unknown, or it is
    not installed."""
    target = find(name)(options).resolve()
    missing = target.missing()
    if missing:
        raise TargetError(f"target {name} needs {missing}, which is not installed", hint=target.remedy())
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
    wishes: Mapping[str, Any],
    recorded: Mapping[str, Any],
) -> Preprocessing | None:
    """What is wished, where that is not None; else what is recorded; else what Darknet does."""
    if len(network.input_shape) != 3 or network.input_shape[0] not in (1, 3, 4):
        if any(wish is not None for wish in wishes.values()):
            raise DncError("this network does not take images, so it has no preprocessing", network.file)
        return None
    channels, height, width = network.input_shape
    classifier = bool(heads) and isinstance(heads[-1], ClassifierHead)
    usual = {
        "mode": "letterbox" if network.letter_box else "center-crop" if classifier else "resize",
        "color": "gray" if channels == 1 else "rgb",
    }
    chosen = {**usual, **recorded, **{key: wish for key, wish in wishes.items() if wish is not None}}
    if chosen["mode"] != "center-crop":
        for key in ("crop", "interpolation"):
            if wishes.get(key) is None:
                chosen.pop(key, None)
    for key in chosen.keys() & {"mean", "std"}:
        chosen[key] = tuple(chosen[key])
    try:
        return Preprocessing(width=width, height=height, channels=channels, **chosen)
    except ValueError as error:
        known = f"modes: {', '.join(MODES)}; colors: {', '.join(COLORS)}"
        if recorded:
            known += f"; recorded beside the weights: {', '.join(recorded)}"
        raise DncError(f"unusable preprocessing: {error}", network.file, known) from error


def _bundle(
    network: Network,
    model: ir.Model,
    target: Target,
    preprocessing: Preprocessing | None,
    heads: tuple[Head, ...],
    labels: tuple[str, ...],
    applied: Sequence[Applied],
    tuned: Tuned | None,
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
        tuning={} if tuned is None else tuned.to_json(),
        options=target.given,
    )
