"""The engine folder: engine.json, the engine's own files, labels.txt.

engine.json says all that is needed to run the engine, and holds the sha256 of each file and of itself, so that a
damaged engine is refused rather than run. The same network and options give the same bytes: there are no paths of a
machine in it, no times but those that something was chosen by, and of what was measured besides only the deviation.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from dnc.errors import BundleError
from dnc.files.reading import digest_of, open_regular, parse_json
from dnc.files.writing import guarded_folder, put_back
from dnc.runtime.decoding import Head, head_from_json
from dnc.runtime.memory import carried_states
from dnc.runtime.preprocessing import Preprocessing

__all__ = ["Files", "Manifest", "parse_manifest", "read_contents", "read_engine", "read_manifest", "write_folder"]

SCHEMA = 2
"""1 had no runner and no remarks; a higher number was written by a newer dnc."""
MANIFEST = "engine.json"
IN_MEMORY = "the package in memory"
"""The place of an engine that is in no folder, for messages."""
LABELS = "labels.txt"
MANIFEST_LIMIT = 16 << 20
"""Bytes; those of the largest network in cfg/ are 20,000."""
LABELS_LIMIT = 16 << 20
FILES_LIMIT = 1000
"""Files of an engine: each is opened, checked and, from a package, unpacked. Engines have 20 at most."""
_MOST_ELEMENTS = 1 << 30
"""Of an input, as in bundle.cpp."""
_DAMAGED = "the engine is damaged: build it again"
_TRIES = 100
_OPTIONAL = ("labels", "tuning", "options", "report", "remarks", "runner", "arithmetic", "deviation")
"""What engine.json need not say: the labels are a file of their own, engines of before lack the rest."""


@dataclass(frozen=True)
class Manifest:
    """What engine.json says."""

    name: str
    """Of the network: that of the cfg, without its suffix."""
    target: str
    """What it was compiled for."""
    network: Mapping[str, Any]
    """The cfg's name, a digest of the cfg and the weights, how many layers, parameters and operations there are."""
    input_shape: tuple[int, ...]
    """(C, H, W), or (inputs,)."""
    batch: int | str
    """A number if the engine takes batches of that size alone."""
    outputs: tuple[str, ...]
    """Their names, in the order of the heads; those of states come after them."""
    output_shapes: tuple[tuple[int, ...], ...]
    """Without the batch axis; () for what has no fixed shape."""
    preprocessing: Preprocessing | None
    """How an image becomes the input. None for networks on vectors; of an older dnc also for those of other than 1, 3
    or 4 channels."""
    input_dtype: str = "float32"
    """float32: (N, C, H, W) in [0, 1]; uint8: (N, H, W, C), pixels of an image of any size."""
    decode: str = "host"
    """Where boxes are decoded and suppressed: on the host, in the graph, or decoded there and suppressed too."""
    heads: tuple[Head, ...] = ()
    """What it takes to read the outputs, in the order of the cfg."""
    extra_inputs: tuple[str, ...] = ()
    """Inputs of a graph with non-maximum suppression inside: confidence, iou, window (see dnc.graph.suppression)."""
    states: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Names of state inputs and their shapes; each has a successor among the model's outputs, after `outputs`."""
    labels: tuple[str, ...] = ()
    passes: tuple[Mapping[str, Any], ...] = ()
    """The name of each pass that ran, in order, and how often it was applied."""
    tools: Mapping[str, str] = field(default_factory=dict)
    """The versions of dnc and of the libraries that made the engine."""
    tuning: Mapping[str, Any] = field(default_factory=dict)
    """What --autotune and target cpu (`candidates`) measured and chose."""
    options: Mapping[str, str] = field(default_factory=dict)
    """What the target was told, as text (see `Target`)."""
    report: Mapping[str, str] = field(default_factory=dict)
    """What the target has to say about the engine, by topic."""
    runner: str = ""
    """What opens it, by the name of the runner; that of the target if not said."""
    remarks: tuple[Mapping[str, Any], ...] = ()
    """What each pass did, in order: its `name` and `tolerance`, and `applied` and `missed` remarks, each with a `where`
    and a `text`."""
    arithmetic: str = ""
    """The kind of 8-bit arithmetic of the CPU that its 8-bit numbers are made for, by its name in
    `dnc.runtime.arithmetic`; empty where there are none, where no CPU computes them, and in engines of an older dnc."""
    deviation: Mapping[str, Any] = field(default_factory=dict)
    """How far an engine with 8-bit numbers is from float32, as it ran on the machine that compiled it; empty without
    8-bit numbers, and with --no-verify. `text` says it in words, `measured` whether it could be; the rest is
    `dnc.evaluation.deviation.Deviation`, with the instruction set `isa` and the share `changed`."""

    def to_json(self) -> dict[str, Any]:
        """All but the labels, which are a file of their own."""
        fields = {key: value for key, value in asdict(self).items() if key not in ("labels", "heads", "preprocessing")}
        return {
            "schema": SCHEMA,
            **fields,
            "preprocessing": self.preprocessing.to_json() if self.preprocessing else None,
            "heads": [head.to_json() for head in self.heads],
        }

    @property
    def runner_name(self) -> str:
        """The name of the runner that opens it."""
        return self.runner or self.target

    @property
    def precision(self) -> str:
        """What it computes in, as --precision says it."""
        return self.options.get("precision", "fp32")

    @property
    def carried(self) -> tuple[str, ...]:
        """Names of the states that go on from one image to the next."""
        return carried_states(self.states)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any], labels: tuple[str, ...], where: Path | str) -> Manifest:
        """The inverse; raises BundleError."""
        try:
            missing = {item.name for item in dataclasses.fields(cls)} - {*_OPTIONAL, *fields}
            if missing:
                raise ValueError(f"it lacks {', '.join(sorted(missing))}")
            preprocessing = fields["preprocessing"]
            manifest = cls(
                **{
                    **{key: value for key, value in fields.items() if key not in ("schema", "files", "sha256")},
                    "input_shape": tuple(fields["input_shape"]),
                    "outputs": tuple(fields["outputs"]),
                    "extra_inputs": tuple(fields["extra_inputs"]),
                    "output_shapes": tuple(map(tuple, fields["output_shapes"])),
                    "states": {name: tuple(shape) for name, shape in fields["states"].items()},
                    "preprocessing": Preprocessing.from_json(preprocessing) if preprocessing else None,
                    "heads": tuple(map(head_from_json, fields["heads"])),
                    "passes": tuple(fields["passes"]),
                    "remarks": tuple(fields.get("remarks", ())),
                    "labels": labels,
                }
            )
            manifest._check()
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            what = f"engine.json is not what dnc writes: {error!r}"
            raise BundleError(what, where, "build the engine again") from error
        return manifest

    def _check(self) -> None:
        """Raises ValueError for what only a changed engine.json with a right digest could hold."""
        for item, kind in get_type_hints(type(self)).items():
            if not _fits(getattr(self, item), kind):
                raise ValueError(f"{item} is not {kind}")
        for shape in (self.input_shape, *self.states.values()):
            if len(shape) not in (1, 3) or min(shape) < 1 or math.prod(shape) > _MOST_ELEMENTS:
                raise ValueError(f"no input has the shape {shape}")
        if isinstance(self.batch, int) and self.batch < 1:
            raise ValueError(f"no input has a batch of {self.batch}")
        prepared = self.preprocessing
        if prepared is not None and (prepared.channels, prepared.height, prepared.width) != tuple(self.input_shape):
            raise ValueError("the preprocessing does not fit the input")
        if self.input_dtype not in ("float32", "uint8") or self.decode not in ("host", "graph", "graph+nms"):
            raise ValueError(f"input_dtype {self.input_dtype} or decode {self.decode} is unknown")
        if len(self.outputs) != len(self.output_shapes) or not self.outputs:
            raise ValueError(f"{len(self.outputs)} outputs, {len(self.output_shapes)} shapes")
        if any(head.output not in self.outputs for head in self.heads) and self.decode == "host":
            raise ValueError("a head reads what is no output")


