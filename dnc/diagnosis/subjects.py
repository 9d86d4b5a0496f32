"""What is diagnosed: an engine, and the network that it was made of, made ready for its target again.

An engine's graph is not in every engine, and its layers are outputs of none. So the network is compiled anew as
engine.json says, from its cfg, weights and calibration: the same network and options give the same engine. What is
compiled anew is looked into; what the engine finds in images is asked of the engine itself.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path

import onnx_ir as ir

from dnc import zoo
from dnc.compiler.compiling import offers_for
from dnc.compiler.options import CompileOptions
from dnc.compiler.preparing import lowered, prepare
from dnc.compiler.source import Source
from dnc.darknet.cfg import bundled_cfg, find_cfg
from dnc.darknet.network import Network
from dnc.diagnosis.parts import ENTRY
from dnc.diagnosis.report import PassRemarks, Remark, Side
from dnc.errors import DncError, TargetError
from dnc.graph.pairs import Pairing
from dnc.graph.pipeline import Step
from dnc.passes.shared.reduced_precision import ReducedPrecision
from dnc.runtime.arithmetic import HOST, ISAS, Arithmetic
from dnc.runtime.arithmetic import OPTION as ISA
from dnc.runtime.engine import Engine, load
from dnc.runtime.manifest import Manifest, write_folder
from dnc.runtime.options import CALIBRATED
from dnc.targets import Target, maker_of
from dnc.targets.base import Candidate
from dnc.targets.onnx import Onnx
from dnc.typing import Progress

__all__ = ["Subject", "float32", "from_cfg", "from_engine", "written"]


@dataclass(frozen=True)
class Subject:
    """An engine, and what it was made of."""

    source: Source
    options: CompileOptions
    """What makes its candidate."""
    candidate: Candidate
    """For one image at a time, with heads that are decoded outside of the graph."""
    exact: ir.Model
    """What the passes that round were given."""
    engine: Engine
    title: str
    """The engine's folder; of a cfg, whose engine is gone afterwards, the cfg."""

    @property
    def precision(self) -> str:
        """fp32, fp16, bf16, int8, mixed."""
        return str(self.candidate.target.options.get("precision", "fp32"))

    @property
    def arithmetic(self) -> Arithmetic | None:
        """What its 8-bit numbers are added up with: on this machine, and if that is exact, on the one that it is made
        for. None where it has none."""
        target = self.candidate.target
        here, made = target.runner().arithmetic, target.arithmetic
        if self.precision not in CALIBRATED:
            return None
        return here if here is not None and here.saturates else made

    @property
    def pairing(self) -> Pairing | None:
        """Which products its library adds up in 16 bits there; None where all sums are exact."""
        target, arithmetic = self.candidate.target, self.arithmetic
        if arithmetic is None or not arithmetic.saturates:
            return None
        if target.arithmetic is not arithmetic:
            # It is made for another CPU than this one.
            target = maker_of(target.name, {**target.given, ISA.name: HOST})
        spec = target.quantization()
        return spec.pairs[0] if spec is not None and spec.pairs else None

    @cached_property
    def eight_bits(self) -> frozenset[int]:
        """The layers that compute with 8-bit numbers; `ENTRY` where the network's input is rounded to them."""
        told = (
            remark.where
            for item in self.candidate.applied
            if item.name == "quantize"
            for remark in item.remarks.applied
        )
        found = {int(match[1]) for where in told if (match := re.search(r"#(\d+)$", where))}
        return frozenset({*found, ENTRY}) if found else frozenset()

    def side(self) -> Side:
        """What the report says of it."""
        manifest, arithmetic = self.engine.manifest, self.arithmetic
        said = "" if arithmetic is None else f"{arithmetic.name}: {arithmetic.summary}"
        return Side(self.title, manifest.target, self.precision, said, dict(manifest.options), dict(manifest.report))

    def passes(self) -> tuple[PassRemarks, ...]:
        """What each pass did."""
        return tuple(
            PassRemarks(
                item.name,
                *(tuple(Remark(*remark) for remark in told) for told in (item.remarks.applied, item.remarks.missed)),
            )
            for item in self.candidate.applied
        )

    def with_kept(self, layers: Sequence[int], progress: Progress) -> Candidate:
        """The candidate with more layers in float32."""
        options = dataclasses.replace(self.options, keep=(*self.options.keep, *map(str, layers)))
        return _ready(self.source, self.candidate.target, options, progress)[0]


def from_cfg(
    cfg: str | PathLike[str],
    weights: str | PathLike[str] | None,
    options: CompileOptions,
    folder: Path,
    progress: Progress,
) -> Subject:
    """What `dnc.compile` would make of a cfg, for the first target that is installed of those that may do.

    Args:
        folder: where to write the engine; an empty folder, or none.

    Raises:
        CfgError, WeightsError, CalibrationError, PassError, TargetError: as `dnc.compile`.
    """
    options = dataclasses.replace(options, batch=1, decode="host", input="f32")
    target = next(offer for offer in offers_for(options) if not offer.missing())
    progress("reading the network")
    source = Source.read(cfg, weights, options, [target])
    candidate, exact = _ready(source, target, options, progress)
    kept = _kept(candidate.manifest)
    if target.options.get("precision") == "mixed":
        # Chosen once; further layers are added to those.
        target, options = _as_int8(target), dataclasses.replace(options, keep=kept)
    progress("writing the engine")
    return Subject(source, options, candidate, exact, written(candidate, folder), os.fspath(cfg))


