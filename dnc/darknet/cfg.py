"""Darknet's .cfg files: `[section]` lines, `key=value` options, comments that start with # or ;.

As Darknet reads them (option_list.c): every blank inside a line is dropped, the first of two equal keys wins, an
integer ends where its digits end (`groups = 40 # 32` is 40), while a string keeps its tail. Where Darknet then
guesses in silence (a value that is no number, an unknown key that is nearly a known one, a line that is nothing),
a `CfgError` names the line; under `lenient` it is a warning, and the guess is Darknet's.
"""

from __future__ import annotations

import codecs
import errno
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

from dnc.errors import CfgError, Where, close_match, plain, printable, tolerate, warn
from dnc.files.places import packaged
from dnc.files.reading import check_foreign, read_piped

__all__ = ["Option", "Section", "parse_cfg", "read_cfg", "with_net"]

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
    temperature yolo_layer contrastive_neg_max time_normalizer joint l1 l2 input_calibration seen max_epochs beta1
"""
TRAINING_KEYS = frozenset(_TRAINING_KEYS.split())
"""Options that Darknet reads only to train, or that ask nothing of inference; known, and passed over in silence."""

_ASK_NOTHING = frozenset(("stream", "wait_stream", "onlyforward", "input_calibration", "show_details", "log", "seen"))
"""Those of them that training has no use for either."""
_MEANT = {
    **dict.fromkeys(("kernelsize", "kernel", "ksize"), "size"),
    **dict.fromkeys(("outchannels", "outputchannels"), "filters"),
    **dict.fromkeys(("batchnorm", "bn"), "batch_normalize"),
    **dict.fromkeys(("act", "nonlinearity"), "activation"),
    **dict.fromkeys(("numclasses", "nc"), "classes"),
    "scalefactor": "stride",
    "nms": "nms_kind",
}
"""What other frameworks call an option."""
_NOTHING: Mapping[str, str] = MappingProxyType({})
_INTEGER = re.compile(r"[+-]?[0-9]+")
_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_NOT_DECIMAL = re.compile(r"[+-]?(0x|inf|nan)", re.IGNORECASE)
_FLOAT_MAX = 3.4028235e38
_INT_MAX = 2**31 - 1
_BINARY = re.compile(r"[\x00-\x08\x0e-\x19\x1b-\x1f\x7f]")
"""Control characters that no text holds; \\x1a ends the files of DOS."""
_LARGEST = 1 << 24
"""Bytes. Darknet's largest cfg has 50 kB; what is larger than this is something else."""
_REPORTED = 50
"""How many options of one section are reported as unknown; looking for a close match takes a while each time."""


@dataclass(frozen=True)
class Option:
    """A `key=value` line, without blanks."""

    key: str
    value: str
    line: int
    text: str


