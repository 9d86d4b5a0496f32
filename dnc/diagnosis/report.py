"""What a diagnosis found, as data: the table, the page and `dnc diagnose --json` are made of it.

    {"version": 1, "network": "…", "engine": {…}, "against": {…}, "layers": [{…}, …], "culprits": [12, 3], …}

JSON has the fields of the classes below by their names, tuples as lists; `from_json` reads it back. A field that is
added later has a default, so that what an older dnc wrote is still read; one that changes its meaning raises `VERSION`.

Noise is what differs from exact values. Its power, beside that of the signal, is in decibels (dB):

    dB = 10 log10(sum of squared differences / sum of squared exact values)

so that -40 dB is noise of 1 % of the signal's size, -20 dB of 10 %, and 0 dB of all of it. None stands for no noise at
all; what was not measured is said by `measured`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from dnc.errors import DncError
from dnc.typing import is_number

__all__ = [
    "CUT",
    "KINDS",
    "PAIRS",
    "ROUNDED",
    "STEP",
    "VERSION",
    "WEIGHTS",
    "Box",
    "Diagnosis",
    "Head",
    "Histogram",
    "ImageChange",
    "Kept",
    "LayerDiagnosis",
    "Metric",
    "PassRemarks",
    "Place",
    "RangeUse",
    "Remark",
    "Side",
]

VERSION = 1

CUT, STEP, PAIRS, WEIGHTS, ROUNDED = "range cut", "step too large", "pairs saturated", "weights", "arithmetic"
KINDS: Mapping[str, str] = {
    CUT: "values beyond the calibrated range are clipped to its ends",
    STEP: "the range is so wide that what most values differ by is less than a step of it",
    PAIRS: "sums of two products do not fit 16 bits, in which this arithmetic adds them up",
    WEIGHTS: "the weights, as 8-bit numbers, are too coarse",
    ROUNDED: "the engine computes it with less precision, or in another way",
}
"""The kinds of loss, and what each is in words."""


@dataclass(frozen=True)
class Side:
    """One of the two that are compared."""

    title: str
    """What it is called in a sentence: an engine's folder, a cfg's name, or "float32" for the network in float32."""
    target: str
    precision: str
    """fp32, fp16, bf16, int8, mixed."""
    arithmetic: str = ""
    """The kind of 8-bit arithmetic that it is looked at with, in words; empty where it computes with no 8 bits."""
    options: Mapping[str, str] = field(default_factory=dict)
    """What the target was told."""
    report: Mapping[str, str] = field(default_factory=dict)
    """What the target has to say about the engine, by topic."""


@dataclass(frozen=True)
class RangeUse:
    """The range that 8-bit numbers of a tensor cover, beside what was seen on the images."""

    low: float
    high: float
    """What was given: real numbers, as those that follow."""
    seen_low: float
    seen_high: float
    step: float
    """Between two neighbouring numbers."""

    @property
    def used(self) -> float:
        """The share of the range in which values were seen, from 0 to 1."""
        seen = min(self.seen_high, self.high) - max(self.seen_low, self.low)
        return max(0.0, seen / (self.high - self.low)) if self.high > self.low else 0.0


@dataclass(frozen=True)
class Histogram:
    """How often values were seen, in bins of equal width."""

    low: float
    """Where the first bin starts."""
    high: float
    """Where the last one ends."""
    counts: tuple[int, ...]
    zeros: int = 0
    """Of the values, those that are exactly 0: they are in no bin."""


@dataclass(frozen=True)
class LayerDiagnosis:
    """A layer, or the network's input: what its values lose.

    A layer's own noise is that of its weights, of its sums and of the rounding of its results to 8 bits, wherever the
    engine does that: what is wrong with the range of a layer is this layer's, and not that of those which read it.
    """

    number: int
    """Darknet's, from 0; -1 is the network's input."""
    section: str
    """`convolutional`; `input` for the network's input."""
    where: str
    """`a.cfg:120 [convolutional] #12`."""
    line: int
    """Of the cfg, from 1; 0 for the network's input."""
    text: str
    """The section as the cfg has it: lines."""
    shape: tuple[int, ...]
    """Of its output: (channels, height, width) or (values,)."""
    precision: str
    """What computes it: int8, or fp32, fp16, bf16."""
    reason: str = ""
    """Why it is not in 8 bits in an engine that has them, in a pass's words."""
    measured: bool = True
    """Whether its noise was measured; not where the engine has joined it with others, so that its values are nowhere.
    Then the fields on noise hold nothing."""
    own: float | None = None
    """dB: the noise that it adds by itself to its output, from exact inputs."""
    typical: float | None = None
    """dB: the same in the middle one of its channels, each beside its own signal. Far above `own` where few channels
    are so large that the others are lost beside them."""
    accumulated: float | None = None
    """dB: the noise at its output in the engine, with that of all layers before it."""
    at_heads: float | None = None
    """dB: the noise that `own` brings to the heads, the mean over heads."""
    largest_error: float = 0.0
    """The largest difference at its output in the engine, in the units of its values."""
    largest_value: float = 0.0
    """The largest exact value of its output, without its sign."""
    kind: str = ""
    """The kind of loss that dominates `own`, one of `KINDS`; empty where there is none."""
    kinds: Mapping[str, float] = field(default_factory=dict)
    """dB of each kind of loss alone; kinds without any noise are missing."""
    advice: str = ""
    """What could be done about it, in a sentence; empty where nothing has to."""
    saturated: float = 0.0
    """The share of its values that lie beyond its range, from 0 to 1."""
    saturated_pairs: float = 0.0
    """The share of sums of two products that saturate in the arithmetic of the engine, from 0 to 1."""
    range: RangeUse | None = None
    """None where its output is not rounded to 8 bits."""
    histogram: Histogram | None = None
    spread: float | None = None
    """How many times as large the largest channel of its output is as the middle one; None without channels."""
    seconds: float | None = None
    """What it takes in one run, where `dnc bench` measured it; what is joined with another layer is in its time."""


