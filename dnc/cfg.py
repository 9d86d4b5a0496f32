"""Darknet's .cfg files: `[section]` lines, `key=value` options, comments that start with # or ;.

As Darknet reads them (option_list.c): every blank inside a line is dropped, the first of two equal keys wins, an
integer ends where its digits end (`groups = 40 # 32` is 40), while a string keeps its tail. Where Darknet then
guesses in silence (a value that is no number, an unknown key that is nearly a known one), `Section` raises a
`CfgError` with the line; under `lenient` it warns and guesses as Darknet does.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from dnc.errors import CfgError, DncError, DncWarning, Where, close_match

__all__ = ["Option", "Section", "parse_cfg", "read_cfg"]

_TRAINING_KEYS = """
    batch subdivisions time_steps max_batches learning_rate learning_rate_min sgdr_cycle sgdr_mult momentum decay track
    augment_speed sequential_subdivisions try_fix_nan weights_reject_freq equidistant_point
    badlabels_rejection_percentage num_sigmas_reject_badlabels ema_alpha use_cuda_graph loss_scale dynamic_minibatch
    optimized_memory workspace_size_limit_MB adam B1 B2 eps max_crop min_crop flip blur gaussian_noise mixup cutmix
    mosaic mosaic_bound contrastive contrastive_jit_flip contrastive_color unsupervised label_smooth_eps resize_step
    attention adversarial_lr max_chart_loss angle aspect saturation exposure hue power policy burn_in step steps
    scale scales seq_scales gamma show_receptive_field cutout
    stopbackward clip dont_update burnin_update train_only_bn onlyforward stream wait_stream
    assisted_excitation grad_centr dot sway rotate stretch stretch_sway reverse coordconv maxpool_zero_nonmax
    max show_details max_delta counters_per_class objectness_smooth iou_normalizer obj_normalizer cls_normalizer
    uc_normalizer delta_normalizer iou_loss iou_thresh_kind jitter resize focal_loss ignore_thresh truth_thresh
    iou_thresh random track_history_size sim_thresh dets_for_track dets_for_show track_ciou_norm embedding_layer
    log rescore thresh classfix absolute coord_scale object_scale noobject_scale mask_scale class_scale bias_match
    forced type ratio smooth probability dropblock dropblock_size_rel dropblock_size_abs shift noloss mean std
    temperature yolo_layer contrastive_neg_max time_normalizer joint l1 l2 input_calibration
"""
TRAINING_KEYS = frozenset(_TRAINING_KEYS.split())
"""Options that Darknet reads only to train, or that ask nothing of inference; known, and passed over in silence."""

_INTEGER = re.compile(r"[+-]?\d+")
_FLOAT = re.compile(r"[+-]?(\d+\.?\d*([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?)")


@dataclass(frozen=True)
class Option:
    """One `key=value` line, without blanks."""

    key: str
    value: str
    line: int
    text: str


@dataclass
class Section:
    """One `[section]` with its options, and the only place where option text turns into values.

    Every reader takes the key and Darknet's default, and remembers that the key was asked for, so that `unread` can
    tell the options that nothing reads. Readers raise `CfgError` with the option's own line.
    """

    name: str
    where: Where
    options: dict[str, Option] = field(default_factory=dict)
    lenient: bool = False
    _asked: set[str] = field(default_factory=set, repr=False)

    def at(self, key: str | None = None) -> Where:
        """Where `key` stands, or the section where it is not given."""
        option = self.options.get(key or "")
        if option is None:
            return self.where
        return Where(self.where.file, option.line, self.name, self.where.index, option.text)

    def fail(self, message: str, key: str | None = None, hint: str = "") -> NoReturn:
        """Raises a `CfgError` at the line of `key`."""
        raise CfgError(message, self.at(key), hint)

    def guess(self, message: str, key: str | None = None, hint: str = "") -> None:
        """Fails, or only warns under `lenient`: for what Darknet accepts but hardly anybody means."""
        error = CfgError(message, self.at(key), hint)
        if not self.lenient:
            raise error
        warn(error)

    def text(self, key: str, default: str | None = None) -> str | None:
        """The option's text, or the default."""
        self._asked.add(key)
        option = self.options.get(key)
        if option is None:
            return default
        if not option.value:
            self.guess(f"{key}= has no value", key, "give one, or delete the line")
            return default
        return option.value

    def choice(self, key: str, default: str, known: Iterable[str]) -> str:
        """The option's text, which must be one of `known`; Darknet's fallback under lenient is the default."""
        value = self.text(key, default)
        assert value is not None
        names = list(known)
        if value not in names:
            hint = close_match(value, names) or "one of: " + ", ".join(names)
            self.guess(f"{key}={value} is unknown", key, hint)
            return default
        return value

    def integer(self, key: str, default: int, low: int | None = None, high: int | None = None) -> int:
        """The option as atoi() reads it, within [low, high]."""
        value = self.text(key)
        number = default if value is None else self._integer(key, value)
        if (low is not None and number < low) or (high is not None and number > high):
            bounds = f"at least {low}" if high is None else f"from {low} to {high}"
            self.fail(f"{key}={number} must be {bounds}", key, "Darknet would crash or compute nothing")
        return number

    def boolean(self, key: str, default: bool = False) -> bool:
        """The option as C reads a flag: any integer but 0 is true."""
        return self.integer(key, int(default)) != 0

    def number(self, key: str, default: float) -> float:
        """The option as atof() reads it; a finite number."""
        value = self.text(key)
        return default if value is None else self._float(key, value)

    def integers(self, key: str) -> tuple[int, ...] | None:
        """A comma-separated list; None where the key is not given."""
        value = self.text(key)
        return None if value is None else tuple(self._integer(key, item) for item in _items(value))

    def numbers(self, key: str) -> tuple[float, ...] | None:
        """A comma-separated list; None where the key is not given."""
        value = self.text(key)
        return None if value is None else tuple(self._float(key, item) for item in _items(value))

    def _integer(self, key: str, value: str) -> int:
        match = _INTEGER.match(value)
        rest = value[match.end() :] if match else value
        if (rest and not re.match(r"#|;|\.0*($|#|;)", rest)) or (match and len(match.group()) > 18):
            self.guess(f"{key}={value} is not an integer", key, "Darknet would read the leading digits, or 0")
        return int(match.group()) if match and len(match.group()) <= 18 else 0

    def _float(self, key: str, value: str) -> float:
        match = _FLOAT.match(value)
        rest = value[match.end() :] if match else value
        if (rest and rest[0] not in "#;") or not match or abs(float(match.group())) > 3e38:
            self.guess(f"{key}={value} is not a number", key, "Darknet would read the leading digits, or 0")
        return float(match.group()) if match else 0.0

    def finish(self) -> None:
        """Reports options that nothing asked for: an error if nearly right, else a warning, as Darknet ignores them."""
        for key in self.options.keys() - self._asked - TRAINING_KEYS:
            message = f"nothing in [{self.name}] reads '{key}'"
            hint = close_match(key, self._asked | TRAINING_KEYS, cutoff=0.8)
            if hint:
                self.guess(message, key, hint)
            else:
                warn(CfgError(message, self.at(key), "Darknet ignores it too"))


