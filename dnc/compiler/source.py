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
from dnc.darknet.cfg import find_cfg
from dnc.darknet.layers.base import layer_value
from dnc.darknet.network import Network
from dnc.errors import CalibrationError, DncError, WeightsError, tolerate
from dnc.evaluation.datasets import read_names
from dnc.quantization.calibration import Calibration
from dnc.runtime.decoding import ClassifierHead, Head
from dnc.runtime.options import CALIBRATED
from dnc.runtime.preprocessing import COLORS, MODES, Preprocessing
from dnc.targets import Target
from dnc.zoo.recorded import read_recorded

__all__ = ["Source", "find_labels", "find_weights", "heads_of", "preprocessing_for"]


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
        network = Network.load(cfg, found, lenient=options.lenient, cutoff=options.cutoff)
        if found is None:
            network = network.with_random_weights()
        heads = heads_of(network)
        recorded = {} if found is None else read_recorded(found)
        return cls(
            cfg,
            network,
            heads,
            _preprocessing(network, heads, options.preprocessing, recorded),
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
        hint = f"`dnc calibrate obj.data {Path(network.file).name}` measures one; name it with --calibration"
        raise CalibrationError(f"precision {needy[0]} needs a calibration", network.file, hint)
    calibration = Calibration.read(path)
    calibration.check(network, lenient)
    return calibration


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


def find_labels(
    cfg: Path, labels: str | PathLike[str] | None, heads: Sequence[Head], lenient: bool = False
) -> tuple[str, ...]:
    """The names of the classes: from the file given; else beside the cfg, by its name or if it is the only one with
    as many lines as there are classes; else the zoo's for a network of that name; else none.

    Raises:
        DncError: the file given cannot be read, is empty, or has another number of lines than there are classes.
    """
    if not heads:
        return ()
    classes = heads[-1].classes
    if labels is not None:
        names = read_names(labels, lenient)
        if len(names) != classes:
            problem = DncError(f"{len(names)} labels for {classes} classes", labels, "one class name a line")
            tolerate(problem, lenient)
            # As far as they go; the others are called by their numbers, as without labels.
            names = (*names[:classes], *map(str, range(len(names), classes)))
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
    return _preprocessing(network, heads_of(network), given, read_recorded(weights))


def _preprocessing(
    network: Network, heads: Sequence[Head], given: Mapping[str, Any], recorded: Mapping[str, Any]
) -> Preprocessing | None:
    """Takes what is given and not None, else what is recorded, else what Darknet does."""
    if len(network.input_shape) != 3:
        if any(value is not None for value in given.values()):
            raise DncError("this network does not take images, so it has no preprocessing", network.file)
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
            if given.get(key) is None:
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
