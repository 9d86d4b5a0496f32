"""`dnc.compile`: cfg + weights -> engine folder. The command `dnc compile` has the same options."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any

import onnx_ir as ir

import dnc
from dnc import zoo
from dnc.compiler.autotuning import Tuned
from dnc.compiler.autotuning import autotune as choose_forms
from dnc.compiler.choosing import Candidate, choose
from dnc.darknet.cfg import find_cfg
from dnc.darknet.layers.base import layer_value
from dnc.darknet.lower import DECODE, lower
from dnc.darknet.network import Network
from dnc.darknet.weights import release_pages
from dnc.errors import CalibrationError, DncError, TargetError, WeightsError, close_match
from dnc.evaluation.datasets import Dataset, read_dataset, read_names
from dnc.files import cache_dir
from dnc.graph.pipeline import Applied, run_passes
from dnc.graph.quantization import PRECISIONS
from dnc.graph.verification import Verifier, available, feeds_for
from dnc.passes import Pass
from dnc.passes import passes as known_passes
from dnc.passes.equalize import Equalize
from dnc.passes.quantize import Quantize
from dnc.quantization.calibration import Calibration
from dnc.quantization.sensitivity import choose_float_layers, drop
from dnc.runtime.decoding import ClassifierHead, Head
from dnc.runtime.engine import Engine, load
from dnc.runtime.manifest import Manifest, write_folder
from dnc.runtime.preprocessing import COLORS, MODES, Preprocessing
from dnc.targets import Target, find
from dnc.zoo.recorded import read_recorded

__all__ = ["INPUTS", "compile", "explain", "find_labels", "find_target", "find_weights", "preprocessing_for"]

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
    tune: int | None = None,
    remote: str | None = None,
    precision: str | None = None,
    calibration: str | PathLike[str] | None = None,
    keep: Sequence[str] = (),
    max_drop: float | None = None,
    data: Sequence[str] = (),
    options: Mapping[str, str] | None = None,
    keep_layers: bool = False,
    dump_dir: str | PathLike[str] | None = None,
    lenient: bool = False,
    cutoff: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Engine:
    """Compiles a Darknet network to an engine.

    Args:
        cfg: the .cfg file, or the name of a network of cfg/. weights: the .weights file; looked for beside the cfg and
        in the zoo's cache if not given. target: a name of `dnc.targets.targets`; "aarch64" is tvm with triple=aarch64.
        out: the engine folder; the cfg's name with .engine, in the current folder, if not given. batch: the batch size;
        any if not given, or what the target has to have. input: "f32": the engine takes preprocessed arrays; "u8":
        pixels, and preprocesses them itself. preprocess: a mode of `dnc.runtime.preprocessing`; if not given what is
        recorded beside the weights (`dnc.zoo.recorded`), else
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
        autotune: measures on the target how each grouped convolution runs fastest (`dnc.compiler.autotuning`).
        tune: for TVM's targets, how many ways of writing its kernels to measure (`dnc.targets.tvm.tuning`).
        remote: for tune, where to measure if not here: HOST:PORT[,key=KEY][,threads=N] of a TVM RPC server or tracker.
        precision: the option of that name, which most targets have: "fp32" unless given.
        calibration: what `dnc calibrate` wrote, for precision int8 and mixed.
        keep: what these leave in float32: layer numbers ("36"), ranges of them ("30-36"), operators ("Add").
        max_drop: by how many percentage points mAP@0.50 or top-1 may drop on the images of `data`: for mixed, 0.5
            unless given; for target cpu with no precision given, which then chooses among the faster ones as well, of
            which those with 8 bits need a calibration.
        data: for max_drop: a .data file (its training images, the first 100), a list, a folder; what was calibrated on
            if not given.
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
    if precision is not None:
        options = {**(options or {}), "precision": precision}
    choice = find_target(target, options)
    if tune is not None and not choice.tunes:
        hint = "--target tvm, or --target cuda --backend tvm"
        raise TargetError(f"target {choice.name} has no kernels to tune", hint=hint)
    if remote is not None and tune is None:
        raise DncError("remote says where to tune", hint="give --tune TRIALS as well; `dnc bench --remote` measures")
    free = max_drop is not None and "precision" not in choice.given
    allowed = () if not free else ("bf16", "mixed") if calibration is not None else ("bf16",)
    offers = list(choice.candidates(allowed))
    chosen = ("mixed", *allowed)
    if max_drop is not None and not any(each.options.get("precision") in chosen for each in offers):
        hint = "it is for --precision mixed, and for --target cpu without --precision"
        raise DncError(f"target {choice.title} does not choose by accuracy, so max-drop says nothing", hint=hint)
    wanted = [(each, _wanted(each, passes, skip)) for each in offers if not each.missing()]
    batch = choice.batch if batch is None else batch
    if decode not in DECODE or input not in INPUTS:
        raise DncError(f"decode={decode}, input={input}: not known", hint=f"{', '.join(DECODE)}; {', '.join(INPUTS)}")
    if batch is not None and batch < 1:
        raise DncError(f"batch={batch} must be at least 1", hint="leave it out for batches of any size")
    tell("reading the network")
    cfg = find_cfg(cfg)
    weights = find_weights(cfg, weights)
    network = Network.load(cfg, weights, lenient=lenient, cutoff=cutoff)
    measured = _calibration(calibration, network, [str(each.options.get("precision", "fp32")) for each in offers])
    heads = _heads(network)
    wishes: dict[str, Any] = {"mode": preprocess, "color": color, "mean": mean, "std": std}
    wishes |= {"crop": crop, "interpolation": interpolation}
    preprocessing = _preprocessing(network, heads, wishes, read_recorded(weights))
    names = find_labels(cfg, labels, heads)
    tell("lowering")
    layers = range(len(network.layers)) if keep_layers else ()
    lowered = lower(
        network,
        batch=batch or "N",
        layers=layers,
        decode=decode,
        preprocessing=preprocessing,
        pixels=input == "u8",
    )
    dump = None if dump_dir is None else Path(dump_dir)
    proof = _verifier(network, lowered, preprocessing) if verify else None
    ready: list[Candidate] = []
    others = {each.title: f"needs {missing}, which is not installed" for each in offers if (missing := each.missing())}
    for each, first in wanted:
        model = lowered.clone()
        place = dump if dump is None or offers == [choice] else dump / each.title
        applied = run_passes(model, first, dump=place, verify=proof, progress=tell)
        unsupported = each.unsupported(model)
        if unsupported:
            others[each.title] = "cannot run this network:\n    " + "\n    ".join(unsupported)
            continue
        tuned: Tuned | None = None
        if autotune:
            tuned = choose_forms(model, each, batch=batch or 1, cache=cache_dir(), progress=tell)
        more = [] if tuned is None else tuned.passes()
        if more:
            more.append(known_passes["eliminate-dead-code"]())
        more += [item for item in each.final_passes() if item.name not in skip]
        applied += run_passes(model, more, dump=place, verify=proof, progress=tell, before=len(applied))
        manifest = _manifest(network, model, each, preprocessing, heads, names, applied, tuned, batch, input, decode)
        if measured is not None and each.options.get("precision") in PRECISIONS:
            more, found = _quantization(model, each, manifest, measured, keep, max_drop, data, tell)
            more = [item for item in more if item.name not in skip]
            applied += run_passes(model, more, dump=place, verify=proof, progress=tell, before=len(applied))
            manifest = _manifest(network, model, each, preprocessing, heads, names, applied, tuned, batch, input, decode)
            manifest = dataclasses.replace(manifest, report=found)
        candidate = Candidate(each, model, manifest)
        if free and each.options["precision"] == "bf16":
            exact = next((other for other in ready if type(other.target) is type(each)), None)
            loss = None if exact is None else drop(exact, candidate, _dataset(measured, data), progress=tell)
            if loss is None or loss > (max_drop or 0):
                others[each.title] = "nothing to compare it with" if loss is None else f"costs {loss:.2f} points"
                continue
        ready.append(candidate)
    if not ready:
        listing = "; ".join(f"target {name} {reason}" for name, reason in others.items())
        raise TargetError(listing, cfg, "choose another target")
    folder = Path(out) if out is not None else Path(f"{cfg.stem}.engine")
    tell("writing the engine")
    with write_folder(folder) as writer:
        if tune is not None:
            manifest = ready[0].manifest
            report, won = choice.build_tuned(
                ready[0].model,
                writer.folder,
                manifest,
                tune,
                remote=remote or "",
                cache=cache_dir(),
                progress=tell,
            )
            tuning = {**manifest.tuning, "kernels": won}
            manifest = dataclasses.replace(manifest, report={**manifest.report, **report}, tuning=tuning)
        elif offers == [choice]:
            report = choice.build(ready[0].model, writer.folder, ready[0].manifest, tell)
            manifest = dataclasses.replace(ready[0].manifest, report={**ready[0].manifest.report, **report})
        else:
            manifest = choose(ready, writer.folder, feeds_for(lowered, preprocessing, images=1), others, tell)
        writer.finish(manifest)
    return load(folder)