def from_engine(
    engine: Engine,
    cfg: str | PathLike[str] | None,
    weights: str | PathLike[str] | None,
    calibration: str | PathLike[str] | None,
    progress: Progress,
) -> Subject:
    """An engine, with its network compiled anew.

    Args:
        cfg: the network's; looked for beside the engine, in the current folder and among those of cfg/ if not given.
        weights: looked for as by `dnc.compile` if not given.
        calibration: what the engine's ranges are from, where it has 8 bits.

    Raises:
        DncError: something of this is missing, or is not what the engine was made of; or the engine was made as this
            dnc makes none.
    """
    manifest = engine.manifest
    target = maker_of(manifest.target, _options(manifest))
    if target.missing():
        raise TargetError(
            f"target {target.name} needs {target.missing()}, which is not installed", hint=target.remedy()
        )
    precision = target.options.get("precision")
    if precision in CALIBRATED and calibration is None:
        what = f"the engine has precision {precision}, and its calibration is needed to look into it"
        raise DncError(what, engine.folder, "name what it was compiled with: --calibration NET.calibration.json")
    if precision == "mixed":
        target = _as_int8(target)
    network, found = _network_of(engine, cfg, weights)
    height, width = manifest.input_shape[1:] if len(manifest.input_shape) == 3 else (None, None)
    options = CompileOptions(
        target=target.name,
        options=target.given,
        width=width,
        height=height,
        batch=1,
        keep=_kept(manifest),
        calibration=calibration if precision in CALIBRATED else None,
        lenient=True,
    )
    progress("reading the network")
    source = dataclasses.replace(
        Source.read(network.file, found, options, [target]),
        preprocessing=manifest.preprocessing,
        labels=manifest.labels,
    )
    names = {step.name for step in target.pipeline() if isinstance(step, Step)}
    ran = [str(item["name"]) for item in manifest.passes]
    options = dataclasses.replace(options, skip=sorted(names.difference(ran)) if ran else ())
    candidate, exact = _ready(source, target, options, progress)
    return Subject(source, options, candidate, exact, engine, os.fspath(engine.folder))


def float32(subject: Subject) -> Candidate:
    """The network of a subject in float32, for ONNX Runtime."""
    made = subject.candidate.manifest
    manifest = dataclasses.replace(
        made, target=Onnx.name, runner=Onnx.runs.name, options={}, arithmetic="", report={}, passes=(), remarks=()
    )
    return Candidate(Onnx(), subject.exact, manifest)


def _ready(source: Source, target: Target, options: CompileOptions, progress: Progress) -> tuple[Candidate, ir.Model]:
    """The network made ready for a target, and what the passes that round were given."""
    before: list[ir.Model] = []

    def watch(step: Step, model: ir.Model) -> None:
        if isinstance(step.rewriting, ReducedPrecision) and not before:
            before.append(model.clone())

    model = lowered(source, options, 1)
    candidate = prepare(target, source, model, options, 1, verifier=None, dump=None, progress=progress, watch=watch)
    return candidate, before[0] if before else candidate.model.clone()


def written(candidate: Candidate, folder: Path) -> Engine:
    """Writes an engine."""
    with write_folder(folder) as writer:
        report = candidate.target.build(candidate.model, writer.folder, candidate.manifest)
        report = {**candidate.manifest.report, **report}
        writer.finish(dataclasses.replace(candidate.manifest, report=report))
    return load(folder)


def _as_int8(target: Target) -> Target:
    """The same target, told which layers have 8 bits instead of choosing them."""
    return maker_of(target.name, {**target.given, "precision": "int8"})


def _options(manifest: Manifest) -> dict[str, str]:
    """What the target was told; the arithmetic that the engine was made for is named where it was this machine's."""
    known = [option.name for option in maker_of(manifest.target, manifest.options).known_options]
    isa = next((name for name, kind in ISAS.items() if kind.name == manifest.arithmetic), None)
    named = {ISA.name: isa} if isa is not None and ISA.name in known else {}
    return {**named, **manifest.options}


def _kept(manifest: Manifest) -> tuple[str, ...]:
    """What its passes were told to keep in float32."""
    told = [remark["text"] for item in manifest.remarks for remark in item["missed"]]
    kept = (re.fullmatch(r"(?:layer )?(\w+) is kept in float32", text) for text in told)
    return tuple(dict.fromkeys(match[1] for match in kept if match))


def _network_of(
    engine: Engine, cfg: str | PathLike[str] | None, weights: str | PathLike[str] | None
) -> tuple[Network, Path]:
    """The network that an engine was made of, and its weights."""
    made = engine.manifest.network
    name = str(made.get("cfg"))
    places = [engine.folder.parent / name, Path(name), bundled_cfg(name)] if cfg is None else [find_cfg(cfg)]
    tried = []
    for place in places:
        if not os.access(place, os.F_OK):
            continue
        found = Path(weights) if weights is not None else zoo.weights_for(Path(place))
        if found is None:
            continue
        network = Network.load(place, found, lenient=True)
        if network.digest == made.get("digest"):
            return network, found
        tried.append(f"{place} with {found}")
    if tried:
        what = f"the engine was made of other files than {' or '.join(tried)}"
        raise DncError(what, engine.folder, f"it was made of a {name} of digest {made.get('digest')}: --cfg, --weights")
    what = f"looking into an engine takes the {name} and the weights that it was made of, and they are not found"
    raise DncError(what, engine.folder, "name them with --cfg and --weights")
