"""What is compiled: the network and all that is found with it, by name or by the options."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from dnc import zoo
from dnc.compiler.options import CompileOptions
from dnc.darknet.cfg import find_cfg, read_cfg
from dnc.darknet.layers.base import layer_value
from dnc.darknet.network import Network
from dnc.errors import CalibrationError, CfgError, DncError, WeightsError, tolerate, warn
from dnc.evaluation.datasets import is_folder, read_names
from dnc.files.reading import check_foreign
from dnc.quantization.calibration import Calibration
from dnc.runtime.decoding import ClassifierHead, Head
from dnc.runtime.options import CALIBRATED
from dnc.runtime.package import SUFFIX
from dnc.runtime.preprocessing import COLORS, MODES, Preprocessing
from dnc.targets import Target
from dnc.zoo.recorded import read_recorded, recorded_path

__all__ = ["Source", "find_labels", "find_weights", "heads_of", "is_engine", "preprocessing_for"]


_ANOTHER = "does it belong to another network? Delete it to do without, or say what is right: --preprocess, --mean, …"


@dataclass(frozen=True)
class Source:
    """A network, what its outputs mean, and how its input is made."""

    cfg: Path
    network: Network
    heads: tuple[Head, ...]
    preprocessing: Preprocessing | None
    """None for networks that take no images."""
    labels: tuple[str, ...]
    calibration: Calibration | None
    real: bool = True
    """Whether the weights are the network's own, and not random ones."""

    @classmethod
    def read(
        cls,
        cfg: str | PathLike[str],
        weights: str | PathLike[str] | None,
        options: CompileOptions,
        targets: Sequence[Target],
        *,
        random: bool = False,
    ) -> Source:
        """Reads what the options name, and finds what they do not.

        Args:
            cfg: the .cfg file, or the name of a network of cfg/.
            weights: the .weights file; looked for beside the cfg and in the zoo's cache if not given.
            options: of the compilation.
            targets: what may be compiled for: their precisions say whether a calibration is needed.
            random: random weights stand in where there are none.

        Raises:
            CfgError, WeightsError, CalibrationError: something cannot be read, is missing, or does not fit.
            DncError: the preprocessing makes no sense, or its record is damaged.
        """
        cfg = find_cfg(cfg)
        found = zoo.weights_for(cfg) if random and weights is None else find_weights(cfg, weights)
        network = Network.load(
            cfg, found, lenient=options.lenient, cutoff=options.cutoff, width=options.width, height=options.height
        )
        if found is None:
            network = network.with_random_weights()
        heads = heads_of(network)
        return cls(
            cfg,
            network,
            heads,
            _preprocessing(network, heads, options.preprocessing, found),
            find_labels(cfg, options.labels, heads, options.lenient),
            _calibration(
                options.calibration,
                network,
                [target.options.get("precision", "fp32") for target in targets],
                options.lenient,
            ),
            real=found is not None,
        )


def _calibration(
    path: str | PathLike[str] | None, network: Network, precisions: Sequence[str], lenient: bool
) -> Calibration | None:
    """The calibration that one of the precisions needs; None if none needs one."""
    needy = [precision for precision in precisions if precision in CALIBRATED]
    if not needy:
        if path is not None:
            hint = "--precision int8, or --max-drop with --target cpu"
            raise CalibrationError(f"precision {precisions[0]} needs no calibration", path, hint)
        return None
    if path is None:
        name = Path(network.file).name
        hint = f"`dnc calibrate obj.data {name}` measures one; name it with --calibration"
        sections, _ = read_cfg(network.file, lenient=True)
        if "input_calibration" in sections[0].options:
            hint = f"the cfg has input_calibration: `dnc calibrate {name} --import {name}` makes one of it; {hint}"
        raise CalibrationError(f"precision {needy[0]} needs a calibration", network.file, hint)
    calibration = Calibration.read(path)
    calibration.check(network, lenient)
    return calibration


def is_engine(path: str | PathLike[str]) -> bool:
    """Whether it is an engine folder or a package, by its looks, rather than a cfg."""
    return is_folder(path) or Path(path).suffix.lower() == SUFFIX


def find_weights(cfg: str | PathLike[str], weights: str | PathLike[str] | None) -> Path:
    """The given weights, else those beside the cfg, else the zoo's; raises WeightsError if there are none."""
    if weights is not None:
        return Path(weights)
    check_foreign(cfg, CfgError)
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