def warn(error: DncError) -> None:
    """Issues the error as a `DncWarning`, for what is tolerated."""
    warnings.warn(DncWarning(str(error)), stacklevel=3)


def _items(value: str) -> list[str]:
    """Splits at commas. A comment after a blank ends the list, as in Darknet's counting of anchors and masks."""
    return [item for item in re.split(r"[#;]", value, maxsplit=1)[0].split(",") if item]


def parse_cfg(text: str, file: str = "<cfg>", lenient: bool = False) -> list[Section]:
    """Splits cfg text into sections; the first is [net].

    Raises:
        CfgError: the text is no cfg, an option stands outside a section, a line is neither, or [net] is not first.
    """
    if "\0" in text:
        raise CfgError("not a .cfg file: it holds binary data", file, "was the .weights file given in its place?")
    sections: list[Section] = []
    for number, source in enumerate(text.splitlines(), 1):
        line = re.sub(r"\s+", "", source)
        if not line or line[0] in "#;":
            continue
        if line[0] == "[":
            name, end, tail = line[1:].partition("]")
            index = len(sections) - 1 if sections else None
            where = Where(file, number, name, index, source.strip()[:200])
            if not end or (tail and tail[0] not in "#;"):
                raise CfgError(f"'{line[:40]}' is not a section", where, "write it as [name]")
            sections.append(Section(name, where, lenient=lenient))
            continue
        key, equals, value = line.partition("=")
        where = Where(file, number, text=source.strip()[:200])
        if not equals or not key:
            raise CfgError("a line that is neither [section], key=value nor comment", where, "is this a .cfg file?")
        if not sections:
            raise CfgError(f"'{key[:40]}' stands before any section", where, "a .cfg file starts with [net]")
        section = sections[-1]
        if key in section.options:
            if section.options[key].value != value and key not in TRAINING_KEYS:
                first = section.options[key]
                warn(CfgError(f"'{key}' is given twice; line {first.line} counts", where, "as in Darknet: the first"))
            continue
        section.options[key] = Option(key, value, number, source.strip()[:200])
    if not sections:
        raise CfgError("the file has no sections", file, "a .cfg file starts with [net]")
    if sections[0].name not in ("net", "network"):
        raise CfgError("the first section must be [net]", sections[0].where, "it holds width, height and channels")
    return sections


def read_cfg(path: str | Path, lenient: bool = False) -> list[Section]:
    """Reads and splits a .cfg file; see `parse_cfg`."""
    file = Path(path)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise CfgError(f"cannot read the cfg: {error.strerror or error}", file, "check the path") from error
    return parse_cfg(data.decode("utf-8", errors="replace"), str(path), lenient)
