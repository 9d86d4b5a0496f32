"""Workers of a Dask cluster (package `distributed`): one that runs somewhere, or processes of this machine.

Images go a few at a time to whichever worker is free. Dask runs again elsewhere what a worker had begun when it died; a
part that is done twice gives the same twice, and counts once.

What is sent goes by its digest. A worker writes it into its own folder, which ends with it:

    a work's files      the engine, or the network with every layer as an output: to each worker once, even if several
                        commands use it, and to one that comes later when it is first asked
    images              with the part that looks at them. Where they are looked at again, as by the next engine, their
                        digests alone go to the worker that has them

No more is on its way than keeps every worker busy. Workers need no disk in common with this machine, but dnc and its
libraries of the same versions, and so does the scheduler. Each part is looked at by one thread, of which the numbers do
not depend: in the libraries that engines run on, threads share the elements of an output, and none the sum of one.

Pickles go both ways, so that whoever may speak to the scheduler may do all that its workers and this process may do
(SECURITY.md).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import pickle
import platform
import re
import secrets
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dnc import __version__
from dnc.errors import DncError, Heard, ImageError, TargetError, listening, warn
from dnc.evaluation.workers import Each, Outcome, Part, Picture, Task, Work, Workers, part
from dnc.files.writing import scratch_folder
from dnc.runtime.arithmetic import this_isa
from dnc.runtime.memory import States
from dnc.typing import Progress, silent

if TYPE_CHECKING:
    from distributed import Client, Future, Worker

__all__ = ["Cluster", "cluster"]

_CONNECT = 10
"""Seconds for a scheduler to answer."""
_WORKERS = 30
"""Seconds for workers to be there, at first or after all have gone."""
_IMAGES, _BYTES = 16, 1 << 24
"""Of a part, at most, but for one image that is larger."""
_IN_FLIGHT = 1 << 28
"""Bytes of the images that are on their way."""
_PER_THREAD = 2
"""Parts for each thread of the workers: one that it looks at, and one that waits."""
_KEPT = 1 << 30
"""Bytes of the images that a worker keeps."""
_OPEN = 2
"""Works that a worker has open."""
_TRIES = 20
"""Times that a part is sent to workers that lack something."""
_LIBRARIES = ("numpy", "onnxruntime", "openvino", "apache-tvm", "apache-tvm-ffi", "libstb", "pillow")
"""On whose versions numbers depend."""


@contextmanager
def cluster(
    scheduler: str | None = None, workers: int | None = None, *, progress: Progress = silent
) -> Iterator[Workers | None]:
    """Who does the work: the workers of a scheduler, so many processes of this machine, or None, nobody else.

    Args:
        scheduler: tcp://HOST:PORT, or tls://HOST:PORT with the certificates of Dask's configuration.
        workers: the number of processes, which end with the block.
        progress: is told what happens now.

    Raises:
        DncError: both are given, or the address is none.
        TargetError: `distributed` is not installed, no scheduler answers within seconds, it has no workers, or they
            have other versions than this process.
    """
    if scheduler is None and workers is None:
        yield None
        return
    if scheduler is not None and workers is not None:
        raise DncError("a scheduler has workers of its own", hint="give either a scheduler or a number of workers")
    if scheduler is not None and not re.fullmatch(
        r"(tcp|tls)://[^/\s:]+:\d{1,5}|(tcp|tls)://\[[0-9A-Fa-f:.]+\]:\d{1,5}", scheduler
    ):
        raise DncError(f"'{scheduler}' is no address of a Dask scheduler", hint="for instance tcp://HOST:8786")
    if workers is not None and workers < 1:
        raise DncError(f"{workers} workers", hint="1 at least")
    try:
        import dask
        import distributed
    except ImportError as error:
        hint = 'pip install "darknet-compiler[cluster]"'
        raise TargetError("workers need distributed, which is not installed", hint=hint) from error
    settings = {
        "distributed.admin.large-graph-warning-threshold": "1 TB",
        # Without its MALLOC_TRIM_THRESHOLD_: each array's memory would go back to the system, which takes longer than
        # to count what is in it.
        "distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": 1},
    }
    with _quiet(), dask.config.set(settings):
        if workers is None:
            assert scheduler is not None
            progress(f"connecting to {scheduler}")
            with _connected(scheduler, scheduler) as found:
                yield found
            return
        progress(f"starting {workers} workers")
        with scratch_folder("workers") as folder:
            local = distributed.LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                dashboard_address=None,
                silence_logs=logging.CRITICAL,
                local_directory=str(folder),
                # One process has no limit either.
                memory_limit=0,
            )
            try:
                with _connected(local, "the workers of this machine") as found:
                    yield found
            finally:
                local.close(timeout=_CONNECT)


@contextmanager
def _quiet() -> Iterator[None]:
    """While Dask keeps what it notes to itself: what goes wrong is told by errors."""
    import distributed  # noqa: F401 (makes the loggers)

    names = [name for name in logging.root.manager.loggerDict if re.match(r"distributed\b|tornado\b|asyncio\b", name)]
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def _connected(address: Any, name: str) -> Iterator[Cluster]:
    """The workers of a scheduler, which fit this process."""
    from distributed import Client

    try:
        if isinstance(address, str):
            # A client would wait for ever for something that listens and says nothing.
            asyncio.run(asyncio.wait_for(_identity(address), _CONNECT))
        client = Client(address, timeout=_CONNECT, set_as_default=False)
    except Exception as error:
        # Whatever answers there may be no scheduler, or one of another version.
        reason = str(error).partition("\n")[0] or type(error).__name__
        hint = "`dask scheduler` runs one, of the same version of distributed as here"
        raise TargetError(f"no Dask scheduler answers: {reason}", name, hint) from error
    try:
        with suppress(TimeoutError):
            client.wait_for_workers(1, timeout=_WORKERS)
        yield Cluster(client, name)
    finally:
        client.close(timeout=_CONNECT)


async def _identity(address: str) -> None:
    """Raises what comes of it where no scheduler answers there."""
    from distributed import Security
    from distributed.core import rpc

    async with rpc(address, timeout=_CONNECT, connection_args=Security().get_connection_args("client")) as scheduler:
        if (await scheduler.identity())["type"] != "Scheduler":
            raise ValueError("what answers is something else")


class Cluster(Workers):
    """The workers of a scheduler.

    Args:
        client: a connection to it.
        name: the scheduler's, for messages.

    Raises:
        TargetError: there are no workers, or they have other versions than this process.
    """

    def __init__(self, client: Client, name: str) -> None:
        self._client, self._name = client, name
        self._facts = _facts()
        # The digest of an image, and the worker that has it.
        self._where: dict[str, str] = {}
        self._said: set[str] = set()
        told = self._asked(_told)
        if not told:
            raise TargetError("the scheduler has no workers", name, "`dask worker` starts one")
        for address, facts in told.items():
            if problem := _mismatch(self._facts, facts):
                raise TargetError(f"worker {address} has {problem}", name, _SAME)
        others = sorted({facts["isa"] for facts in told.values()} - {self._facts["isa"]})
        if others:
            what = f"workers have CPUs of another kind ({', '.join(others)}, here {self._facts['isa']})"
            warn(TargetError(what, name, "numbers may differ in their last bits from those of one process here"))

    def _asked(self, function: Callable[..., Any], *arguments: Any, workers: list[str] | None = None) -> dict[str, Any]:
        """What a function gives on each worker, by its address; raises TargetError where it cannot be called."""
        with self._speaking():
            answers = self._client.run(function, *arguments, workers=workers, on_error="return")
        for address, answer in answers.items():
            if isinstance(answer, DncError):
                raise answer
            # A worker that has just died answers nothing; Dask says so in its own ways.
            if isinstance(answer, ImportError):
                raise TargetError(f"worker {address} cannot load dnc: {answer}", self._name, _SAME) from answer
        return {address: answer for address, answer in answers.items() if not isinstance(answer, BaseException)}

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        """Raises TargetError where the scheduler is gone, or what it has to load is not there."""
        from concurrent.futures import CancelledError

        from distributed import KilledWorker

        try:
            yield
        except KilledWorker as error:
            what = "workers died, one after the other, while they looked at the same images"
            raise TargetError(what, self._name, "is there enough memory for the network?") from error
        except (CancelledError, OSError, TimeoutError) as error:
            what = f"the scheduler is gone: {str(error).partition(chr(10))[0] or type(error).__name__}"
            raise TargetError(what, self._name, "nothing of this run is kept; run it again") from error
        except (ImportError, RuntimeError) as error:
            if "deserialization" not in str(error) and not isinstance(error, ImportError):
                raise
            raise TargetError(
                f"the scheduler cannot load dnc: {error.__cause__ or error}", self._name, _SAME
            ) from error

    def each(self, work: Work, paths: Sequence[str | os.PathLike[str]], gather: Callable[[Any], None]) -> Each:
        """See `Workers.each`: in their order, a few parts ahead at work."""
        self._said.clear()
        with self._speaking():
            threads = max(1, sum(self._client.nthreads().values()))
        digest = _digest(work)
        lacking = [address for address, has in self._asked(_has, digest).items() if not has]
        self._give(work, digest, lacking)
        size = max(1, min(_IMAGES, len(paths) // (_PER_THREAD * threads)))
        most = 1 if work.in_order else _PER_THREAD * threads
        rest = _cut(paths, size)
        states: States = {}
        waiting: deque[_Sent] = deque()
        try:
            more = True
            while more or waiting:
                while more and len(waiting) < most and sum(sent.bytes for sent in waiting) < _IN_FLIGHT:
                    pictures = next(rest, None)
                    more = pictures is not None
                    if pictures is not None:
                        waiting.append(self._send(work, digest, pictures, states))
                if waiting:
                    sent = waiting[0]
                    found = self._received(work, digest, sent, states)
                    states = found.states
                    if found.rest is not None:
                        gather(found.rest)
                    waiting.popleft()
                    yield from self._in_order(sent, found.outcomes)
        finally:
            with suppress(Exception):
                self._client.cancel([sent.future for sent in waiting if sent.future is not None])

    def _in_order(self, sent: _Sent, outcomes: Sequence[Outcome]) -> Each:
        """The outcomes of a part, with those of its images that could not be read here."""
        looked = iter(outcomes)
        for picture, error in sent.pictures:
            outcome = Outcome(None, error, []) if error is not None else next(looked, None)
            if outcome is None:
                # One before it is an error that ends everything.
                return
            yield picture, outcome.give

    def _send(self, work: Work, digest: str, pictures: Sequence[Picture], states: States) -> _Sent:
        read: list[tuple[Picture, ImageError | None]] = []
        for picture in pictures:
            try:
                _ = picture.content
                read.append((picture, None))
            except ImageError as error:
                read.append((picture, error))
        sent = _Sent(read, [hashlib.sha256(picture.content).hexdigest() for picture, error in read if error is None])
        places = {self._where.get(name) for name in sent.digests}
        place = places.pop() if len(places) == 1 else None
        self._submit(work, digest, sent, states, place, whole=place is None)
        return sent

    def _submit(self, work: Work, digest: str, sent: _Sent, states: States, place: str | None, whole: bool) -> None:
        good = [picture for picture, error in sent.pictures if error is None]
        if not good:
            return
        images = [
            _Image(picture.path, name, picture.content if whole else None)
            for picture, name in zip(good, sent.digests, strict=True)
        ]
        # The work as bytes: Dask need not look into it.
        arguments = (pickle.dumps(work), digest, images, states, self._facts)
        more = {} if place is None else {"workers": [place], "allow_other_workers": True}
        sent.place = place
        with self._speaking():
            sent.future = self._client.submit(_look, *arguments, pure=False, **more)

    def _received(self, work: Work, digest: str, sent: _Sent, states: States) -> Part:
        for _ in range(_TRIES):
            if sent.future is None:
                return Part([], None, states)
            found = self._waited(sent)
            if found is None:
                self._submit(work, digest, sent, states, None, whole=True)
                continue
            if isinstance(found, DncError):
                # The copies over there are not what the user knows.
                if digest in str(found.where):
                    found.where = work.folder
                raise found
            if not isinstance(found, _Lacking):
                self._where.update(dict.fromkeys(sent.digests, found.address))
                for warning, once in found.heard:
                    # Every worker says the same.
                    if str(warning) not in self._said:
                        self._said.add(str(warning))
                        warn(warning, once)
                looked: Part = found.part
                return looked
            if found.work:
                self._give(work, digest, [found.address])
            self._submit(work, digest, sent, states, found.address, whole=True)
        raise TargetError("workers come and go before they can do anything", self._name)

    def _waited(self, sent: _Sent) -> Any:
        """The result of a part; None if it waits for a worker that is gone. Raises TargetError if there is nobody any
        more who could give it."""
        alone: float | None = None
        assert sent.future is not None
        with self._speaking():
            while True:
                try:
                    return sent.future.result(timeout=1)
                except TimeoutError:
                    if sent.future.status == "error" or self._client.status != "running":
                        raise
                if there := self._client.nthreads():
                    alone = None
                    if sent.place is not None and sent.place not in there and not sent.future.done():
                        # Dask forgets a part whose worker went as the last one, though others may have it.
                        self._client.cancel([sent.future])
                        return None
                    continue
                alone = alone or time.monotonic()
                if time.monotonic() - alone > _WORKERS:
                    raise TargetError("all workers are gone", self._name, "nothing of this run is kept; run it again")

    def _give(self, work: Work, digest: str, addresses: list[str]) -> None:
        """Sends a work's files to workers."""
        if addresses:
            contents = {name: (work.folder / name).read_bytes() for name in work.files}
            self._asked(_receive, digest, contents, workers=addresses)


