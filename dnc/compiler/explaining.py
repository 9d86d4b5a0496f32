"""`dnc explain`: what each pass does to a network, layer by layer, and why it does nothing elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from dnc.compiler.compiling import offers_for
from dnc.compiler.options import CompileOptions
from dnc.compiler.preparing import TRAINING, lowered, prepare, verifier_for
from dnc.compiler.source import Source
from dnc.errors import BundleError
from dnc.runtime.engine import load
from dnc.typing import Progress, silent

__all__ = ["Explanation", "explain", "explain_engine"]


@dataclass(frozen=True)
class Explanation:
    """What the passes of one target did."""

    passes: tuple[Mapping[str, Any], ...]
    """For each pass, in order: `name`, `applied` and `missed` remarks (`where`, `text`), its `tolerance` and, where it
    was measured, the `error` of the outputs."""
    cfg: str = ""
    """The cfg and the weights that were read; empty of an engine."""
    weights: str = ""
    training: str = ""
    """The cfg's options that act in training only, in words."""
    real: bool = True
    """Whether the weights are the network's own: with random ones, passes that look at weights find nothing."""


def explain(
    cfg: str | PathLike[str],
    weights: str | PathLike[str] | None = None,
    options: CompileOptions | None = None,
    *,
    progress: Progress = silent,
) -> Explanation:
    """Runs the pipeline that `compile` would run, for the first target that is installed, and builds nothing.

    Args:
        cfg: the .cfg file, or the name of a network of cfg/.
        weights: the .weights file; looked for as by `compile`; random ones stand in where there are none.

    Raises:
        CfgError, WeightsError, PassError, TargetError: as `compile`.
    """
    options = options or CompileOptions()
    offers = offers_for(options)
    target = next(offer for offer in offers if not offer.missing())
    progress("reading the network")
    source = Source.read(cfg, weights, options, [target], random=True)
    batch = target.batch if options.batch is None else options.batch
    model = lowered(source, options, batch)
    verifier = verifier_for(source, model) if options.verify else None
    dump = None if options.dump_dir is None else Path(options.dump_dir)
    candidate = prepare(target, source, model, options, batch, verifier=verifier, dump=dump, progress=progress)
    return Explanation(
        tuple(item.to_json() for item in candidate.applied),
        source.network.file,
        source.network.weights,
        source.network.training,
        source.real,
    )


def explain_engine(folder: str | PathLike[str]) -> Explanation:
    """What the passes did when an engine was compiled. Raises BundleError if it is no engine, is damaged, or was made
    by a dnc that did not keep this."""
    engine = load(folder)
    manifest = engine.manifest
    if not manifest.remarks:
        hint = "compile it again, or explain its cfg"
        raise BundleError("an older dnc made the engine, and kept no remarks", engine.folder, hint)
    if not all(map(_are_remarks, manifest.remarks)):
        raise BundleError("the engine's remarks are not what dnc writes", engine.folder, "build the engine again")
    return Explanation(manifest.remarks, training=manifest.report.get(TRAINING, ""))


def _are_remarks(item: Mapping[str, Any]) -> bool:
    """Whether these are the remarks of a pass; somebody may have changed engine.json and its digest."""
    keys = ("where", "text")
    return (
        isinstance(item.get("name"), str)
        and "error" not in item
        and all(isinstance(item.get(verdict), list) for verdict in ("applied", "missed"))
        and all(isinstance(each, dict) for each in (*item["applied"], *item["missed"]))
        and all(isinstance(each.get(key), str) for each in (*item["applied"], *item["missed"]) for key in keys)
    )
