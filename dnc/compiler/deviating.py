"""How far an engine with 8-bit numbers is from float32: measured when it is compiled, as it runs on this machine.

It is what would otherwise show when the engine is in use: sums that the CPU cuts off, ranges that do not fit, a bias
that is lost. `dnc.evaluation.deviation` measures it on images that were calibrated on, or on those of `data`;
engine.json keeps it, or why it could not be measured.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from dnc.compiler.options import CompileOptions
from dnc.compiler.preparing import dataset_for, lowered
from dnc.compiler.source import Source
from dnc.errors import DncError, TargetError, warn
from dnc.evaluation.deviation import Deviation, measure_deviation
from dnc.files.places import as_text
from dnc.graph.running import available
from dnc.runtime.arithmetic import loss, this_isa
from dnc.runtime.engine import runner_of
from dnc.runtime.manifest import Manifest
from dnc.runtime.options import CALIBRATED
from dnc.typing import Progress

__all__ = ["tell", "with_deviation"]

_IMAGES = 100
"""At most."""
_WORK = 200e9
"""Floating-point operations of the network on all images: large networks get fewer, and four at least."""


def with_deviation(
    manifest: Manifest, folder: Path, source: Source, options: CompileOptions, progress: Progress
) -> Manifest:
    """What engine.json says, with what the engine in a folder deviates by; as it is, if it has no 8-bit numbers."""
    if manifest.precision not in CALIBRATED:
        return manifest
    try:
        found = _measure(manifest, folder, source, options, progress)
    except DncError as error:
        # What is wrong with images or a device is no reason to have no engine.
        return _unmeasured(manifest, "; ".join(filter(None, [error.message, error.hint])))
    if isinstance(found, str):
        return _unmeasured(manifest, found)
    text = f"{found} ({found.device}, {this_isa()})"
    return dataclasses.replace(
        manifest,
        deviation={"measured": True, "text": text, "isa": this_isa(), "changed": found.changed, **found.to_json()},
    )


def _unmeasured(manifest: Manifest, reason: str) -> Manifest:
    deviation = {"measured": False, "text": f"not compared with float32: {reason}"}
    return dataclasses.replace(manifest, deviation=deviation)


def _measure(
    manifest: Manifest, folder: Path, source: Source, options: CompileOptions, progress: Progress
) -> Deviation | str:
    """What was measured, or why nothing can be."""
    runner = runner_of(manifest)(manifest.options).taking_turns()
    if manifest.preprocessing is None:
        return "the network takes no images"
    if not available():
        return "float32 is computed by ONNX Runtime, which is not installed"
    missing = runner.missing()
    if missing:
        return f"what runs it needs {missing}, which is not installed"
    if runner.arithmetic is not None and runner.arithmetic.saturates and loss(manifest.arithmetic, runner.arithmetic):
        return f"it is for CPUs with 8-bit arithmetic {manifest.arithmetic}, and this one has another ({this_isa()})"
    images = _images(source, options)
    session = runner.open(as_text(folder))
    exact = lowered(source, options, manifest.batch if isinstance(manifest.batch, int) else None)
    return measure_deviation(exact, manifest, session, images, progress=progress)


def _images(source: Source, options: CompileOptions) -> list[Path]:
    """What it is measured on."""
    flops = sum(layer.flops() for layer in source.network.layers)
    most = max(4, min(_IMAGES, int(_WORK / max(flops, 1))))
    return [entry.path for entry in dataset_for(source.calibration, options, most).entries]


_CHANGED = {"boxes": 0.2, "classes": 0.06}
"""The share that comes and goes above which a warning is due. Of eight trained networks on ONNX Runtime and OpenVINO
(benchmarks/int8.md) it is 0.157 and 0.025 at most where sums are exact; the bounds are two to three standard deviations
above that, of some 330 boxes or 90 answers. Where sums were cut off, those above the bounds are those that lost more
than 3 points of mAP or top-1."""
_ERROR = 0.45
"""The same for the error of a head, which tells networks less well apart: up to 0.3 in those that lose little, above
0.5 in the one that collapses."""
_FEW = 20
"""Boxes, or answers, below which shares are left to chance, and the error of the heads counts."""


def tell(manifest: Manifest, folder: Path) -> None:
    """Warns of an engine that is further from float32 than 8 bits by themselves bring it."""
    deviation = manifest.deviation
    if not deviation.get("measured"):
        return
    if deviation["kept"] + max(deviation["lost"], deviation["new"]) >= _FEW:
        far = deviation["changed"] > _CHANGED[deviation["kind"]]
    else:
        far = max((head["error"] for head in deviation["heads"]), default=0.0) > _ERROR
    if far:
        hint = "`dnc diagnose` shows where it is lost; --precision mixed keeps layers in float32"
        warn(TargetError(f"8 bits cost this network much: {deviation['text']}", folder, hint))
