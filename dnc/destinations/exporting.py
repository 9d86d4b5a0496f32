"""`dnc.export`: an engine, or a cfg that is compiled for it, in the form that another program reads."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from dnc import __version__
from dnc.compiler.compiling import compile_engine, offers_for
from dnc.compiler.options import CompileOptions
from dnc.compiler.source import find_weights, is_engine
from dnc.darknet.cfg import find_cfg
from dnc.destinations import destinations, find
from dnc.destinations.base import Destination, Export, Form
from dnc.destinations.readme import suppression
from dnc.errors import DestinationError, DncError, warn
from dnc.files.reading import digest_of, read_json
from dnc.files.writing import check_places, guarded_folder, scratch_folder, whole_file
from dnc.runtime.engine import Engine, load
from dnc.runtime.options import CALIBRATED
from dnc.typing import Progress, silent

__all__ = ["Exported", "Wanted", "export", "export_cfg", "export_engine"]

RECORD = "export.json"
_RECORD_LIMIT = 4 << 20
_CHUNK = 1 << 20


class Exported(NamedTuple):
    """What was written."""

    path: Path
    """A folder, or one file."""
    network: str
    destination: str
    files: Mapping[str, int]
    """Paths in the folder, or the file's name, with their bytes."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is asked of an export besides what is compiled.

    Raises:
        DestinationError: the destination or an option of it is unknown, or a threshold is none.
    """

    destination: str
    out: str | PathLike[str] | None = None
    confidence: float = 0.25
    iou: float = 0.45
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The destination's own."""
    calibration: str | PathLike[str] | None = None

    def __post_init__(self) -> None:
        for what in ("confidence", "iou"):
            if not 0 <= getattr(self, what) <= 1:
                raise DestinationError(f"{what}={getattr(self, what)} is not from 0 to 1")
        _ = self.kind(self.options)

    @property
    def kind(self) -> type[Destination]:
        """The destination's class."""
        return find(self.destination)


def export(
    source: str | PathLike[str],
    destination: str,
    out: str | PathLike[str] | None = None,
    *,
    weights: str | PathLike[str] | None = None,
    confidence: float = 0.25,
    iou: float = 0.45,
    options: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    **compiling: Any,
) -> Path:
    """Writes a network for another program.

    Args:
        source: an engine folder or package; or a .cfg file, or the name of a network of cfg/, which is compiled first.
        destination: the program; `dnc export --list` shows them.
        out: a folder to write; for some destinations also a file, told by its suffix. NAME.DESTINATION in the current
            folder, if not given.
        weights: of a cfg, as for `dnc.compile`.
        confidence: from which score on the program shall report a box.
        iou: from which overlap on a box shall suppress another one.
        options: the destination's, by name; of a cfg also the target's.
        progress: is told what happens now.
        compiling: of a cfg, the fields of `CompileOptions`; the target is the destination's if not given.

    Returns:
        What was written: a folder or a file.

    Raises:
        DestinationError: there is no such destination, it cannot hold the network, or the folder cannot be written.
        DncError: as `dnc.compile` and `dnc.load`.
    """
    own, rest = split_options(destination, options or {})
    tell = progress or silent
    if is_engine(source):
        calibration = compiling.pop("calibration", None)
        check_of_cfg([*compiling, *rest, *(["weights"] if weights is not None else [])])
        wanted = Wanted(destination, out, confidence, iou, own, calibration)
        return export_engine(source, wanted, tell).path
    wanted = Wanted(destination, out, confidence, iou, own, compiling.get("calibration"))
    settings = CompileOptions(**{"target": wanted.kind.target, **compiling}, options=rest)
    return export_cfg(source, weights, wanted, settings, tell).path


def check_of_cfg(names: list[str]) -> None:
    """Raises DestinationError for options that only a cfg can have."""
    if names:
        raise DestinationError(f"{names[0]} is for a cfg: an engine is compiled already", hint="name the cfg instead")