@dataclass
class Section:
    """A `[section]` with its options, and the only place where option text turns into values.

    Every reader takes the key and Darknet's default, and remembers that the key was asked for, so that `unread` can
    tell the options that nothing reads. Readers raise `CfgError` with the option's own line.
    """

    name: str
    where: Where
    options: dict[str, Option] = field(default_factory=dict)
    lenient: bool = False
    _asked: set[str] = field(default_factory=set, repr=False)

    def at(self, key: str | None = None) -> Where:
        """Position of `key`, or of the section if the key is not given."""
        option = self.options.get(key or "")
        if option is None:
            return self.where
        return Where(self.where.file, option.line, self.name, self.where.index, option.text)

    def fail(self, message: str, key: str | None = None, hint: str = "") -> NoReturn:
        """Raises a `CfgError` at the line of `key`."""
        raise CfgError(message, self.at(key), hint)

    def guess(self, message: str, key: str | None = None, hint: str = "") -> None:
        """Fails, or only warns under `lenient`: for what Darknet accepts but hardly anybody means."""
        tolerate(CfgError(message, self.at(key), hint), self.lenient)

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

    def choice(
        self,
        key: str,
        default: str,
        known: Iterable[str],
        fallback: str | None = None,
        same: Mapping[str, str] = _NOTHING,
        meant: Mapping[str, str] = _NOTHING,
    ) -> str:
        """The option's text, which must be one of `known`.

        Under lenient, one that is only called otherwise elsewhere becomes what `same` says; any other unknown one
        becomes `fallback`, what Darknet takes then: the default if not given. `meant` is as for `close_match`.
        """
        value = self.text(key, default)
        assert value is not None
        names = list(known)
        if value in names:
            return value
        taken = default if fallback is None else fallback
        other = same.get(plain(value))
        if other is not None:
            hint = f"it is Darknet's {other}" + (
                f", which is taken; Darknet itself takes {taken}" if self.lenient else ""
            )
            self.guess(f"{key}={_short(value)} is unknown", key, hint)
            return other
        hint = close_match(value, names, meant=meant) or "one of: " + ", ".join(names)
        if value.partition("#")[0] in names:
            hint = f"give the comment a line of its own: Darknet takes it for a part of the name, and reads {taken}"
        elif self.lenient:
            hint = f"Darknet takes {taken}; {hint}"
        self.guess(f"{key}={_short(value)} is unknown", key, hint)
        return taken

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

    def integers(self, key: str, whole: bool = False) -> tuple[int, ...] | None:
        """A comma-separated list; None where the key is not given.

        Darknet ends the lists of mask= and anchors= at a #. Those of layers= and from= (`whole`) it splits at every
        comma, and takes what stands in a comment for numbers as well.
        """
        value = self.text(key)
        if value is None:
            return None
        items, _, comment = value.partition("#")
        if whole and "," in comment:
            hint = "Darknet splits the comment too, and reads each part as a number: put it on a line of its own"
            self.guess(f"{key}= has a comma in its comment", key, hint)
            items = value
        return tuple(self._integer(key, item) for item in items.split(","))

    def numbers(self, key: str) -> tuple[float, ...] | None:
        """A comma-separated list, which a # ends; None where the key is not given."""
        value = self.text(key)
        if value is None:
            return None
        # A comma at the end is common, and harmless: Darknet reads as many numbers as it needs.
        return tuple(self._float(key, item) for item in value.partition("#")[0].removesuffix(",").split(","))

    def _integer(self, key: str, value: str) -> int:
        match = _INTEGER.match(value)
        rest = value[match.end() :] if match else value
        if not match or (rest and not re.match(r"#|;|\.0*($|#|;)", rest)):
            self._guess_number(key, value, "an integer")
        # int() refuses thousands of digits.
        number = int(match.group()) if match and len(match.group()) < 20 else _INT_MAX + 1 if match else 0
        if abs(number) > _INT_MAX:
            self.fail(f"{key}={_short(value)} is too large", key, f"integers go up to {_INT_MAX}")
        return number

    def _float(self, key: str, value: str) -> float:
        match = _FLOAT.match(value)
        rest = value[match.end() :] if match else value
        if _NOT_DECIMAL.match(value) or (match and not abs(float(match.group())) <= _FLOAT_MAX):
            self.fail(f"{key}={_short(value)} is not a finite decimal number", key, "for instance 0.5 or 1e-3")
        if not match or (rest and rest[0] not in "#;"):
            self._guess_number(key, value, "a number")
        return float(match.group()) if match else 0.0

    def _guess_number(self, key: str, value: str, what: str) -> None:
        """Reports a value, or an item of a list, that is not wholly a number."""
        given = f"{key}={_short(self.options[key].value)}"
        if not value:
            self.guess(f"{given} has nothing between two commas, or after the last", key, "Darknet reads a 0 there")
            return
        item = "" if value == self.options[key].value else f"'{_short(value)}' in "
        self.guess(f"{item}{given} is not {what}", key, "Darknet would read the leading digits, or 0")

    @property
    def training(self) -> list[str]:
        """Options that look like a part of the network, and act in training only."""
        return [key for key in self.options if key in TRAINING_KEYS - _ASK_NOTHING - self._asked]

    def finish(self) -> None:
        """Reports options that nothing asked for: an error if nearly right, else a warning, as Darknet ignores them."""
        unknown = [key for key in self.options if key not in self._asked and key not in TRAINING_KEYS]
        for key in unknown[:_REPORTED]:
            message = f"nothing in [{_short(self.name)}] reads '{_short(key)}'"
            hint = close_match(
                key, self._asked | TRAINING_KEYS, 0.8, {k: v for k, v in _MEANT.items() if v in self._asked}
            )
            if hint:
                self.guess(message, key, hint)
            else:
                warn(CfgError(message, self.at(key), "Darknet ignores it too"))
        if len(unknown) > _REPORTED:
            warn(CfgError(f"nothing reads {len(unknown) - _REPORTED} more options", self.where))


def _short(text: str) -> str:
    """Shortens text of the file for a message."""
    return text if len(text) <= 60 else f"{text[:57]}..."