def read_manifest(folder: str | Path) -> Manifest:
    """Reads and checks an engine folder. Raises BundleError if it is none, is damaged, or was made by a newer dnc."""
    return read_engine(folder)[0]


def read_engine(folder: str | Path) -> tuple[Manifest, Files]:
    """As `read_manifest`; besides, what knows whether the files are still those that were checked.

    An engine that is replaced meanwhile is read again: all that is read is of one engine.
    """
    folder = Path(folder)
    for _ in range(_TRIES):
        try:
            with _Folder(folder) as opened:
                try:
                    return _read(opened)
                except BundleError:
                    if not opened.is_replaced():
                        raise
        except FileNotFoundError:
            if not put_back(folder):
                kind, command = ("file", "package") if folder.suffix.lower() == ".dnc" else ("folder", "compile")
                what = f"not an engine: the {kind} does not exist"
                raise BundleError(what, folder, f"make one with `dnc {command}`") from None
        except NotADirectoryError:
            raise BundleError("not an engine: a file, not a folder", folder, "make one with `dnc compile`") from None
        except OSError as error:
            raise BundleError(f"cannot read the engine: {_reason(error)}", folder, _DAMAGED) from error
    raise BundleError("the engine is replaced again and again", folder, "try it again")


def read_contents(fields: Mapping[str, Any], labels: bytes | None, where: Path | str) -> Manifest:
    """As `read_manifest`, of an engine in memory.

    Args:
        fields: engine.json, as `parse_manifest` gives it.
        labels: labels.txt if there is one, whose digest was compared.
        where: the engine, for messages.
    """
    names = () if labels is None else _parse_labels(labels, where)
    return Manifest.from_json(fields, names, where)


