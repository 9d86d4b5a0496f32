"""`dnc.compile`: cfg + weights -> engine folder. The command `dnc compile` has the same options."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import onnx_ir as ir

from dnc.compiler.choosing import choose
from dnc.compiler.deviating import tell, with_deviation
from dnc.compiler.options import CompileOptions
from dnc.compiler.preparing import dataset_for, lowered, prepare, verifier_for
from dnc.compiler.source import Source
from dnc.errors import CalibrationError, DncError, TargetError
from dnc.files.places import cache_dir
from dnc.graph.composites import is_composite
from dnc.graph.verification import feeds_for
from dnc.quantization.sensitivity import drop
from dnc.runtime.engine import Engine, load
from dnc.runtime.manifest import Manifest, write_folder
from dnc.targets import Selectable, Target, find
from dnc.targets.base import Candidate, TunableTarget, Tuning, UnsupportedError
from dnc.typing import Progress, silent

__all__ = ["compile", "compile_engine", "find_target", "offers_for"]


def compile(
    cfg: str | PathLike[str],
    weights: str | PathLike[str] | None = None,
    target: str = "cpu",
    out: str | PathLike[str] | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Engine:
    """Compiles a Darknet network to an engine.

    Args:
        cfg: the .cfg file, or the name of a network of cfg/.
        weights: the .weights file; looked for beside the cfg and in the zoo's cache if not given.
        target: what to compile for: cpu, onnx, openvino, tvm, cuda, myriad; "aarch64" is tvm with triple=aarch64.
        out: the engine folder; the cfg's name with .engine, in the current folder, if not given.
        progress: is told what happens now.
        options: the fields of `CompileOptions`, which are also the options of `dnc compile`.

    Returns:
        The engine, not opened yet.

    Raises:
        CfgError, WeightsError: the network cannot be read.
        DncError: the options contradict each other, or the preprocessing makes no sense.
        PassError: a pass failed, or changed the outputs.
        TargetError: the target is not installed, or cannot run the network.
        BundleError: the folder cannot be written.
    """
    return compile_engine(cfg, weights, out, CompileOptions(target=target, **options), progress or silent)


def compile_engine(
    cfg: str | PathLike[str],
    weights: str | PathLike[str] | None,
    out: str | PathLike[str] | None,
    options: CompileOptions,
    progress: Progress = silent,
) -> Engine:
    """`compile`, with the options as one object."""
    offers = offers_for(options)
    progress("reading the network")
    source = Source.read(cfg, weights, options, offers)
    folder = Path(out) if out is not None else Path(f"{source.cfg.stem}.engine")
    candidates, refused = _prepare(source, offers, options, progress)
    progress("writing the engine")
    with write_folder(folder) as writer:
        manifest = _write(candidates, refused, writer.folder, options, progress)
        if reason := find_target(options.target, options.told).reason():
            manifest = dataclasses.replace(manifest, report={"choice": reason, **manifest.report})
        if options.verify:
            manifest = with_deviation(manifest, writer.folder, source, options, progress)
        writer.finish(manifest)
    tell(manifest, folder)
    return load(folder)


def offers_for(options: CompileOptions) -> list[Target]:
    """The targets that may do what is asked for, those that are not installed included.

    Raises:
        TargetError: the target or an option of it is unknown, or nothing of it is installed.
        DncError: what is asked for is not for this target.
    """
    destination = find_target(options.target, options.told)
    free = options.max_drop is not None and "precision" not in destination.given
    # Those with 8 bits need a calibration.
    allowed = () if not free else ("bf16", "mixed") if options.calibration is not None else ("bf16",)
    offers = list(destination.candidates(allowed))
    chosen = ("mixed", *allowed)
    if options.max_drop is not None and not any(offer.options.get("precision") in chosen for offer in offers):
        title = offers[0].title if len(offers) == 1 else destination.name
        hint = "it is for --precision mixed, and for --target cpu without --precision"
        raise DncError(f"target {title} does not choose by accuracy, so max-drop says nothing", hint=hint)
    if options.keep and not any(offer.needs_calibration or offer.storage() for offer in offers):
        hint = "it is for --precision int8 and mixed, and for what fp16 and bf16 of targets onnx, tvm and cuda store"
        what = f"target {destination.name} rounds nothing that could stay in float32, so keep says nothing"
        raise DncError(what, hint=hint)
    if options.tune is not None and not (len(offers) == 1 and isinstance(offers[0], TunableTarget)):
        hint = "--target tvm, or --target cuda --backend tvm"
        raise TargetError(f"target {destination.name} has no kernels to tune", hint=hint)
    return offers


SHORT_NAMES = {"aarch64": ("tvm", {"triple": "aarch64"})}
"""Targets with options that have a name of their own."""


def find_target(name: str, options: Mapping[str, str] | None = None) -> Selectable:
    """The target of this name; raises TargetError if it or an option is unknown, or it is not installed."""
    name, more = SHORT_NAMES.get(name, (name, {}))
    target = find(name)({**more, **(options or {})})
    missing = target.missing()
    if missing:
        raise TargetError(f"target {name} needs {missing}, which is not installed", hint=target.remedy())
    return target


def _prepare(
    source: Source, offers: Sequence[Target], options: CompileOptions, progress: Progress
) -> tuple[list[Candidate], dict[str, str]]:
    """The network made ready for each offer that can run it, and why the others are none."""
    batch = offers[0].batch if options.batch is None else options.batch
    progress("lowering")
    model = lowered(source, options, batch)
    verifier = verifier_for(source, model) if options.verify else None
    ready: list[Candidate] = []
    unfit: CalibrationError | None = None
    refused = {
        offer.title: f"needs {missing}, which is not installed" for offer in offers if (missing := offer.missing())
    }
    for offer in offers:
        if offer.title in refused:
            continue
        proven = offer.proven()
        same = None if proven is None else next((one for one in ready if one.target.title == proven.title), None)
        if same is not None and not _takes_others(model, offer, same.target):
            # It differs in how it is built alone.
            ready.append(
                dataclasses.replace(
                    same, target=offer, manifest=dataclasses.replace(same.manifest, options=offer.given)
                )
            )
            continue
        dump = None if options.dump_dir is None else Path(options.dump_dir) / (offer.title if len(offers) > 1 else "")
        try:
            candidate = prepare(offer, source, model, options, batch, verifier=verifier, dump=dump, progress=progress)
        except (UnsupportedError, CalibrationError) as error:
            # A calibration may be for one of them alone.
            unfit = unfit or (error if isinstance(error, CalibrationError) else None)
            refused[offer.title] = error.message
            continue
        unproven = offer.unproven() if options.tune is not None and isinstance(offer, TunableTarget) else None
        if unproven is not None and _takes_others(model, unproven, offer):
            other = prepare(unproven, source, model, options, batch, verifier=verifier, dump=None, progress=progress)
            candidate = dataclasses.replace(candidate, unproven=other.model)
        reason = _loss(candidate, ready, source, options, progress)
        if reason:
            refused[offer.title] = reason
        else:
            ready.append(candidate)
    if not ready:
        if unfit is not None:
            raise unfit
        listing = "; ".join(f"target {name} {reason}" for name, reason in refused.items())
        raise TargetError(listing, source.cfg, "choose another target, or other options of it")
    return ready, refused


def _takes_others(model: ir.Model, one: Target, other: Target) -> bool:
    """Whether of two targets one takes a composite of the model whole, and the other does not."""
    return any(is_composite(node) and node.op_type in one.composites ^ other.composites for node in model.graph)


def _loss(
    candidate: Candidate, ready: Collection[Candidate], source: Source, options: CompileOptions, progress: Progress
) -> str:
    """Why a candidate in bfloat16 that nobody asked for by name costs too much accuracy; empty if it does not."""
    target = candidate.target
    if options.max_drop is None or options.told.get("precision") or target.options["precision"] != "bf16":
        return ""
    exact = next((other for other in ready if type(other.target) is type(target)), None)
    if exact is None:
        return "nothing to compare it with"
    dataset = dataset_for(source.calibration, options)
    loss = drop(exact, candidate, dataset, cache=cache_dir(to_write=True), progress=progress)
    return f"costs {loss:.2f} points" if loss > options.max_drop else ""


def _write(
    candidates: Sequence[Candidate],
    refused: Mapping[str, str],
    folder: Path,
    options: CompileOptions,
    progress: Progress,
) -> Manifest:
    """Writes the engine of the only candidate, or of the fastest one, into a folder; returns its manifest."""
    chosen = candidates[0]
    manifest = chosen.manifest
    if options.tune is not None:
        assert isinstance(chosen.target, TunableTarget)
        wanted = Tuning(*options.budget, options.remote or "", cache_dir(to_write=True))
        report, kernels = chosen.target.build_tuned(chosen.model, folder, manifest, wanted, progress, chosen.unproven)
        tuning = {**manifest.tuning, "kernels": kernels}
        manifest = dataclasses.replace(manifest, report={**manifest.report, **report}, tuning=tuning)
    elif len(candidates) + len(refused) == 1:
        report = chosen.target.build(chosen.model, folder, manifest, progress)
        manifest = dataclasses.replace(manifest, report={**manifest.report, **report})
    else:
        feeds = feeds_for(chosen.model, manifest.preprocessing, images=1)
        manifest = choose(candidates, folder, feeds, refused, progress)
    return manifest
