"""What can be asked of the compiler: one object for `dnc.compile`, the commands, `dnc bench` and `dnc compare`.

The command line is made of it (`dnc.cli._options`): a field is an option, its help text is the field's documentation.
This module imports nothing but the ground, so that `--help` is instant.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, Literal

from dnc.errors import DncError

__all__ = ["CompileOptions", "Setting", "split_passes"]

Paths = str | PathLike[str]
_SECONDS = {"s": 1, "m": 60, "h": 3600}
Form = Literal["text", "path", "paths", "whole", "number", "flag", "names", "numbers", "passes", "several", "pairs"]


@dataclass(frozen=True)
class Setting:
    """How a field is written on the command line."""

    help: str
    form: Form = "text"
    """names, numbers, passes: in one word, with commas between; several, paths, pairs: the option may be repeated."""
    choices: tuple[str, ...] = ()
    metavar: str | None = None
    low: float | None = None
    """The smallest number that is allowed."""
    flags: tuple[str, ...] = ()
    """How the option is written, if not like the field."""


def _setting(default: Any, help: str, form: Form = "text", **rest: Any) -> Any:
    return field(default=default, metadata={"setting": Setting(help, form, **rest)})


@dataclass(frozen=True)
class CompileOptions:
    """Everything that an engine depends on besides the cfg and the weights. `dnc compile --help` has each field's help.

    Raises:
        DncError: a value is not one of those that there are, or two contradict each other.
    """

    target: str = _setting("cpu", "What to compile for; `dnc targets` lists them.", flags=("--target", "-t"))
    labels: Paths | None = _setting(None, "A file with one class name a line; else CFG's name with .names.", "path")
    width: int | None = _setting(
        None, "The input's width in pixels, as if the cfg said so; else the cfg's.", "whole", low=1
    )
    height: int | None = _setting(None, "Its height; else the cfg's.", "whole", low=1)
    batch: int | None = _setting(None, "Fix the batch size; else any.", "whole", low=1)
    input: str = _setting(
        "f32", "u8: the graph takes pixels (N, height, width, channels) and preprocesses them.", choices=("f32", "u8")
    )
    preprocess: str | None = _setting(
        None,
        "How images become the input; else as recorded beside the weights or as the cfg says: letterbox, "
        "center-crop (classifiers) or resize.",
        choices=("resize", "resize-half-pixel", "letterbox", "center-crop"),
    )
    color: str | None = _setting(
        None, "Order of the channels; else as recorded, or rgb.", choices=("rgb", "bgr", "gray")
    )
    mean: Sequence[float] | None = _setting(
        None, "The input is (pixel / 255 - mean) / std; else as recorded, or 0.", "numbers"
    )
    std: Sequence[float] | None = _setting(
        None, "One number, or one per channel, as --mean; else as recorded, or 1.", "numbers"
    )
    crop: float | None = _setting(
        None, "The share of the short side that center-crop keeps; else as recorded, or 1.", "number"
    )
    interpolation: str | None = _setting(
        None, "How center-crop resizes; else as recorded, or bilinear.", choices=("bilinear", "bicubic")
    )
    decode: str = _setting("host", "Where boxes are decoded and suppressed.", choices=("host", "graph", "graph+nms"))
    passes: Sequence[str] | None = _setting(
        None,
        "Run these, in order, in place of the target's own; NAME:KEY=VALUE,… sets a pass's options (`dnc passes`).",
        "passes",
        metavar="PASS,…",
    )
    skip: Sequence[str] = _setting((), "Leave a pass out; may be repeated.", "several", metavar="PASS")
    verify: bool = _setting(
        True,
        "Compare the outputs after each pass with those before it, and stop where they differ; and what an engine with "
        "8-bit numbers finds with what float32 does.",
        "flag",
        flags=("--verify/--no-verify",),
    )
    options: Mapping[str, str] = _setting(
        (),
        "Tell the target something; `dnc targets TARGET` lists what; may be repeated.",
        "pairs",
        metavar="KEY=VALUE",
        flags=("--option",),
    )
    precision: str | None = _setting(
        None, "For --option precision=P: fp32, fp16, bf16, int8, mixed; see `dnc targets NAME`.", metavar="P"
    )
    calibration: Paths | None = _setting(None, "What dnc calibrate wrote, for --precision int8 and mixed.", "path")
    keep: Sequence[str] = _setting((), "Leave these layers in float32: 36, 30-36, Add.", "names", metavar="LAYER,…")
    max_drop: float | None = _setting(
        None,
        "By how many percentage points mAP@0.50 or top-1 may drop: for --precision mixed [0.5], and for --target cpu, "
        "which then times less precise engines as well.",
        "number",
        low=0,
    )
    data: Sequence[str] = _setting(
        (),
        "What a drop, and 8 bits, are measured on: of a .data file `train`, by dnc diagnose `valid`; else what was "
        "calibrated on.",
        "paths",
        metavar="SOURCE",
    )
    autotune: bool = _setting(False, "Measure how each grouped convolution runs fastest on this machine.", "flag")
    tune: int | str | None = _setting(
        None,
        "For tvm, and cuda with --backend tvm: measure other ways of writing its kernels: 200, so many; 90s, 3m or 1h, "
        "for so long, with the last build and its comparison.",
        metavar="TRIALS|TIME",
    )
    remote: str | None = _setting(None, "For --tune: on a device behind TVM's RPC.", metavar="HOST:PORT[,key=K]")
    keep_layers: bool = _setting(False, "Make every layer's output an output, for dnc compare.", "flag")
    dump_dir: Paths | None = _setting(None, "Write the graph after each pass there.", "path")
    cutoff: int | None = _setting(None, "Take the first N layers, as darknet partial.", "whole", metavar="N")
    lenient: bool = _setting(False, "Warn about what Darknet takes in silence, instead of failing.", "flag")

    def __post_init__(self) -> None:
        settings = self.settings()
        for name in ("mean", "std", "passes", "skip", "keep", "data"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))
        object.__setattr__(self, "options", dict(self.options or {}))
        unknown = [name for name in ("decode", "input") if getattr(self, name) not in settings[name].choices]
        if unknown:
            known = "; ".join(", ".join(settings[name].choices) for name in unknown)
            raise DncError(", ".join(f"{name}={getattr(self, name)}: not known" for name in unknown), hint=known)
        if self.batch is not None and self.batch < 1:
            raise DncError(f"batch={self.batch} must be at least 1", hint="leave it out for batches of any size")
        if self.remote is not None and self.tune is None:
            hint = "give --tune TRIALS as well; `dnc bench --remote` measures"
            raise DncError("remote says where to tune", hint=hint)
        _ = self.budget

    @classmethod
    def settings(cls) -> dict[str, Setting]:
        """How each field is written on the command line, in order."""
        return {item.name: item.metadata["setting"] for item in dataclasses.fields(cls)}

    @property
    def budget(self) -> tuple[int | None, float | None]:
        """What `tune` allows: how many trials, or how many seconds."""
        if self.tune is None:
            return None, None
        match = re.fullmatch(r"(\d{1,9})([smh]?)", str(self.tune), re.ASCII)
        if match is None or int(match[1]) == 0:
            hint = "200 is so many trials; 90s, 3m and 1h are so long"
            raise DncError(f"tune={self.tune} is neither a number of trials nor a time", hint=hint)
        number = int(match[1])
        return (None, float(number * _SECONDS[match[2]])) if match[2] else (number, None)

    @property
    def told(self) -> dict[str, str]:
        """The target's options, `precision` among them."""
        return {**self.options, **({} if self.precision is None else {"precision": self.precision})}

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The fields that say how images become the input, by the names of `Preprocessing`'s."""
        return {
            "mode": self.preprocess,
            "color": self.color,
            "mean": self.mean,
            "std": self.std,
            "crop": self.crop,
            "interpolation": self.interpolation,
        }


def split_passes(text: str) -> list[str]:
    """The passes of `a,b:key=value,other=value,c`, each with its options."""
    found: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        # What has a value and no name goes on with the options of the pass before it.
        if "=" in part and ":" not in part and found:
            found[-1] += f",{part}" if ":" in found[-1] else f":{part}"
        else:
            found.append(part)
    return found