_SAME = "the scheduler and its workers need dnc and its libraries in the versions that are here"


@dataclass
class _Sent:
    """Some images that are looked at elsewhere."""

    pictures: list[tuple[Picture, ImageError | None]]
    """Each, or why it cannot be read."""
    digests: list[str]
    """Of those that can."""
    future: Future | None = None
    place: str | None = None
    """The worker that has the images, if only their digests are sent."""

    @property
    def bytes(self) -> int:
        return sum(len(picture.content) for picture, error in self.pictures if error is None)


class _Image(NamedTuple):
    """An image on its way."""

    path: Path
    digest: str
    content: bytes | None
    """None for one that the worker should have."""


class _Lacking(NamedTuple):
    """What a worker answers that does not have what it needs."""

    address: str
    work: bool
    """Whether it is the work, or else images."""


class _Looked(NamedTuple):
    """What a worker answers."""

    address: str
    part: Part
    heard: Heard
    """The warnings of opening the work."""


def _cut(paths: Sequence[str | os.PathLike[str]], size: int) -> Iterator[list[Picture]]:
    """Parts of the images, whose contents are read as they are looked at."""
    pictures: list[Picture] = []
    room = _BYTES
    for path in paths:
        pictures.append(Picture(Path(path)))
        with suppress(OSError):
            room -= Path(path).stat().st_size
        if len(pictures) == size or room <= 0:
            yield pictures
            pictures, room = [], _BYTES
    if pictures:
        yield pictures