@dataclass(frozen=True)
class Head:
    """An output of the network."""

    name: str
    where: str
    shape: tuple[int, ...]
    error: float
    """The size of the noise beside that of the signal: sqrt(sum of squared differences / sum of squared values)."""
    noise: float | None
    """The same in dB."""
    largest_error: float


@dataclass(frozen=True)
class Kept:
    """Layers that stay in float32, and what that brings."""

    layers: tuple[int, ...]
    points: float
    """Percentage points of `Metric.name` that are won: positive is better."""
    measured: bool
    """Whether an engine was built and evaluated; else it is estimated, from the noise at the heads that goes away."""

    @property
    def option(self) -> str:
        """What to add to `dnc compile`."""
        return "--keep " + ",".join(map(str, self.layers))


@dataclass(frozen=True)
class Metric:
    """How accurate both are."""

    name: str
    """mAP@0.50, top-1."""
    engine: float
    """From 0 to 1."""
    against: float
    images: int
    labelled: bool
    """Whether it is measured on labels; else on what float32 finds, which is then right by definition."""


Place = Literal["both", "gone", "come"]


@dataclass(frozen=True)
class Box:
    """What was found in an image. Of a classifier it has no sides: they are 0."""

    label: str
    class_id: int
    confidence: float
    left: float
    """Like the other three a fraction of the image's size; it may reach out of the image."""
    top: float
    width: float
    height: float
    place: Place = "both"
    """gone: only `against` has it; come: only the engine; both: each has one of its class that overlaps it by half."""


@dataclass(frozen=True)
class ImageChange:
    """An image and what both find in it."""

    path: str
    size: tuple[int, int]
    """(width, height) in pixels."""
    noise: float | None
    """dB at the heads."""
    engine: tuple[Box, ...]
    """The surest first."""
    against: tuple[Box, ...]

    @property
    def gone(self) -> int:
        """Boxes that only `against` has."""
        return sum(box.place == "gone" for box in self.against)

    @property
    def come(self) -> int:
        """Boxes that only the engine has."""
        return sum(box.place == "come" for box in self.engine)


