"""Runs cases in a process of their own, which is told to have crashed, hung or taken too much, and started anew then.

What counts is processor time and memory of that process, never how long the machine took.
"""

from __future__ import annotations

import faulthandler
import hashlib
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import numpy as np

from dnc.errors import DncError
from tests.fuzz.fuzzers import FUZZERS
from tests.fuzz.mutation import Case

__all__ = ["MEMORY", "SECONDS", "Campaign", "Ending", "Worker", "read_case", "write_case"]

SECONDS = 20
"""Of the processor, for a case; and that long it may do nothing at all."""
MEMORY = 2 << 30
"""Bytes over what the process has before its first case."""
_STARVED = 600.0
"""Seconds in which a process of a busy machine gets some work done."""
METHOD = "forkserver"
"""Not forked from a process that may have threads of a library."""
_POOL = 1000
"""Cases that are mutated."""


@dataclass(frozen=True)
class Ending:
    """How a case ended."""

    kind: str
    """fine, or bug, crash, hang, memory."""
    key: str
    """The same for what ends in the same way."""
    text: str = ""
    """A traceback, or what else the process left."""


def read_case(folder: Path) -> Case:
    """The files of a case."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def write_case(case: Case, folder: Path) -> None:
    """Writes the files of a case into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in case.items():
        (folder / name).write_bytes(content)


def _plain(message: str) -> str:
    """An error's message without what differs from case to case."""
    return re.sub(r"\d+(\.\d+)?", "0", re.sub(r"'[^']*'|/\S+", "''", message.split("\n")[0]))[:120]


def _check(error: DncError) -> None:
    """A message that can be read, and that was not memory running out in disguise."""
    text = str(error)
    assert len(text) < 20_000, f"{len(text)} characters: {text[:200]}"
    # Bytes of a path that are no UTF-8 stay what they are.
    assert re.sub(r"[\n\udc80-\udcff]", "", text).isprintable(), repr(text)[:2000]
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            raise cause
        cause = cause.__cause__ or cause.__context__


class _Allowed:
    """What a fuzzer runs with: a DncError within is an ending like success."""

    def __init__(self) -> None:
        self.said: list[str] = []

    @contextmanager
    def __call__(self) -> Iterator[None]:
        try:
            yield
            self.said.append("")
        except DncError as error:
            _check(error)
            self.said.append(_plain(error.message))


def _run(name: str, case: Case, scratch: Path) -> Ending:
    folder = Path(tempfile.mkdtemp(dir=scratch))
    os.environ["DNC_CACHE"] = str(folder / ".cache")
    allow = _Allowed()
    try:
        write_case(case, folder)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            FUZZERS[name].run(folder, allow)
    except MemoryError:
        return Ending("memory", _last_place(), traceback.format_exc())
    except BaseException as error:
        return Ending("bug", f"{type(error).__name__} {_last_place()}", traceback.format_exc()[-20_000:])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Ending("fine", " | ".join(allow.said))


def _last_place() -> str:
    """The innermost place of dnc's in the traceback that is being handled."""
    frames = traceback.extract_tb(sys.exc_info()[2])
    mine = [frame for frame in frames if re.search(r"/(dnc|targets|passes|cfg)/", frame.filename)] or list(frames)
    return f"{Path(mine[-1].filename).name}:{mine[-1].name}"