def _digest(work: Work) -> str:
    """Of a work's files."""
    digest = hashlib.sha256()
    for name in work.files:
        with (work.folder / name).open("rb") as file:
            digest.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\0".encode())
    return digest.hexdigest()


@cache
def _facts() -> Mapping[str, str]:
    """What numbers depend on, and whether pickles are understood: versions, and the kind of CPU."""
    from importlib import metadata

    facts = {"Python": ".".join(platform.python_version_tuple()[:2]), "dnc": __version__, "isa": this_isa()}
    for name in (*_LIBRARIES, "distributed"):
        with suppress(metadata.PackageNotFoundError):
            facts[name] = metadata.version(name)
    return facts


def _mismatch(here: Mapping[str, str], there: Mapping[str, str]) -> str:
    """What is another version there, of all that is here; empty if nothing."""
    wrong = [name for name, version in here.items() if name != "isa" and there.get(name) != version]
    return ", ".join(f"{name} {there.get(name) or 'missing'}, not {here[name]}" for name in wrong)


# What runs on workers.


class _Opened(NamedTuple):
    """A work that a worker has open."""

    make: Callable[[States], Task]
    heard: Heard


@dataclass
class _Place:
    """What a worker has."""

    folder: Path
    lock: threading.Lock = field(default_factory=threading.Lock)
    images: dict[str, int] = field(default_factory=dict)
    """The sizes of the images that are kept, the oldest first."""
    opened: dict[tuple[str, bytes], _Opened] = field(default_factory=dict)

    def keep(self, image: _Image) -> None:
        """Keeps an image for the next work."""
        assert image.content is not None
        with self.lock:
            if image.digest in self.images:
                return
            _write(self.folder / image.digest, image.content)
            self.images[image.digest] = len(image.content)
            while sum(self.images.values()) > _KEPT:
                oldest = next(iter(self.images))
                del self.images[oldest]
                (self.folder / oldest).unlink(missing_ok=True)

    def image(self, image: _Image) -> Picture | None:
        """An image; None if it is not there."""
        content = image.content
        if content is None:
            try:
                content = (self.folder / image.digest).read_bytes()
            except OSError:
                return None
        return Picture(image.path, content)

    def open(self, pickled: bytes, digest: str) -> _Opened | None:
        """An opened work; None if its files are not there. Raises DncError as `Work.open`."""
        key = (digest, pickled)
        with self.lock:
            if key not in self.opened:
                folder = self.folder / "works" / digest
                if not folder.is_dir():
                    return None
                work: Work = pickle.loads(pickled)
                while len(self.opened) >= _OPEN:
                    del self.opened[next(iter(self.opened))]
                with listening() as heard:
                    self.opened[key] = _Opened(work.open(folder, 1), heard)
            return self.opened[key]