@dataclass(frozen=True)
class Remark:
    """What a pass did at a section, or why it did nothing there."""

    where: str
    text: str


@dataclass(frozen=True)
class PassRemarks:
    """What a pass did."""

    name: str
    applied: tuple[Remark, ...]
    missed: tuple[Remark, ...]


@dataclass(frozen=True)
class Diagnosis:
    """Where an engine loses accuracy, compared with the network in float32 or another engine of it."""

    network: str
    """The cfg's name."""
    engine: Side
    against: Side
    source: str
    """Where the images are from, in words."""
    images: int
    """On so many the layers were looked at."""
    compared: int
    """On so many what both find was compared."""
    layers: tuple[LayerDiagnosis, ...]
    """In the order of the cfg; the network's input first."""
    culprits: tuple[int, ...] = ()
    """Numbers of the layers that lose something, the worst first."""
    heads: tuple[Head, ...] = ()
    metric: Metric | None = None
    """None where nothing was evaluated."""
    keep: tuple[Kept, ...] = ()
    """Single layers, those that win most first, and last the best set of them together."""
    boxes: int = 0
    """All boxes of `against`, over its images; of a classifier, images."""
    gone: int = 0
    come: int = 0
    """Of a classifier, images whose best class is another: as many are gone as come."""
    confidence: float = 0.25
    """Boxes count from here on."""
    changes: tuple[ImageChange, ...] = ()
    """The images that changed most, the worst first."""
    passes: tuple[PassRemarks, ...] = ()
    """In the order in which they ran."""
    seconds: float | None = None
    """What a run takes in all, where `dnc bench` measured it."""
    notes: tuple[str, ...] = ()
    """Sentences on how it was measured, and on what could not be."""
    version: int = VERSION

    def to_json(self) -> dict[str, Any]:
        """JSON values; the inverse of `from_json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: object) -> Self:
        """The inverse of `to_json`, which JSON may have been through; raises DncError for what is none of it."""
        if not isinstance(values, dict) or "version" not in values:
            raise DncError("this is no diagnosis", hint="`dnc diagnose --json` writes one")
        if values["version"] != VERSION:
            raise DncError(f"the diagnosis has version {values['version']!r}, not {VERSION}", hint="update dnc")
        try:
            found = _read(cls, values)
        except (TypeError, ValueError) as error:
            raise DncError(f"this is no diagnosis: {error}", hint="`dnc diagnose --json` writes one") from error
        assert isinstance(found, cls)
        return found

    def layer(self, number: int) -> LayerDiagnosis:
        """The layer of this number, -1 for the input; raises KeyError where there is none."""
        for layer in self.layers:
            if layer.number == number:
                return layer
        raise KeyError(number)


def _read(kind: Any, value: object) -> Any:
    """The value of this type that JSON values stand for; raises ValueError where they stand for none."""
    origin, parts = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{value!r} is no object")
        hints = get_type_hints(kind)
        known = {item.name for item in dataclasses.fields(kind)}
        return kind(**{str(name): _read(hints[name], item) for name, item in value.items() if name in known})  # type: ignore[operator]
    if origin is UnionType:
        return None if value is None and NoneType in parts else _read(parts[0], value)
    if origin is Literal:
        fits = value in parts
    elif origin is tuple:
        if isinstance(value, list | tuple):
            kinds = [parts[0]] * len(value) if parts[-1] is Ellipsis else parts
            return tuple(_read(part, item) for part, item in zip(kinds, value, strict=True))
        fits = False
    elif origin is not None:
        if isinstance(value, dict):
            return {str(name): _read(parts[1], item) for name, item in value.items()}
        fits = False
    elif kind is float:
        fits = is_number(value)
    else:
        fits = type(value) is kind
    if not fits:
        raise ValueError(f"{value!r} is not {kind}")
    return float(value) if kind is float else value  # type: ignore[arg-type]
