"""Runs an engine: needs numpy and the engine's own library, nothing of the compiler.

    with dnc.load("yolov4-tiny.engine") as engine:
        for box in engine.detect("dog.jpg"):
            print(box.label, box.confidence, box.box)
        for boxes in engine.stream(frames, color="bgr"):
            ...

Threads: one engine may be used from any number of them at once. Processes: a child that was forked opens the engine
anew, because the threads of the engine's library stay behind in the parent; what the parent had opened is left as it
is, since releasing it would wait for those threads. A fork waits for runs that are under way. A pickled engine is its
folder or package; one that was loaded from memory is its bytes.

Memory: a network with recurrent layers (`manifest.carried`) takes its images for the frames of one sequence, as Darknet
does in one process.

    calls      `engine(…)`, `detect` and `classify` go on where the call before ended; a list is as many frames, in its
               order. `reset()` starts anew. Calls from several threads have the memory one after the other, a list as a
               whole, in the order in which they come to it; `detect_async` in the order in which it is awaited.
    streams    each has a memory of its own, zero at its start: for several cameras, take a stream for each.
    forward    has no memory but the states that it is given.

Frames run one at a time, so there are no batches; an engine of a fixed batch gets each frame as often as it wants.
A call that fails leaves the memory as it was. A forked child and a pickled engine begin with none.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, overload

import numpy as np
import numpy.typing as npt

from dnc.errors import DncError, TargetError, warn
from dnc.files.places import as_text
from dnc.runtime.arithmetic import loss, this_isa
from dnc.runtime.decoding import BoxHead, Classification, ClassifierHead, Detection
from dnc.runtime.forking import at_work, never_release
from dnc.runtime.images import Pixels
from dnc.runtime.inputs import Feeds, Image, Inputs, Prepared
from dnc.runtime.manifest import MANIFEST, Manifest
from dnc.runtime.memory import Memory, States
from dnc.runtime.options import CALIBRATED, check_names
from dnc.runtime.postprocessing import Postprocess, Result
from dnc.runtime.runners import Pending, Runner, Session, find
from dnc.runtime.source import Bytes, Source, closed, find_source
from dnc.runtime.streaming import Done, default_workers, in_order
from dnc.typing import Array

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["Engine", "load"]

_Value = TypeVar("_Value")
Observer = Callable[[str], None]


def load(
    folder: str | PathLike[str] | Bytes, *, threads: int | None = None, trust: bool = False, **options: str
) -> Engine:
    """Reads an engine. Its library is loaded at the first use, which raises BundleError where the folder was replaced
    or changed since.

    Args:
        folder: what `dnc compile` wrote, or the one file that `dnc package` made of it, or what is in that file:
            ONNX Runtime and OpenVINO take it from there, and nothing is written to a disk (nor is what OpenVINO
            compiled kept for the next start). For other libraries it is unpacked as the file would be. bytes are not
            copied; others, which somebody may change, once.
        threads: how many threads one run uses; the engine's own choice if not given.
        trust: runs a package's machine code. Without, a package for TVM is read, but refused when it is to run: what
            looks like data, and comes from anywhere, would do all that the process may. A folder is trusted, as a
            library or a program is that lies there. Engines for other libraries hold no code.
        options: what to tell the target anew, as device="GPU" to openvino (`Option.at_load`).

    Raises:
        BundleError: it is no engine, is damaged, or was made by a newer dnc.
        TargetError: its target is unknown here, needs a library that is not installed, or has no such option.
    """
    source = find_source(folder)
    manifest = source.manifest
    kind = runner_of(manifest)
    anew = [option for option in kind.known_options if option.at_load]
    fixed = [name for name in options if name in _built_in(kind, manifest)]
    if fixed:
        raise TargetError(f"{fixed[0]} is built into the engine", source.where, f"`dnc compile --option {fixed[0]}=…`")
    check_names(f"target {manifest.target}", anew, options)
    runner = kind({**manifest.options, **options})
    missing = runner.missing()
    if missing:
        what = f"target {runner.name} needs {missing}, which is not installed"
        raise TargetError(what, source.where, runner.remedy())
    return Engine(source, runner, threads, options, trust)


def runner_of(manifest: Manifest) -> type[Runner]:
    """What opens an engine; raises TargetError if there is no such runner here."""
    return find(manifest.runner_name, manifest.options)


def _built_in(kind: type[Runner], manifest: Manifest) -> set[str]:
    """Options that only a compiler takes, as far as the engine and what runs it know them."""
    anew = {option.name for option in kind.known_options if option.at_load}
    return {"precision", *manifest.options, *(option.name for option in kind.known_options)} - anew


class Engine:
    """A network ready to run, in a `with` statement or without. Usable from several threads and after a fork."""

    def __init__(
        self,
        source: Source,
        runner: Runner,
        threads: int | None = None,
        options: Mapping[str, str] | None = None,
        trust: bool = False,
    ) -> None:
        self.manifest = source.manifest
        self.inputs = Inputs(self.manifest, source.where)
        """Makes what a run is fed."""
        self.postprocess = Postprocess(self.manifest, source.where)
        """Makes results of what a run gives."""
        self.observer: Observer | None = None
        """Is told when a stage of a run begins, in the thread that runs: "preprocess", "infer", "postprocess", and
        "done" after the last one, one batch after the other. Files are read before the first one; `forward` has the
        second one alone."""
        self._source = source
        self._runner = runner
        self._threads = threads
        self._options = dict(options or {})
        self._trust = trust
        self._opened: Session | None = None
        self._closed = False
        self._told = False
        self._lock = threading.Lock()
        self._memory = Memory()
        self._pool: ThreadPoolExecutor | None = None
        self._turns: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = (
            weakref.WeakKeyDictionary()
        )
        at_work.in_child(self, Engine._after_fork)

    def __repr__(self) -> str:
        return f"<dnc.Engine {self.manifest.name} for {self.manifest.target} at {self._source.where}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled, as multiprocessing does it, an engine is its folder or package: it is opened again over there.

        Raises:
            DncError: it was loaded from memory and is closed.
        """
        return partial(load, **self.given, trust=self._trust), (self._source.again,)

    @property
    def folder(self) -> Path:
        """Of a package, where it is unpacked: one that was loaded from memory when somebody asks for it.

        Raises:
            BundleError: it cannot be unpacked.
            DncError: it was loaded from memory and is closed.
        """
        return self._source.folder

    @property
    def given(self) -> dict[str, Any]:
        """What else `load` was given: `threads` and options."""
        return {"threads": self._threads, **self._options}

    def files(self) -> tuple[str, ...]:
        """The names of the files in its folder that it consists of, for whoever takes them elsewhere. Raises as
        `session`, but for what its library says."""
        self.check_trust()
        with self.reading():
            return (MANIFEST, *self._source.files.listed)

    @contextmanager
    def reading(self) -> Iterator[Path]:
        """Its folder, while files of it are read by their names. Raises as `files`."""
        self.check_trust()
        with self._source.files.opening():
            yield self.folder

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Releases what the engine's library holds, and the bytes that the engine was loaded from if it was; and ends
        the threads of `detect_async`, after what they are at.

        Runs that other threads have begun end as they would have. Whatever is begun afterwards raises DncError. An
        engine may be closed twice.
        """
        with self._lock:
            self._closed = True
            self._opened = None
            self._source.release()
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()

    @property
    def session(self) -> Session:
        """The opened engine. Raises DncError if it was closed, BundleError if its folder was replaced or changed since,
        TargetError if its library refuses it."""
        opened = self._opened
        if opened is not None:
            return opened
        with self._lock:
            self._check_open()
            if self._opened is None:
                self._opened = self._open(self._runner)
            return self._opened

    def turn(self) -> Session:
        """A session of its own, for an engine that is timed in turn with others: its threads do not run on when it has
        run. Raises as `session`."""
        with self._lock:
            self._check_open()
            return self._open(self._runner.taking_turns())

    def _open(self, runner: Runner) -> Session:
        self.check_trust()
        self._tell_of_arithmetic(runner)
        contents = self._source.contents
        with at_work:
            session = None if contents is None else runner.open_memory(contents, self._threads)
        if session is None:
            files = self._source.files
            with at_work, files.opening():
                session = runner.open(as_text(self.folder), self._threads)
            session.opening = files.opening
        return session

    def _tell_of_arithmetic(self, runner: Runner) -> None:
        """Warns, once, where its 8-bit numbers are added up in another way than it was made for, and that costs
        something."""
        eight = self.manifest.arithmetic or self.manifest.precision in CALIBRATED
        if self._told or not eight or runner.arithmetic is None:
            return
        self._told = True
        what = loss(self.manifest.arithmetic, runner.arithmetic)
        if what:
            hint = f"compile it again here, or elsewhere with --option isa={this_isa()}"
            warn(TargetError(what, self._source.where, hint))

    def check_trust(self) -> None:
        """Raises DncError if running it would run a package's machine code that nobody trusts: see `load`."""
        package = self._source.package
        if package is not None and self._runner.runs_code and not self._trust:
            what = "the package holds machine code, which would run with all your rights"
            hint = "where you know who made it: dnc.load(…, trust=True), or `dnc package --unpack`"
            raise DncError(what, package if isinstance(package, Path) else self._source.where, hint)

    def _check_open(self) -> None:
        if self._closed:
            raise closed(self._source.where)

    def _after_fork(self) -> None:
        """What a forked child begins with: the locks and threads of the parent are not its own."""
        self._lock = threading.Lock()
        self._memory = Memory()
        self._pool = None
        self._turns = weakref.WeakKeyDictionary()
        if self._opened is not None:
            never_release(self._opened)
            self._opened = None

    def reset(self) -> None:
        """Forgets the frames so far: the states of a network with memory are zero again. Streams have their own."""
        self._memory.reset()

    @property
    def device(self) -> str:
        """What the engine runs on, in its library's words."""
        return self.session.device

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes; empty if none were given."""
        return self.manifest.labels

    def __call__(
        self,
        image: Image | list[Any] | tuple[Any, ...],
        *,
        confidence: float = 0.25,
        iou: float = 0.45,
        top: int = 5,
        color: str = "rgb",
        exif: bool | None = None,
        max_candidates: int | None = None,
    ) -> Any:
        """What an image shows, or a list of that for a list of images.

        Args:
            image: see `Image`; a list of images runs as one batch where the engine takes it, and one after the other
                where the network has a memory (see above).
            confidence: detections under it are left out (Darknet's -thresh).
            iou: overlap over which non-maximum suppression drops a box (Darknet's nms).
            top: how many classes a classifier gives.
            color: the order of an array's channels: "rgb", or "bgr" for OpenCV's frames (then BGRA, if they are four).
                Files and PIL images know theirs.
            exif: whether files and PIL images are turned as their EXIF says. Darknet does not; if not said, they are
                not either, and the first one that is on its side is warned of.
            max_candidates: of an image's scores over `confidence`, the best so many are suppressed and given; if not
                given 100,000, with a warning where there are more. Darknet has no limit.

        Returns:
            Detections by descending confidence, or the `top` classes.

        Raises:
            ImageError: an image cannot be read.
            DncError: the network gives neither boxes nor classes, takes no images, or the engine is closed.
        """
        settings = _Settings(confidence, iou, top, color, exif, max_candidates)
        if not isinstance(image, list | tuple):
            return self._results([self._pixels(image, settings)], settings)[0]
        return self._results([self._pixels(item, settings) for item in image], settings)

    @overload
    def detect(self, image: list[Any] | tuple[Any, ...], **options: Any) -> list[list[Detection]]: ...

    @overload
    def detect(self, image: Image, **options: Any) -> list[Detection]: ...

    def detect(self, image: Any, **options: Any) -> Any:
        """The boxes of an image, or of each of a list: see `__call__`, which has the options.

        Raises:
            DncError: the network is a classifier; or as `__call__`.
        """
        self._check_kind(BoxHead, "boxes", "classify")
        return self(image, **options)

    @overload
    def classify(self, image: list[Any] | tuple[Any, ...], **options: Any) -> list[list[Classification]]: ...

    @overload
    def classify(self, image: Image, **options: Any) -> list[Classification]: ...

    def classify(self, image: Any, **options: Any) -> Any:
        """The best classes of an image, or of each of a list: see `__call__`, which has the options.

        Raises:
            DncError: the network is a detector; or as `__call__`.
        """
        self._check_kind(ClassifierHead, "classes of the whole image", "detect")
        return self(image, **options)

    def _check_kind(self, kind: type, what: str, other: str) -> None:
        heads = self.manifest.heads
        if heads and not any(isinstance(head, kind) for head in heads):
            raise DncError(f"this network gives no {what}", self._source.where, f"use {other}()")

    async def detect_async(self, image: Any, **options: Any) -> Any:
        """As `detect`, in a thread of the engine's own, so that the event loop goes on meanwhile.

        Of all that is awaited, as much runs at once as the engine has threads, and twice as much waits with its pixels
        at hand; the rest waits before that. What is cancelled while it waits never runs; what runs already runs to its
        end, and its result is dropped. Of a network with memory, one runs after the other, in the order of the calls.
        """
        return await self._in_background(partial(self.detect, image, **options))

    async def classify_async(self, image: Any, **options: Any) -> Any:
        """As `classify`, in a thread of the engine's own: see `detect_async`."""
        return await self._in_background(partial(self.classify, image, **options))

    async def _in_background(self, work: Callable[[], _Value]) -> _Value:
        import asyncio

        loop = asyncio.get_running_loop()
        with self._lock:
            # A semaphore belongs to its loop, of which there may be several, in several threads.
            turn = self._turns.setdefault(loop, asyncio.Semaphore(3 * default_workers()))
        await turn.acquire()

        def done(_: Future[_Value]) -> None:
            # Not when the caller was cancelled, but when the thread is free. The loop may be closed by then.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(turn.release)

        try:
            future = self._executor().submit(work)
        except BaseException:
            turn.release()
            raise
        future.add_done_callback(done)
        return await asyncio.wrap_future(future)

    def _executor(self) -> ThreadPoolExecutor:
        from concurrent.futures import ThreadPoolExecutor

        with self._lock:
            self._check_open()
            if self._pool is None:
                # One alone keeps the order of frames.
                workers = 1 if self.manifest.carried else default_workers()
                self._pool = ThreadPoolExecutor(workers, thread_name_prefix="dnc-async")
            return self._pool

    def stream(
        self,
        frames: Iterable[Image],
        *,
        confidence: float = 0.25,
        iou: float = 0.45,
        top: int = 5,
        color: str = "rgb",
        exif: bool | None = None,
        max_candidates: int | None = None,
        batch: int | None = None,
        workers: int | None = None,
        with_frames: bool = False,
    ) -> Generator[Any, None, None]:
        """The results of frames, in their order, computed while the next frames are read.

        `frames` is read by the caller's thread, a few frames ahead of the result that it waits for, or not at all while
        a result is ready. Reading files, preprocessing, the network and decoding boxes take place in threads of the
        stream's own, which end with it: when it is exhausted, fails or is closed. Of a network with memory, the network
        itself runs on one frame after the other, and a stream begins with no memory of any other.

        Args:
            frames: images as for `__call__`, of any number; an array must not change before its result is there.
            confidence, iou, top, color, exif, max_candidates: as for `__call__`.
            batch: how many frames run as one batch; what the engine was compiled for, or 1, if not given. On CPUs, more
                than 1 gains nothing (benchmarks/embedding.md), and numbers may then differ in the last bits. Frames of
                a network with memory are no batch.
            workers: how many threads; as many as pay if not given.
            with_frames: gives (frame, result) for each frame.

        Raises:
            DncError: the engine takes batches of another size, or the network takes no images.

        What is wrong with a frame, or with `frames`, is raised in the place of its result, and ends the stream.
        """
        size = self.manifest.batch
        if batch is not None and (batch < 1 or (isinstance(size, int) and batch != size)):
            raise DncError(f"batch={batch}: the engine takes {size}", self._source.where, "leave it out")
        if self.manifest.carried and isinstance(size, str) and batch not in (None, 1):
            what = f"batch={batch}: each frame needs what the network remembers of the one before"
            raise DncError(what, self._source.where, "leave it out; for several cameras, open a stream for each")
        if workers is not None and workers < 1:
            raise DncError(f"workers={workers} must be at least 1", self._source.where)
        self.inputs.check(color)
        self.postprocess.check()
        settings = _Settings(confidence, iou, top, color, exif, max_candidates)
        batch = 1 if self.manifest.carried else batch or (size if isinstance(size, int) else 1)
        memory = Memory()

        def work(part: Sequence[Image], turn: int) -> Done:
            return self._batch(part, settings, memory, turn)

        return in_order(frames, work, batch, workers or default_workers(), with_frames)

    def _batch(self, frames: Sequence[Image], settings: _Settings, memory: Memory, turn: int) -> Done:
        images: list[Prepared] = []
        room, error = None, None
        try:
            self._tell("preprocess")
            session = self.session
            room = self.inputs.room(len(frames), session.empty)
            for place, frame in enumerate(frames):
                pixels = self._pixels(frame, settings)
                images.append(self.inputs.prepare(pixels, None if room is None else room[place]))
        except Exception as reason:
            error = reason
        groups = ((group, room) for group in self.inputs.groups(images))
        # Even without an image: the next frames wait for it.
        with self._remembered(memory, turn) as states:
            return Done(self._found(session, groups, settings, states) if images else [], error)

    def _results(self, images: list[Pixels], settings: _Settings) -> list[Result]:
        session = self.session

        def prepared() -> Iterator[tuple[Sequence[Prepared], Array | None]]:
            for group in self.inputs.groups(images):
                self._tell("preprocess")
                room = self.inputs.room(len(group), session.empty)
                places = [None] * len(group) if room is None else list(room)
                yield list(map(self.inputs.prepare, group, places)), room

        with self._remembered(self._memory) as states:
            return self._found(session, prepared(), settings, states)

    def _found(
        self,
        session: Session,
        groups: Iterable[tuple[Sequence[Prepared], Array | None]],
        settings: _Settings,
        states: States,
    ) -> list[Result]:
        """The results of images, of which those of a group are one batch, at most, with the memory that holds it if
        there is one. While one batch runs, the next one is prepared, unless it needs what the first one leaves behind,
        or stages are told apart; `states` become their successors."""
        results: list[Result] = []
        waiting: deque[tuple[Sequence[Prepared], Pending]] = deque()
        wanted = self.postprocess.places | self.inputs.carried_places
        ahead = 0 if self.manifest.carried or self.observer is not None else 1

        def read() -> None:
            images, pending = waiting.popleft()
            with at_work:
                outputs = pending.result(keep=False)
            states.update(self.inputs.following(outputs))
            results.extend(self._read(images, outputs, settings))

        for images, room in groups:
            asked: dict[str, Any] = {"confidence": settings.confidence, "iou": settings.iou, "states": states}
            feeds = self.inputs.batch(images, **asked, room=room, empty=session.empty)
            waiting.append((images, self._submit(session, feeds, wanted)))
            if len(waiting) > ahead:
                read()
        while waiting:
            read()
        return results

    def _remembered(self, memory: Memory, turn: int | None = None) -> AbstractContextManager[States]:
        """The states to run with; nobody waits for anybody where the network has none."""
        return memory.turn(turn) if self.manifest.carried else nullcontext({})

    @overload
    def forward(
        self, array: Any, states: MutableMapping[str, Any] | None = None, *, on_device: Literal[False] = False
    ) -> list[npt.NDArray[np.float32]]: ...

    @overload
    def forward(self, array: Any, states: MutableMapping[str, Any] | None = None, *, on_device: bool) -> list[Any]: ...

    def forward(
        self, array: Any, states: MutableMapping[str, Any] | None = None, *, on_device: bool = False
    ) -> list[Any]:
        """Runs the network on an input that is ready.

        Args:
            array: (N, C, H, W) float32 in [0, 1], or (N, inputs); (N, H, W, C) uint8 for an engine with --input u8.
                Without the batch axis the results come without it. An engine on a GPU takes an array that is in its
                memory (PyTorch's, CuPy's, Numba's: DLPack or `__cuda_array_interface__`) with its batch axis, in C
                order, from where it lies; it is not to change before the results are there.
            states: for recurrent networks: states by name, replaced by their successors. Zero where not given, so that
                a call without it is one step from zero. The engine's own memory is neither read nor changed.
            on_device: results, and states, stay in the memory of the GPU, with their batch axis: `torch.from_dlpack`
                and `numpy.asarray` take them. It does not wait for them: see `dnc.runtime.devices.DeviceArray`.
                Detections (graph+nms) are as many rows as there can be; where they are fewer, a row that begins with -1
                is behind the last one, and what follows it says nothing.

        Returns:
            One array for each output head in cfg order, equal to Darknet's layer output; `postprocess` makes boxes or
            classes of them.

        Raises:
            DncError: the array has another shape, or is in the memory of a GPU on which the engine does not run.
        """
        x, single = self.inputs.array(array)
        own = states if states is not None else {}
        pending = self._submit(self.session, self.inputs.feeds(x, states=own), on_device=on_device)
        with at_work:
            outputs = pending.result()
        count = len(self.manifest.outputs)
        own.update(zip(self.manifest.states, outputs[count:], strict=True))
        # Detections of a whole batch are one list, which has no batch axis.
        batched = [single and not on_device and name != "detections" for name in self.manifest.outputs]
        return [output[0] if drop else output for drop, output in zip(batched, outputs[:count], strict=True)]

    def _pixels(self, image: Image, settings: _Settings) -> Pixels:
        pixels = self.inputs.pixels(image, settings.color, settings.exif)
        self.postprocess.check()
        return pixels

    def _read(self, images: Sequence[Prepared], outputs: Sequence[Array], settings: _Settings) -> list[Result]:
        """The results of these images."""
        self._tell("postprocess")
        names = ("confidence", "iou", "top", "max_candidates")
        asked = {name: getattr(settings, name) for name in names}
        results = [
            self.postprocess(outputs, image.size, **asked, position=position) for position, image in enumerate(images)
        ]
        self._tell("done")
        return results

    def _submit(
        self, session: Session, feeds: Feeds, wanted: Container[int] | None = None, on_device: bool = False
    ) -> Pending:
        self._tell("infer")
        with at_work:
            return session.submit(feeds, wanted, on_device=on_device)

    def _tell(self, stage: str) -> None:
        if self.observer is not None:
            self.observer(stage)


class _Settings(NamedTuple):
    """What a caller asks for: see `Engine.__call__`."""

    confidence: float
    iou: float
    top: int
    color: str
    exif: bool | None
    max_candidates: int | None