_places: dict[str, _Place] = {}
"""By the workers' folders: several may be in one process."""
_making = threading.Lock()


def _place(worker: Worker) -> _Place:
    with _making:
        folder = Path(worker.local_directory) / "dnc"
        folder.mkdir(parents=True, exist_ok=True)
        return _places.setdefault(str(folder), _Place(folder))


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    part.write_bytes(content)
    part.replace(path)


def _told(dask_worker: Worker | None = None) -> Mapping[str, str]:
    return _facts()


def _has(digest: str, dask_worker: Worker) -> bool:
    """Whether a work's files are there."""
    return (_place(dask_worker).folder / "works" / digest).is_dir()


def _receive(digest: str, contents: Mapping[str, bytes], dask_worker: Worker) -> DncError | None:
    """Keeps a work's files; returns why it cannot."""
    works = _place(dask_worker).folder / "works"
    part = works / f"{digest}.{secrets.token_hex(4)}"
    try:
        part.mkdir(parents=True)
        for name, content in contents.items():
            (part / name).write_bytes(content)
        part.rename(works / digest)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        # Somebody else may have brought it meanwhile.
        if not (works / digest).is_dir():
            return TargetError(f"worker {dask_worker.address}: {error}")
    return None


def _look(
    pickled: bytes, digest: str, images: Sequence[_Image], states: States, expected: Mapping[str, str]
) -> _Looked | _Lacking | DncError:
    """Looks at some images. What the user can mend is an answer, so that Dask makes no failure of it."""
    from distributed import get_worker

    worker = get_worker()
    if problem := _mismatch(expected, _facts()):
        return TargetError(f"worker {worker.address} has {problem}", hint=_SAME)
    place = _place(worker)
    try:
        opened = place.open(pickled, digest)
        if opened is None:
            return _Lacking(worker.address, True)
        pictures = []
        for image in images:
            picture = place.image(image)
            if picture is None:
                return _Lacking(worker.address, False)
            pictures.append(picture)
            if image.content is not None:
                place.keep(image)
        return _Looked(worker.address, part(opened.make(states), pictures), opened.heard)
    except DncError as error:
        return error
    except OSError as error:
        return TargetError(f"worker {worker.address}: {error}")
