"""The engine folder: engine.json, the engine's own files, labels.txt.

engine.json says all that is needed to run the engine, and holds the sha256 of each file and of itself, so that a
damaged engine is refused rather than run. The same network and options give the same bytes: there are no times in it,
and no paths of a machine.

    schema      1; a higher number was written by a newer dnc
    target      who opens it
    network     cfg name, digest, input shape, layers, parameters, operations
    input       name, dtype ("float32": (N, C, H, W) in [0, 1]; "uint8": (N, H, W, C) pixels of any size), batch
    outputs     names and shapes, in order; states of recurrent layers apart
    preprocessing, heads, decode    see dnc.preprocess, dnc.decode
    passes, tools, files
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dnc.decode import Head, head_from_json
from dnc.errors import BundleError
from dnc.preprocess import Preprocessing

__all__ = ["Bundle", "read_bundle", "write_folder"]

SCHEMA = 1
MANIFEST = "engine.json"
LABELS = "labels.txt"


@dataclass(frozen=True)
class Bundle:
    """What engine.json says."""

    name: str
    target: str
    network: Mapping[str, Any]
    input_shape: tuple[int, ...]
    """(C, H, W), or (inputs,)."""
    batch: int | str
    """A number if the engine takes batches of that size alone."""
    outputs: tuple[str, ...]
    output_shapes: tuple[tuple[int, ...], ...]
    """Without the batch axis; () for what has no fixed shape."""
    preprocessing: Preprocessing | None
    """None for networks on vectors, or with more channels than images have."""
    input_dtype: str = "float32"
    decode: str = "host"
    heads: tuple[Head, ...] = ()
    extra_inputs: tuple[str, ...] = ()
    """Inputs of a graph with non-maximum suppression inside: confidence, iou, window (see dnc.graph_nms)."""
    states: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Names of state inputs and their shapes; each has a successor among the model's outputs, after `outputs`."""
    labels: tuple[str, ...] = ()
    passes: tuple[Mapping[str, Any], ...] = ()
    tools: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """All but the labels, which are a file of their own."""
        fields = {key: value for key, value in asdict(self).items() if key not in ("labels", "heads", "preprocessing")}
        return {
            "schema": SCHEMA,
            **fields,
            "preprocessing": self.preprocessing.to_json() if self.preprocessing else None,
            "heads": [head.to_json() for head in self.heads],
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any], labels: tuple[str, ...], where: Path) -> Bundle:
        """The inverse; raises BundleError."""
        try:
            preprocessing = fields["preprocessing"]
            return cls(
                **{
                    **{key: value for key, value in fields.items() if key not in ("schema", "files", "sha256")},
                    "input_shape": tuple(fields["input_shape"]),
                    "outputs": tuple(fields["outputs"]),
                    "extra_inputs": tuple(fields["extra_inputs"]),
                    "output_shapes": tuple(map(tuple, fields["output_shapes"])),
                    "states": {name: tuple(shape) for name, shape in fields["states"].items()},
                    "preprocessing": Preprocessing.from_json(preprocessing) if preprocessing else None,
                    "heads": tuple(map(head_from_json, fields["heads"])),
                    "labels": labels,
                }
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            what = f"engine.json is not what dnc writes: {error!r}"
            raise BundleError(what, where, "build the engine again") from error


def read_bundle(folder: str | Path) -> Bundle:
    """Reads and checks an engine folder.

    Raises:
        BundleError: it is none, is damaged, or was made by a newer dnc.
    """
    folder = Path(folder)
    manifest = folder / MANIFEST
    damaged = "the engine is damaged: build it again"
    try:
        fields = json.loads(manifest.read_text(encoding="utf-8"))
    except FileNotFoundError:
        what = "has no engine.json" if folder.is_dir() else "does not exist"
        raise BundleError(f"not an engine: the folder {what}", folder, "make one with `dnc compile`") from None
    except NotADirectoryError:
        raise BundleError("not an engine: a file, not a folder", folder, "make one with `dnc compile`") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"cannot read engine.json: {error}", manifest, damaged) from error
    if not isinstance(fields, dict) or not isinstance(fields.get("schema"), int):
        raise BundleError("engine.json has no schema number", manifest, damaged)
    if fields["schema"] > SCHEMA:
        newer = f"the engine has schema {fields['schema']}, this dnc reads up to {SCHEMA}"
        raise BundleError(newer, manifest, "a newer dnc made it: update dnc, or build the engine again")
    if fields.get("sha256") != _digest_of(fields):
        raise BundleError("engine.json was changed after it was written", manifest, damaged)
    for name, expected in fields["files"].items():
        path = folder / name
        if path.parent != folder:
            raise BundleError(f"engine.json names a file outside the folder: {name}", manifest, damaged)
        try:
            size = path.stat().st_size
            if size != expected["size"]:
                raise BundleError(f"{name} has {size} bytes, not {expected['size']}", path, damaged)
            if _digest(path) != expected["sha256"]:
                raise BundleError(f"the contents of {name} have changed", path, damaged)
        except OSError as error:
            raise BundleError(f"cannot read {name}: {error.strerror or error}", path, damaged) from error
    labels = (folder / LABELS).read_text(encoding="utf-8").splitlines() if LABELS in fields["files"] else []
    return Bundle.from_json(fields, tuple(labels), manifest)


@contextmanager
def write_folder(out: str | Path) -> Iterator[Writer]:
    """A folder beside `out` to write into, which takes its place only when all is written.

    An engine that stands at `out` is replaced; anything else there is left alone.

    Raises:
        BundleError: `out` cannot be written, or holds something that is no engine.
    """
    out = Path(out)
    if out.exists() and not (out / MANIFEST).exists() and (not out.is_dir() or any(out.iterdir())):
        raise BundleError("something that is no engine stands in the way", out, "choose another folder with -o")
    partial: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
        yield Writer(partial)
        partial.chmod(0o755)
        _replace(partial, out)
    except OSError as error:
        hint = "is the disk full, or the folder read-only?"
        raise BundleError(f"cannot write the engine: {error.strerror or error}", error.filename or out, hint) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


@dataclass(frozen=True)
class Writer:
    """A folder that is being written."""

    folder: Path

    def finish(self, bundle: Bundle) -> None:
        """Writes labels.txt and, last, engine.json with the sha256 of every file."""
        if bundle.labels:
            (self.folder / LABELS).write_text("\n".join(bundle.labels) + "\n", encoding="utf-8")
        files = {
            path.name: {"size": path.stat().st_size, "sha256": _digest(path)} for path in sorted(self.folder.iterdir())
        }
        fields = {**bundle.to_json(), "files": files}
        fields["sha256"] = _digest_of(fields)
        text = json.dumps(fields, indent=1, ensure_ascii=False) + "\n"
        (self.folder / MANIFEST).write_text(text, encoding="utf-8")


def _replace(partial: Path, out: Path) -> None:
    if not out.exists():
        partial.rename(out)
        return
    # A folder cannot be renamed over another that is not empty: the old one steps aside, and comes back on failure.
    old = partial.with_suffix(".old")
    out.rename(old)
    try:
        partial.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(fields: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in fields.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