def find_labels(
    cfg: Path, labels: str | PathLike[str] | None, heads: Sequence[Head], lenient: bool = False
) -> tuple[str, ...]:
    """The names of the classes: from the file given; else from NAME.names beside NAME.cfg; else from the only .names
    there with as many lines as there are classes; else the zoo's for a network of that name; else none.

    Where .names stand beside the cfg and none is taken, a warning says so.

    Args:
        lenient: a file with another number of lines is taken as far as it goes, with a warning.

    Raises:
        DncError: the file given, or NAME.names, cannot be read, is empty, or has another number of lines than there are
            classes.
    """
    if not heads:
        return ()
    classes = heads[-1].classes
    own = cfg.with_suffix(".names")
    if labels is not None or os.path.lexists(own):
        place = own if labels is None else labels
        names = read_names(place, lenient)
        if len(names) != classes:
            hint = "one class name a line"
            if labels is None:
                hint = "it is taken for its name: mend it, or name another with --labels"
            tolerate(DncError(f"{len(names)} labels for {classes} classes", place, hint), lenient)
            # As far as they go; the others are called by their numbers, as without labels.
            names = (*names[:classes], *map(str, range(len(names), classes)))
        return names
    counts: dict[Path, int] = {}
    for path in sorted(cfg.parent.glob("*.names")):
        # Nobody asked for these files: one that cannot be read is no error.
        with suppress(DncError):
            counts[path] = len(read_names(path))
    fitting = [path for path, count in counts.items() if count == classes]
    if len(fitting) == 1:
        return read_names(fitting[0])
    for entry in zoo.entries():
        path = Path(zoo.__file__).parent / "labels" / f"{entry.labels}.names"
        if Path(entry.cfg).stem == cfg.stem and path.is_file() and len(names := read_names(path)) == classes:
            return names
    if counts:
        found = ", ".join(f"{path.name} has {count}" for path, count in counts.items())
        what = f"none of the .names beside the cfg is taken for its {classes} classes: {found}"
        warn(DncError(what, cfg, f"name one with --labels, or call it {own.name}; classes are called by their numbers"))
    return ()


def heads_of(network: Network) -> tuple[Head, ...]:
    """What the network's outputs mean: boxes, or classes; empty where they are nothing that is known."""
    heads = tuple(head for head in (layer.head() for layer in network.layers) if head is not None)
    last = network.outputs[-1]
    if not heads and math.prod(last.shape) == last.shape[0] and not network.layers[0].states():
        # A classifier without [softmax]: its last layer has one value for each class.
        return (ClassifierHead(output=layer_value(last.index), where=last.where.short, classes=last.shape[0]),)
    return heads


def preprocessing_for(network: Network, weights: str | PathLike[str], **given: Any) -> Preprocessing | None:
    """How the engine of this network preprocesses images, with these of `compile`'s arguments; None if it takes none.

    Raises DncError as `compile` does.
    """
    return _preprocessing(network, heads_of(network), given, weights)


def _preprocessing(
    network: Network, heads: Sequence[Head], given: Mapping[str, Any], weights: str | PathLike[str] | None
) -> Preprocessing | None:
    """Takes what is given and not None, else what is recorded beside the weights, else what Darknet does."""
    record = None if weights is None else recorded_path(weights)
    recorded = {} if weights is None else read_recorded(weights)
    other = Path(network.file).with_suffix(".preprocess.json")
    there = os.path.isfile(other)  # noqa: PTH113 (Path's raises where the name is too long)
    if record is not None and not recorded and there and other.absolute() != record.absolute():
        hint = f"it is found by the name of the weights: {record.name}"
        warn(DncError("the preprocessing recorded beside the cfg is not taken", other, hint))
    if len(network.input_shape) != 3:
        if any(value is not None for value in given.values()):
            raise DncError("this network does not take images, so it has no preprocessing", network.file)
        if recorded:
            raise DncError("preprocessing is recorded for a network that takes no images", record, _ANOTHER)
        return None
    channels, height, width = network.input_shape
    classifier = bool(heads) and isinstance(heads[-1], ClassifierHead)
    usual = {
        "mode": "letterbox" if network.letter_box else "center-crop" if classifier else "resize",
        "color": "gray" if channels == 1 else "rgb",
    }
    chosen = {**usual, **recorded, **{key: value for key, value in given.items() if value is not None}}
    if chosen["mode"] != "center-crop":
        for key in ("crop", "interpolation"):
            if key in recorded and given.get("mode") is None:
                what = f"{key} is recorded for a classifier's center-crop, and this network's mode is {chosen['mode']}"
                raise DncError(what, record, _ANOTHER)
            if given.get(key) is None:
                chosen.pop(key, None)
    for key in chosen.keys() & {"mean", "std"}:
        chosen[key] = tuple(chosen[key])
    try:
        return Preprocessing(width=width, height=height, channels=channels, **chosen)
    except ValueError as error:
        known = f"modes: {', '.join(MODES)}; colors: {', '.join(COLORS)}"
        if recorded:
            known += f"; {record} has {', '.join(recorded)}"
        raise DncError(f"unusable preprocessing: {error}", network.file, known) from error