def _tell_and_end(number: int, frame: FrameType | None) -> None:
    """A hang in Python: leaves its traceback and ends by the same signal."""
    os.write(2, "".join(traceback.format_stack(frame)).encode())
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _work(name: str, connection: Connection, scratch: Path, program: Path) -> None:
    """The process: answers cases with endings until the connection is closed."""
    FUZZERS[name].program = program
    log = os.open(scratch / "log", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(log, number)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    # Python's own frames are read between two of its instructions only; in the middle of one they may lead anywhere.
    signal.signal(signal.SIGPROF, _tell_and_end)
    # A library that does not come back stands still in them; other threads are left out, a fork has lost them.
    faulthandler.register(signal.SIGXCPU, all_threads=False, chain=True)
    limited = False
    while True:
        try:
            case: Case = connection.recv()
        except (EOFError, OSError):
            return
        os.ftruncate(log, 0)
        if not limited and not case:
            # What was run until here was right, and loaded all libraries.
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            limited = True
            connection.send(Ending("fine", ""))
            continue
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        spent = resource.getrusage(resource.RUSAGE_SELF)
        end = int(spent.ru_utime + spent.ru_stime) + SECONDS + 3
        resource.setrlimit(resource.RLIMIT_CPU, (end, resource.RLIM_INFINITY))
        ending = _run(name, case, scratch)
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.send(ending)


class Worker:
    """A process for the cases of one fuzzer; `seeds` are run in it first, without limits."""

    def __init__(self, name: str, seeds: list[Case]) -> None:
        self._name, self._seeds = name, seeds
        self._program = FUZZERS[name].build()
        self._scratch = Path(tempfile.mkdtemp(prefix="dnc-fuzz-"))
        self._start()

    def _start(self) -> None:
        context: Any = multiprocessing.get_context(METHOD)
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_work, args=(self._name, theirs, self._scratch, self._program), daemon=True
        )
        self._process.start()
        theirs.close()
        for seed in [*self._seeds, {}]:
            ending = self._ask(seed)
            assert ending.kind == "fine", f"a seed of {self._name} is not right:\n{ending.text}"

    def __call__(self, case: Case) -> Ending:
        """Runs a case."""
        ending = self._ask(case)
        if ending.kind in ("crash", "hang"):
            self._stop()
            self._start()
        return ending

    def _ask(self, case: Case) -> Ending:
        try:
            self._connection.send(case)
            hang = self._wait()
            if not hang:
                ending: Ending = self._connection.recv()
                return ending
        except (EOFError, OSError):
            hang = ""
        self._process.join(5)
        if hang and self._process.is_alive():
            # Not in Python, where the first signal would have been taken.
            os.kill(self._process.pid or 0, signal.SIGXCPU)
            self._process.join(5)
        code = self._process.exitcode
        text = (self._scratch / "log").read_bytes().decode("utf-8", "replace")[-20_000:]
        frames = re.findall(r'File "[^"]*/(?:dnc|targets|passes)/[^"]*?([^/"]+)", line \d+ in (\w+)', text)
        place = ":".join(frames[0]) if frames else ""
        if hang or code in (-signal.SIGPROF, -signal.SIGXCPU):
            return Ending("hang", place, f"{hang or f'{SECONDS} s of the processor'}\n{text}")
        name = signal.Signals(-code).name if code is not None and code < 0 else f"exit {code}"
        sanitizer = re.search(r"ERROR: (\w+Sanitizer: [\w-]+)|runtime error: .*", text)
        return Ending("crash", f"{name} {sanitizer[0] if sanitizer else place}", f"{name}\n{text}")

    def _wait(self) -> str:
        """Until there is an answer; else why there is none, when the process is stopped."""
        used, since = -1.0, time.monotonic()
        while not self._connection.poll(0.5):
            now = _processor_time(self._process.pid)
            if now != used:
                used, since = now, time.monotonic()
            elif time.monotonic() - since > (SECONDS if _sleeps(self._process.pid) else _STARVED):
                os.kill(self._process.pid or 0, signal.SIGPROF)
                return f"nothing was done for {SECONDS} s"
        return ""

    def _stop(self) -> None:
        self._connection.close()
        self._process.join(1)
        if self._process.is_alive():
            self._process.kill()
        self._process.join()

    def close(self) -> None:
        """Ends the process."""
        self._stop()
        shutil.rmtree(self._scratch, ignore_errors=True)


def _family(pid: int) -> Iterator[int]:
    """A process, and what it has started."""
    yield pid
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _family(int(child))


def _fields(pid: int) -> list[str]:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return ["X", *["0"] * 20]


def _processor_time(pid: int | None) -> float:
    return float(sum(int(number) for one in _family(pid or 0) for number in _fields(one)[11:13]))


def _sleeps(pid: int | None) -> bool:
    return all(_fields(one)[0] not in "RD" for one in _family(pid or 0))


@dataclass
class Campaign:
    """Cases of one fuzzer, one after the other."""

    name: str
    seed: int
    found: dict[str, tuple[Ending, Case]] = field(default_factory=dict)
    """The first case of each way to end badly."""
    count: int = 0
    bad: int = 0
    new: int = 0

    def run(
        self, corpus: Mapping[str, Case], go_on: Callable[[int], bool], progress: Callable[[Campaign], None]
    ) -> None:
        """Runs the corpus, then mutations for as long as `go_on` says of how many there were; the same for a seed."""
        fuzzer = FUZZERS[self.name]
        seeds = fuzzer.seeds()
        pool = [*seeds, *corpus.values()]
        worker = Worker(self.name, seeds)
        seen: set[str] = set()
        random = Random(f"{self.name} {self.seed}")
        try:
            for case in corpus.values():
                self._note(worker(case), case)
            while go_on(self.count):
                case = fuzzer.mutate(random.choice(pool), random.choice(pool), random)
                self.count += 1
                ending = worker(case)
                self._note(ending, case)
                if ending.kind == "fine" and ending.key not in seen and len(pool) < _POOL:
                    seen.add(ending.key)
                    if sum(map(len, case.values())) < 1 << 20:
                        pool.append(case)
                self.new = len(seen)
                progress(self)
        finally:
            worker.close()

    def _note(self, ending: Ending, case: Case) -> None:
        if ending.kind != "fine":
            self.bad += 1
            self.found.setdefault(f"{ending.kind} {ending.key}", (ending, case))

    def save(self, folder: Path) -> list[Path]:
        """Saves what was found; gives the folders of the cases."""
        places = []
        for key, (ending, case) in self.found.items():
            digest = hashlib.sha256(repr(sorted(case.items())).encode()).hexdigest()[:8]
            words = re.sub(r"\W+", "-", key).strip("-")[:60]
            place = folder / self.name / f"{words}-{digest}"
            write_case(case, place)
            place.with_suffix(".txt").write_text(ending.text, encoding="utf-8", errors="replace")
            places.append(place)
        return places