def split_options(destination: str, given: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Options that are the destination's, and those that are for the target of a cfg."""
    known = {option.name for option in find(destination).known_options}
    own = {name: value for name, value in given.items() if name in known}
    return own, {name: value for name, value in given.items() if name not in known}


def export_cfg(
    cfg: str | PathLike[str],
    weights: str | PathLike[str] | None,
    wanted: Wanted,
    options: CompileOptions,
    progress: Progress = silent,
) -> Exported:
    """Compiles a cfg as the destination wants it, and writes it. Raises as `export`."""
    kind = wanted.kind
    place = find_cfg(cfg)
    found = find_weights(place, weights)
    out = _place(wanted, place.stem)
    destination = kind(wanted.options)
    if kind.calibrated and options.told.get("precision") not in CALIBRATED:
        options = dataclasses.replace(options, calibration=None)
    options = destination.prepared(options)
    offers = offers_for(options)
    if not kind.runners.issuperset(offer.runs.name for offer in offers):
        # Of several, target cpu would take the fastest, whichever that is.
        raise _another_engine(kind, options.target, place)
    for offer in offers:
        destination.check_form(Form.of_cfg(options, offer, place, _calibration(wanted)))
    with scratch_folder("export") as scratch:
        engine = compile_engine(place, found, scratch / f"{place.stem}.engine", options, progress)
        return _write(engine, place, destination, wanted, out, progress)


def export_engine(engine: str | PathLike[str], wanted: Wanted, progress: Progress = silent) -> Exported:
    """Writes an engine that is there. Raises as `export`."""
    kind = wanted.kind
    if wanted.calibration is not None and not kind.calibrated:
        check_of_cfg(["calibration"])
    loaded = load(engine)
    out = _place(wanted, loaded.manifest.name)
    return _write(loaded, engine, kind(wanted.options), wanted, out, progress)


def _place(wanted: Wanted, name: str) -> Path:
    """Where to write; raises DestinationError where something else stands there, before anything takes long."""
    kind = wanted.kind
    out = Path(f"{Path(name).name}.{kind.name}" if wanted.out is None else wanted.out)
    if _is_file(kind, out):
        check_places([out])
        return out
    foreign = [other for other in destinations.values() if _is_file(other, out)]
    if foreign:
        hint = f"one file ending in {kind.suffix}, or a folder" if kind.suffix else "it is a folder"
        raise DestinationError(f"{kind.name} does not write a file {out.name}", str(out), hint)
    try:
        _refuse_strangers(kind, Path(os.path.realpath(out)), out)
    except OSError as error:
        raise _unwritable(error, out) from error
    return out


def _is_file(kind: type[Destination], out: Path) -> bool:
    return bool(kind.suffix) and out.name.lower().endswith(kind.suffix)


def _another_engine(kind: type[Destination], target: str, where: object) -> DestinationError:
    runners = " or ".join(sorted(kind.runners))
    what = f"{kind.name} takes engines of target {runners}, not of {target}"
    return DestinationError(what, where, f"compile it with --target {kind.target}")


def _write(
    engine: Engine, source: object, destination: Destination, wanted: Wanted, out: Path, progress: Progress
) -> Exported:
    kind, manifest = wanted.kind, engine.manifest
    if manifest.runner_name not in kind.runners:
        raise _another_engine(kind, manifest.target, source)
    given = Export(engine, wanted.confidence, wanted.iou, destination.options, _calibration(wanted))
    progress(f"writing it for {kind.name}")
    destination.check(given)
    if kind.overlap and suppression(given):
        _warn_of_suppression(given, kind)
    if not _is_file(kind, out):
        with _folder(kind, out) as folder:
            destination.write(given, folder)
            files = _record(kind, given, folder)
        return Exported(out, given.name, kind.name, files)
    with scratch_folder("export") as folder:
        destination.write(given, folder)
        [made] = [path for path in folder.iterdir() if path.name.endswith(kind.suffix)]
        with whole_file(out) as file, made.open("rb") as written:
            shutil.copyfileobj(written, file, _CHUNK)
        return Exported(out, given.name, kind.name, {out.name: made.stat().st_size})


def _warn_of_suppression(given: Export, kind: type[Destination]) -> None:
    head = given.box_heads()[-1]
    how = f"{kind.name} suppresses boxes by IoU alone, and not as nms_kind={head.nms[0]} of the cfg says"
    what = f"{how}: of neighbours of one class some are lost that Darknet keeps"
    warn(DestinationError(what, head.where, kind.overlap))


def _calibration(wanted: Wanted) -> Path | None:
    """What is for the destination itself."""
    return None if wanted.calibration is None or not wanted.kind.calibrated else Path(wanted.calibration)


@contextmanager
def _folder(kind: type[Destination], out: Path) -> Iterator[Path]:
    try:
        with guarded_folder(out, lambda place: _refuse_strangers(kind, place, out)) as folder:
            yield folder
    except OSError as error:
        raise _unwritable(error, out) from error


def _unwritable(error: OSError, out: Path) -> DestinationError:
    hint = "is the disk full, or the folder read-only?"
    return DestinationError(f"cannot write the export: {error.strerror or error}", str(out), hint)


def _record(kind: type[Destination], given: Export, folder: Path) -> dict[str, int]:
    """Writes export.json, by which the next export knows what it may replace; returns all files with their bytes."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in paths]
    fields = {
        "destination": kind.name,
        "network": given.name,
        "digest": given.manifest.network.get("digest", ""),
        "dnc": __version__,
        "files": {name: digest_of(path) for name, path in zip(names, paths, strict=True)},
    }
    record = folder / RECORD
    record.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")
    return {name: path.stat().st_size for name, path in zip([*names, RECORD], [*paths, record], strict=True)}


def _refuse_strangers(kind: type[Destination], place: Path, out: Path) -> None:
    """Raises DestinationError where something stands in the place that is no export of the kind, as it was written."""
    found = _stranger(kind, place)
    if found:
        raise DestinationError(f"something stands in the way: {found}", str(out), "choose another folder with -o")


def _stranger(kind: type[Destination], place: Path) -> str:
    """What must stay, in words; empty if nothing."""
    if not os.path.lexists(place):
        return ""
    if not place.is_dir():
        return "a file"
    if not (place / RECORD).is_file():
        # Not looked through: it may be anybody's home.
        first = min((path.name for path in place.iterdir()), default="")
        return first and f"{first} in a folder without {RECORD}"
    try:
        fields = read_json(place / RECORD, _RECORD_LIMIT)
        listed, name = dict(fields["files"]), fields["destination"]
    except (OSError, ValueError, LookupError, TypeError, DncError):
        return f"{RECORD}, which is damaged"
    if name != kind.name:
        return f"an export for {name}"
    for path in place.rglob("*"):
        file = path.relative_to(place).as_posix()
        if file == RECORD or (path.is_dir() and not path.is_symlink()):
            continue
        if file not in listed:
            return f"{file}, which is not of the export there"
        if path.is_symlink() or not path.is_file() or digest_of(path) != listed[file]:
            return f"{file}, which was changed since it was exported"
    return ""
