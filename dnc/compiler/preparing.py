"""Making a network ready for a target: its pipeline, with what the options add to it, run on a copy of the graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from dnc import __version__
from dnc.compiler.autotuning import autotune
from dnc.compiler.options import CompileOptions
from dnc.compiler.source import Source
from dnc.darknet.layers.base import layer_value
from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.darknet.weights import release_pages
from dnc.errors import CalibrationError, DncError, PassError
from dnc.evaluation.datasets import Dataset, evenly, read_dataset
from dnc.files.places import cache_dir
from dnc.graph.composites import inline_composites
from dnc.graph.pipeline import Decision, Pipeline, Step
from dnc.graph.quantization import attach_ranges
from dnc.graph.running import available
from dnc.graph.verification import Verifier, feeds_for
from dnc.passes import find, passes
from dnc.passes.shared.reduced_precision import Keep
from dnc.quantization.calibration import Calibration
from dnc.quantization.sensitivity import choose_float_layers
from dnc.runtime.manifest import Manifest
from dnc.targets import Target
from dnc.targets.base import Candidate
from dnc.typing import Progress

__all__ = ["TRAINING", "dataset_for", "lowered", "prepare", "verifier_for"]

TRAINING = "training only"
"""The topic of the report that has the cfg's options that no engine needs."""
_MEASURED = 100
"""Images that a drop of accuracy is measured on, at most."""
_NAME_IMAGES = "name images with --data"
_MAX_DROP = 0.5
"""For precision mixed, in percentage points."""
_LARGE = 20e9
"""Floating-point operations from which on one image proves a pass instead of two."""


def lowered(source: Source, options: CompileOptions, batch: int | None) -> ir.Model:
    """The network as a graph that no pass has seen; a free batch is called N."""
    return lower(
        source.network,
        batch=batch or "N",
        layers=range(len(source.network.layers)) if options.keep_layers else (),
        decode=options.decode,
        preprocessing=source.preprocessing,
        pixels=options.input == "u8",
    )


def verifier_for(source: Source, model: ir.Model) -> Verifier | None:
    """What proves the passes on a lowered model; None without an ONNX Runtime to run it with."""
    if not available():
        return None
    network = source.network
    images = 1 if sum(layer.flops() for layer in network.layers) > _LARGE else 2
    # A softmax or a logistic that is saturated would hide what happens before it.
    watch = [layer_value(index) for layer in network.outputs for index in (layer.index, *layer.sources) if index >= 0]
    feeds = feeds_for(model, source.preprocessing, images=images)
    return Verifier(feeds, watch, lambda: release_pages(network.arrays))


def prepare(
    target: Target,
    source: Source,
    model: ir.Model,
    options: CompileOptions,
    batch: int | None,
    *,
    verifier: Verifier | None,
    dump: Path | None,
    progress: Progress,
    watch: Callable[[Step, ir.Model], None] = lambda *_: None,
) -> Candidate:
    """Runs a target's pipeline on a copy of a lowered model.

    Args:
        target: what it is made ready for.
        source: the network.
        model: the network, lowered; it stays as it is.
        options: which passes, and what is measured.
        batch: the size of batches; None for any.
        verifier: proves each pass.
        dump: a folder for the graph after each pass.
        watch: as for `Pipeline.run`.

    Raises:
        PassError: a pass failed, or changed the outputs.
        TargetError: the target cannot run the network (`UnsupportedError`), or not with 8-bit numbers.
        CalibrationError: the target needs another calibration, or nothing says which images to measure on.
    """
    _check_keep(options.keep, source.network)
    manifest = _manifest(source, model, target, options, batch)
    measured: dict[str, Any] = {}
    cache = cache_dir(to_write=True)
    calibration = source.calibration if target.needs_calibration else None

    def tune(ready: ir.Model) -> Sequence[Step]:
        tuned = autotune(ready, target, batch=batch or 1, cache=cache, progress=progress)
        measured["tuning"] = tuned.to_json()
        steps = [Step(item, "faster so on this machine") for item in tuned.passes()]
        return [*steps, Step(passes["eliminate-dead-code"]())] if steps else []

    def mix(ready: ir.Model) -> Sequence[Step]:
        def quantize(kept: Collection[str]) -> Sequence[Step]:
            return target.quantize([*options.keep, *kept])

        most = _MAX_DROP if options.max_drop is None else options.max_drop
        dataset = dataset_for(calibration, options)
        mixed = choose_float_layers(
            ready, target, manifest, quantize, dataset, max_drop=most, cache=cache, progress=progress
        )
        measured["report"] = {**manifest.report, "mixed": str(mixed)}
        return quantize([str(layer) for layer in mixed.kept])

    tuning = [Decision("autotune", tune, "forms are timed as they will run")] if options.autotune else []
    mixes = calibration is not None and target.options["precision"] == "mixed"
    quantization = [Decision("mixed", mix, "measured on what runs otherwise")] if mixes else None
    pipeline = target.pipeline(options.keep, tuning=tuning, quantization=quantization)
    if options.passes is not None:
        pipeline = _named(pipeline, options.passes)
    for name in options.skip:
        find(name)
    copy = model.clone()
    inline_composites(copy, keep=target.composites | pipeline.expanded(options.skip))
    if calibration is not None:
        _check_symmetric(calibration, target)
        attach_ranges(copy, calibration.ranges)
    applied = pipeline.run(copy, skip=options.skip, dump=dump, verify=verifier, progress=progress, watch=watch)
    summary = tuple({"name": item.name, "applied": item.count} for item in applied)
    # What was measured differs from machine to machine; the same network and options give the same engine.
    remarks = tuple({key: value for key, value in item.to_json().items() if key != "error"} for item in applied)
    manifest = dataclasses.replace(manifest, passes=summary, remarks=remarks, **measured)
    return Candidate(target, copy, manifest, tuple(applied))