_MEASURED = 100
"""Images of `data`, at most."""
_MAX_DROP = 0.5
"""For precision mixed, in percentage points."""


def _calibration(
    path: str | PathLike[str] | None, network: Network, precisions: Sequence[str]
) -> Calibration | None:
    """The calibration that one of the precisions needs; None if none needs one."""
    needy = [each for each in precisions if each in PRECISIONS]
    if not needy:
        if path is not None:
            hint = "--precision int8, or --max-drop with --target cpu"
            raise CalibrationError(f"precision {precisions[0]} needs no calibration", path, hint)
        return None
    if path is None:
        hint = f"`dnc calibrate obj.data {Path(network.file).name}` measures one; name it with --calibration"
        raise CalibrationError(f"precision {needy[0]} needs a calibration", network.file, hint)
    measured = Calibration.read(path)
    measured.check(network)
    return measured


def _quantization(
    model: ir.Model,
    target: Target,
    manifest: Manifest,
    measured: Calibration,
    keep: Sequence[str],
    max_drop: float | None,
    data: Sequence[str],
    tell: Callable[[str], None],
) -> tuple[list[Pass], dict[str, str]]:
    """The passes that quantize the model for a target, and what mixed precision found, for the report."""
    recipe = target.quantization()
    if recipe is None:
        raise TargetError(f"target {target.name} has no 8-bit arithmetic that dnc knows of", hint="--target onnx")
    if recipe.signed and not measured.symmetric:
        what = f"target {target.name} rounds to numbers that are symmetric about 0, and the calibration is asymmetric"
        raise CalibrationError(what, hint="measure it with `dnc calibrate --symmetric`")

    def passes(others: Collection[str]) -> list[Pass]:
        kept = [*keep, *others]
        return [
            Equalize(measured.ranges, measured.channels, outputs=recipe.outputs),
            Quantize(measured.ranges, recipe, keep=kept),
            known_passes["eliminate-dead-code"](),
        ]

    if target.options["precision"] != "mixed":
        return passes(()), {}
    dataset = _dataset(measured, data)
    most = _MAX_DROP if max_drop is None else max_drop
    mixed = choose_float_layers(model, target, manifest, passes, dataset, max_drop=most, progress=tell)
    return passes([str(layer) for layer in mixed.kept]), {"mixed": str(mixed)}