def parse_cfg(text: str, file: str = "<cfg>", lenient: bool = False) -> list[Section]:
    """Splits cfg text into sections; the first is [net].

    Args:
        file: the name of the file, for messages.
        lenient: passes lines over that are no cfg, with a warning, as Darknet does with a message.

    Raises:
        CfgError: the text is no cfg, an option stands outside a section, a line is neither, or [net] is not first.
    """
    text = text.removeprefix("\ufeff")
    binary = _BINARY.search(text)
    if binary:
        where = Where(file, text.count("\n", 0, binary.start()) + 1)
        hint = "was the .weights file given in its place?"
        if text.startswith("PK\3\4"):
            hint = "is it a package? That is an engine, compiled already"
        raise CfgError("not a .cfg file: it holds binary data", where, hint)
    sections: list[Section] = []
    for number, source in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        # \x1a ends the files of DOS.
        line, shown = printable(re.sub(r"[\s\x1a]+", "", source)), printable(source.strip()[:200])
        if not line or line[0] in "#;":
            continue
        if line[0] == "[":
            where = Where(file, number, index=len(sections) - 1 if sections else None, text=shown)
            name = line[1:].removesuffix("]")
            if not line.endswith("]") or not name:
                hint = "write it as [name]; a comment needs a line of its own"
                tolerate(CfgError(f"'{_short(line)}' is not a section", where, hint), lenient)
            sections.append(Section(name, replace(where, section=_short(name)), lenient=lenient))
            continue
        key, equals, value = line.partition("=")
        where = Where(file, number, text=shown)
        if not equals or not key:
            hint = "is this a .cfg file? Darknet passes the line over"
            problem = CfgError("a line that is neither [section], key=value nor comment", where, hint)
            tolerate(problem, lenient and bool(sections))
            continue
        if not sections:
            raise CfgError(f"'{_short(key)}' stands before any section", where, "a .cfg file starts with [net]")
        section = sections[-1]
        first = section.options.get(key)
        if first is None or not first.value:
            # Darknet passes `key=` over, so the first that has a value counts.
            section.options[key] = Option(key, value, number, shown)
        elif first.value != value and key not in TRAINING_KEYS:
            message = f"'{_short(key)}' is given twice; line {first.line} counts"
            warn(CfgError(message, where, "as in Darknet: the first"))
    if not sections:
        raise CfgError("the file has no sections", file, "a .cfg file starts with [net]")
    if sections[0].name not in ("net", "network"):
        raise CfgError("the first section must be [net]", sections[0].where, "it holds width, height and channels")
    return sections


def read_cfg(path: str | Path, lenient: bool = False) -> tuple[list[Section], bytes]:
    """Reads and splits a .cfg file, and returns its bytes as well; see `parse_cfg`."""
    check_foreign(path, CfgError)
    try:
        data = read_piped(path, _LARGEST)
    except ValueError as error:
        # A name with a zero byte.
        raise CfgError(f"cannot read the cfg: {error}", str(path), "check the path") from error
    except OSError as error:
        if error.errno == errno.EFBIG:
            hint = "was the .weights file given in its place?"
            raise CfgError(f"not a .cfg file: {error.strerror}", str(path), hint) from error
        hint = missing_hint(path) if isinstance(error, FileNotFoundError) else "check the path"
        raise CfgError(f"cannot read the cfg: {error.strerror or error}", str(path), hint) from error
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise CfgError("the file is UTF-16, which Darknet does not read", str(path), "save it as UTF-8")
    return parse_cfg(data.decode("utf-8", errors="replace"), str(path), lenient), data


def with_net(sections: list[Section], data: bytes, options: Mapping[str, str]) -> bytes:
    """A cfg's bytes with these options first in [net], in place of those that it has of them; nothing else changes.

    Args:
        sections, data: as `read_cfg` gives them.
    """
    end = b"\r\n" if b"\r\n" in data else b"\n"
    rows = data.splitlines()
    first = sections[0].where.line
    last = sections[1].where.line - 1 if len(sections) > 1 else len(rows)
    keys = {key.encode() for key in options}
    rest = [row for row in rows[first:last] if re.sub(rb"\s", b"", row.partition(b"=")[0]) not in keys]
    rows[first:last] = [*(f"{key} = {value}".encode() for key, value in options.items()), *rest]
    return end.join(rows) + end


def find_cfg(cfg: str | os.PathLike[str]) -> Path:
    """Finds a cfg by its path, or a network of cfg/ by its name: a string without a folder and a suffix.

    What is not there is not looked for under another name: a path that somebody mistyped stands for no other network.
    """
    path = Path(cfg)
    # Unlike Path.exists, os.access raises nothing where the name is too long.
    if os.access(path, os.F_OK) or not _is_bare(cfg):
        return path
    own = bundled_cfg(f"{path.name}.cfg")
    return own if os.access(own, os.F_OK) else path


def bundled_cfgs() -> dict[str, Path]:
    """The cfgs of cfg/ by the networks' names, sorted."""
    return dict(sorted((path.stem, path) for path in packaged("cfg").glob("*.cfg")))


def missing_hint(cfg: str | os.PathLike[str]) -> str:
    """What may have been meant by a cfg that is not there."""
    path = Path(cfg)
    name, own = path.name.removesuffix(".cfg"), bundled_cfgs()
    if name in own:
        return f"did you mean the bundled network {name}? It has no folder and no suffix"
    if path.name != str(path):
        return "check the path"
    known = "check the path; `dnc zoo networks` lists those that dnc has by name"
    return close_match(name, own, cutoff=0.8) or known


def _is_bare(cfg: str | os.PathLike[str]) -> bool:
    """Whether this may be a network's name: no Path, no folder, not even ./, and no suffix."""
    return isinstance(cfg, str) and cfg == Path(cfg).name and not cfg.endswith(".cfg")


def bundled_cfg(name: str) -> Path:
    """Path in cfg/ of the cfg of this name, whether it is there or not."""
    return packaged("cfg") / name