class _Folder:
    """A folder that stays the same one while it is read, whatever takes its place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def __enter__(self) -> _Folder:
        if os.open in os.supports_dir_fd:
            # Who may only pass through a folder can open files that he knows of.
            self._file = os.open(self.path, getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            os.close(self._file)

    def is_replaced(self) -> bool:
        """Whether another folder has taken its place."""
        try:
            return self._file is not None and not os.path.samestat(os.fstat(self._file), self.path.stat())
        except OSError:
            return True

    def open(self, name: str) -> io.BufferedReader:
        """A file of it; raises OSError as `open_regular`."""
        return open_regular(self.path / name if self._file is None else name, self._file)

    def read(self, name: str, limit: int) -> bytes:
        """The contents of a file, and one byte more than the limit at most."""
        with self.open(name) as file:
            return file.read(limit + 1)


def _read(folder: _Folder) -> tuple[Manifest, Files]:
    place = folder.path / MANIFEST
    try:
        content = folder.read(MANIFEST, MANIFEST_LIMIT)
    except FileNotFoundError:
        what = "not an engine: the folder has no engine.json"
        raise BundleError(what, folder.path, "make one with `dnc compile`") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"cannot read engine.json: {_reason(error)}", place, _DAMAGED) from error
    fields = parse_manifest(content, place)
    files = Files(folder.path, content, fields["files"])
    files.check(folder)
    labels = _read_labels(folder, files) if LABELS in fields["files"] else ()
    return Manifest.from_json(fields, labels, place), files


_Stamp = tuple[int, int, int, int, int]
_FINE, _COARSE = 20_000_000, 2_000_000_000
"""Nanoseconds: a file that was written within that time may be written again without another time. Some file systems
keep whole seconds, FAT two."""


class Files:
    """The files of an engine, as they were when their digests were checked, and whether they still are.

    Libraries open them by their names, later on. What says that they are the same files is their device, number, size
    and times, as for `make` or git; only where these differ, or a file was written just before it was checked, digests
    are computed again. What a library maps into memory and what is written into a file afterwards, in place, nobody can
    tell apart: dnc never does so, it replaces folders.
    """

    def __init__(self, folder: Path, manifest: bytes, listed: Mapping[str, Mapping[str, Any]]) -> None:
        self.folder = folder
        self.manifest = manifest
        """engine.json."""
        self.listed = listed
        """The size and sha256 of each file."""
        self._stamps: dict[str, _Stamp | None] = {}

    @contextmanager
    def opening(self) -> Iterator[None]:
        """While a library opens files of the engine by their names.

        Raises:
            BundleError: before or afterwards, they are not those that were checked.
        """
        self._check_again()
        yield
        self._check_again()

    def _check_again(self) -> None:
        try:
            if all(_stamp((self.folder / name).stat()) == self._stamps[name] for name in self.listed):
                return
        except OSError:
            # What is missing, or cannot be read any more, is said where it is read.
            pass
        try:
            with _Folder(self.folder) as opened:
                self.check(opened)
        except (BundleError, OSError) as error:
            what = "the engine was replaced or changed since it was loaded"
            raise BundleError(what, self.folder, "load it again") from error

    def check(self, folder: _Folder) -> None:
        """Compares the files of a folder with what engine.json lists; raises BundleError if they differ."""
        for name, expected in self.listed.items():
            path = folder.path / name
            try:
                with folder.open(name) as file:
                    now, found = time.time_ns(), os.fstat(file.fileno())
                    if found.st_size != expected["size"]:
                        what = f"{name} has {found.st_size} bytes, not {expected['size']}"
                        raise BundleError(what, path, _DAMAGED)
                    if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                        raise BundleError(f"the contents of {name} have changed", path, _DAMAGED)
            except (OSError, ValueError) as error:
                raise BundleError(f"cannot read {name}: {_reason(error)}", path, _DAMAGED) from error
            written = max(found.st_mtime_ns, found.st_ctime_ns)
            settled = now - written > (_FINE if written % 1_000_000_000 else _COARSE)
            self._stamps[name] = _stamp(found) if settled else None


def _stamp(found: os.stat_result) -> _Stamp:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def parse_manifest(content: bytes, where: Path | str) -> dict[str, Any]:
    """What engine.json says, when it is known to be what a dnc wrote that is not newer; `files` are then names without
    a folder, each with its size and sha256.

    Raises:
        BundleError: it is too long, no JSON, damaged, newer, or names a file outside of the engine.
    """
    if len(content) > MANIFEST_LIMIT:
        raise BundleError(f"engine.json is longer than {MANIFEST_LIMIT >> 20} MiB", where, _DAMAGED)
    try:
        fields = parse_json(content)
    except ValueError as error:
        raise BundleError(f"cannot read engine.json: {error}", where, _DAMAGED) from error
    schema = fields.get("schema") if isinstance(fields, dict) else None
    if type(schema) is not int or schema < 1:
        raise BundleError("engine.json has no schema number", where, _DAMAGED)
    if schema > SCHEMA:
        newer = f"the engine has schema {schema}, this dnc reads up to {SCHEMA}"
        raise BundleError(newer, where, "a newer dnc made it: update dnc, or build the engine again")
    if fields.get("sha256") != _digest_of(fields):
        raise BundleError("engine.json was changed after it was written", where, _DAMAGED)
    files = fields.get("files")
    if not _fits(files, Mapping[str, Mapping[str, Any]]):
        raise BundleError("engine.json lists no files", where, _DAMAGED)
    if len(files) > FILES_LIMIT:
        raise BundleError(f"engine.json lists more than {FILES_LIMIT} files", where, _DAMAGED)
    for name, expected in files.items():
        # A colon is a drive or a stream on some systems.
        if name in ("", ".", "..", MANIFEST) or Path(name).name != name or set(name) & set("\\:"):
            raise BundleError(f"engine.json names a file outside the folder: {name}", where, _DAMAGED)
        size = expected.get("size")
        if type(size) is not int or size < 0 or not isinstance(expected.get("sha256"), str):
            raise BundleError(f"engine.json does not say what {name} is", where, _DAMAGED)
    return dict(fields)


def _read_labels(folder: _Folder, files: Files) -> tuple[str, ...]:
    path = folder.path / LABELS
    try:
        if files.listed[LABELS]["size"] > LABELS_LIMIT:
            raise OSError(errno.EFBIG, f"it has more than {LABELS_LIMIT >> 20} MiB")
        content = folder.read(LABELS, LABELS_LIMIT)
    except (OSError, ValueError) as error:
        raise BundleError(f"cannot read the labels: {_reason(error)}", path, "build the engine again") from error
    if hashlib.sha256(content).hexdigest() != files.listed[LABELS]["sha256"]:
        raise BundleError(f"the contents of {LABELS} have changed", path, _DAMAGED)
    return _parse_labels(content, path)


def _parse_labels(content: bytes, where: Path | str) -> tuple[str, ...]:
    try:
        if len(content) > LABELS_LIMIT:
            raise ValueError(f"they have more than {LABELS_LIMIT >> 20} MiB")
        # Not splitlines(): a name may hold one of the rarer characters that end a line there.
        text = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8").read()
    except ValueError as error:
        raise BundleError(f"cannot read the labels: {error}", where, "build the engine again") from error
    return tuple(text.removesuffix("\n").split("\n"))


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is what an annotation says, down to the elements and to the fields of dataclasses."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, member) for member in inner)
    if origin is tuple and inner[-1] is not Ellipsis:
        return isinstance(value, tuple) and len(value) == len(inner) and all(map(_fits, value, inner))
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, inner[0]) for item in value)
    if origin is Mapping:
        fits = isinstance(value, Mapping) and all(_fits(item, inner[1]) for item in value.values())
        return fits and all(isinstance(key, str) for key in value)
    if kind in (int, float):
        return type(value) in (int, kind) and (math.isfinite(value) if type(value) is float else abs(value) < 2**31)
    if not is_dataclass(value) or not isinstance(value, kind):
        return isinstance(value, kind)
    hints = get_type_hints(type(value))
    return all(_fits(getattr(value, item.name), hints[item.name]) for item in dataclasses.fields(value))


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


@contextmanager
def write_folder(out: str | Path) -> Iterator[Writer]:
    """A folder beside `out` to write into, which takes its place only when all is written.

    An engine that stands at `out` is replaced; anything else there is left alone. Whatever happens, nothing that was
    begun is left.

    Raises:
        BundleError: `out` cannot be written, or holds something that is no engine.
    """
    try:
        with guarded_folder(out, lambda place: _refuse_strangers(place, out)) as folder:
            yield Writer(folder)
    except OSError as error:
        hint = "is the disk full, or the folder read-only?"
        raise BundleError(f"cannot write the engine: {_reason(error)}", str(out), hint) from error


def _refuse_strangers(place: Path, out: str | Path) -> None:
    stranger = _stranger(place)
    if stranger:
        hint = "choose another folder with -o"
        raise BundleError(f"something that is no engine stands in the way: {stranger}", str(out), hint)


def _stranger(out: Path) -> str:
    """What stands at `out` and is no part of an engine, a damaged one included; "" if nothing."""
    try:
        names = sorted(path.name for path in out.iterdir())
    except FileNotFoundError:
        return ""
    except NotADirectoryError:
        return "a file" if os.path.lexists(out) else ""
    if names and MANIFEST not in names:
        return f"{names[0]} in a folder without engine.json"
    try:
        listed = set(json.loads((out / MANIFEST).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        listed = {name for name in names if name.startswith("model.")}
    return next((name for name in names if name not in listed | {MANIFEST, LABELS}), "")


@dataclass(frozen=True)
class Writer:
    """A folder that is being written."""

    folder: Path

    def finish(self, manifest: Manifest) -> None:
        """Writes labels.txt and, last, engine.json with the sha256 of every file."""
        # What could not be read back is not written.
        manifest._check()
        if manifest.labels:
            (self.folder / LABELS).write_bytes("".join(f"{label}\n" for label in manifest.labels).encode())
        paths = sorted(self.folder.iterdir())
        files = {path.name: {"size": path.stat().st_size, "sha256": digest_of(path)} for path in paths}
        fields = {**manifest.to_json(), "files": files}
        fields["sha256"] = _digest_of(fields)
        text = json.dumps(fields, indent=1, ensure_ascii=False) + "\n"
        # A file's name may hold bytes that are no UTF-8: lone surrogates, which JSON can only escape.
        (self.folder / MANIFEST).write_bytes(text.encode("utf-8", "backslashreplace"))


def _digest_of(fields: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in fields.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