def _dataset(measured: Calibration | None, data: Sequence[str]) -> Dataset:
    """What a drop is measured on: `data`, else what was calibrated on."""
    source = list(data)
    if not source and measured is not None:
        source = [item for item in str(measured.images.get("source", "")).split(", ") if item]
    if not source:
        raise CalibrationError("accuracy is measured on images; none are named", hint="name them with --data")
    dataset = read_dataset(source, key="train")
    return dataclasses.replace(dataset, entries=dataset.entries[:_MEASURED])


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
    choice = next(each for each in find_target(target).candidates() if not each.missing())
    wanted = _wanted(choice, passes, skip)
    tell("reading the network")
    cfg = find_cfg(cfg)
    found = Path(weights) if weights is not None else zoo.weights_for(cfg)
    network = Network.load(cfg, found, lenient=lenient, cutoff=cutoff)
    if found is None:
        network = network.with_random_weights()
    model = lower(network)
    preprocessing = _preprocessing(network, _heads(network), {}, {} if found is None else read_recorded(found))
    proof = _verifier(network, model, preprocessing) if verify else None
    return run_passes(model, wanted, verify=proof, progress=tell), found is not None


def preprocessing_for(network: Network, weights: str | PathLike[str], **wishes: Any) -> Preprocessing | None:
    """How the engine of this network preprocesses images, with these of `compile`'s arguments; None if it takes none.

    Raises DncError as `compile` does.
    """
    return _preprocessing(network, _heads(network), wishes, read_recorded(weights))


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


_SHORT = {"aarch64": ("tvm", {"triple": "aarch64"})}
"""Targets with options that have a name of their own."""


def find_target(name: str, options: Mapping[str, str] | None = None) -> Target:
    """The target of this name; raises TargetError if it or an option is unknown, or it is not installed."""
    name, more = _SHORT.get(name, (name, {}))
    target = find(name)({**more, **(options or {})})
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
        DncError: the file given cannot be read, is empty, or has another number of lines than there are classes.
    """
    if not heads:
        return ()
    classes = heads[-1].classes
    if labels is not None:
        names = read_names(labels)
        if len(names) != classes:
            raise DncError(f"{len(names)} labels for {classes} classes", labels, "one class name a line")
        return names
    own = cfg.with_suffix(".names")
    if own.is_file() and len(names := read_names(own)) == classes:
        return names
    beside = []
    for path in sorted(cfg.parent.glob("*.names")):
        # Nobody asked for these files: one that cannot be read is no error.
        with suppress(DncError):
            beside.append(read_names(path))
    fitting = [names for names in beside if len(names) == classes]
    if len(fitting) == 1:
        return fitting[0]
    for entry in zoo.entries():
        path = Path(zoo.__file__).parent / "labels" / f"{entry.labels}.names"
        if Path(entry.cfg).stem == cfg.stem and path.is_file() and len(names := read_names(path)) == classes:
            return names
    return ()


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


def _manifest(
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
) -> Manifest:
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
    return Manifest(
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