def _check_keep(keep: Collection[str], network: Network) -> None:
    """Of the passes, some see the network's last layers no more."""
    named, end = max((last for _, last in Keep(keep).ranges), default=-1), len(network.layers) - 1
    if named > end:
        what = f"keep names layer {named}, but the network's last is {end}"
        raise PassError(what, network.file, "layers count from 0")


def _check_symmetric(calibration: Calibration, target: Target) -> None:
    spec = target.quantization()
    if spec is not None and spec.symmetric and not calibration.symmetric:
        what = f"target {target.name} rounds to numbers that are symmetric about 0, and the calibration is asymmetric"
        raise CalibrationError(what, hint="measure it with `dnc calibrate --symmetric`")


def _named(pipeline: Pipeline, texts: Sequence[str]) -> Pipeline:
    """The pipeline with these passes in place of its optimizations: `name` or `name:key=value,…`.

    A pass that the pipeline has keeps the options that it has there; one that the precision asks for keeps its place as
    well. Raises PassError for an unknown one, and for one that a decision runs.
    """
    steps = list(pipeline)
    first = next(place for place, step in enumerate(steps) if isinstance(step, Decision))
    own = {step.name: step.rewriting for step in steps if isinstance(step, Step)}
    wanted, rest = [], steps[first:]
    places = {step.name: place for place, step in enumerate(rest) if step.name != "eliminate-dead-code"}
    for text in texts:
        name, _, given = text.partition(":")
        if name == "quantize" and "mixed" in places:
            what = "pass quantize: precision mixed decides itself where there are 8 bits"
            raise PassError(what, hint="leave it out of --passes, or --precision int8")
        values = {key: value for key, _, value in (item.partition("=") for item in given.split(",") if item)}
        rewriting = own[name].configured(values) if name in own else find(name).from_text(values)
        step = Step(rewriting, "named", named=True)
        if name in places and name in own:
            rest[places[name]] = step
        else:
            wanted.append(step)
    return Pipeline([*wanted, *rest])


def dataset_for(
    calibration: Calibration | None, options: CompileOptions, most: int = _MEASURED, *, key: str = "train"
) -> Dataset:
    """What accuracy is measured on: the images that the options name, else those that were calibrated on; of many, some
    from all over them.

    Args:
        most: images, at most.
        key: the list of a .data file that the options name: "train", or "valid", of which calibrations know nothing.

    Raises:
        DatasetError, ImageError: the images named cannot be read.
        CalibrationError: none are named, also by the calibration, or those that were calibrated on are no longer there.
    """
    if options.data:
        dataset = read_dataset(options.data, key=key)
    elif calibration is None:
        raise CalibrationError("accuracy is measured on images, and none are named", hint=_NAME_IMAGES)
    else:
        dataset = _calibrated_on(calibration)
    return dataclasses.replace(dataset, entries=evenly(dataset.entries, most))


def _calibrated_on(calibration: Calibration) -> Dataset:
    """All images that were calibrated on; of a calibration that does not list them, those that they were among."""
    if not calibration.sources:
        raise CalibrationError("the calibration names no images", hint=_NAME_IMAGES)
    try:
        dataset = read_dataset(calibration.sources, key="train")
    except DncError as error:
        what = f"the images that were calibrated on are not there ({error.message})"
        raise CalibrationError(what, hint=_NAME_IMAGES) from error
    files = set(calibration.images.get("files", ()))
    entries = tuple(entry for entry in dataset.entries if not files or entry.path.name in files)
    if not entries:
        raise CalibrationError("the images that were calibrated on are not where they were", hint=_NAME_IMAGES)
    return dataclasses.replace(dataset, entries=entries)


def _manifest(source: Source, model: ir.Model, target: Target, options: CompileOptions, batch: int | None) -> Manifest:
    """engine.json but for what passes and measuring add."""
    network = source.network
    bits = sum(layer.bit_operations() for layer in network.layers)
    outputs = [value for value in model.graph.outputs if not (value.name or "").startswith("next")]
    dims = [() if value.shape is None else tuple(value.shape)[1:] for value in outputs]
    states = {
        f"state{layer.index:03d}.{name}": shape for layer in network.layers for name, shape in layer.states().items()
    }
    return Manifest(
        name=Path(network.file).stem,
        target=target.name,
        runner=target.runs.name,
        network={
            "cfg": Path(network.file).name,
            "digest": network.digest,
            "layers": len(network.layers),
            "parameters": network.parameters(),
            "bflops": round(sum(layer.flops() for layer in network.layers) / 1e9, 6),
            **({"bit_operations": bits} if bits else {}),
        },
        input_shape=network.input_shape,
        batch=batch or "N",
        outputs=tuple(value.name or "" for value in outputs),
        output_shapes=tuple(tuple(dim for dim in shape if isinstance(dim, int)) for shape in dims),
        preprocessing=source.preprocessing,
        input_dtype="uint8" if options.input == "u8" else "float32",
        decode=options.decode,
        heads=source.heads,
        extra_inputs=tuple(
            value.name or "" for value in model.graph.inputs if value.name != "input" and value.name not in states
        ),
        states=states,
        labels=source.labels,
        tools={"dnc": __version__, **target.versions()},
        report={TRAINING: network.training} if network.training else {},
        options=target.given,
        arithmetic=target.arithmetic.name if target.needs_calibration and target.arithmetic is not None else "",
    )
