"""Runs an engine: needs numpy and the engine's own library, nothing of the compiler.

    with dnc.load("yolov4-tiny.engine") as engine:
        for box in engine.detect("dog.jpg"):
            print(box.label, box.confidence, box.box)
        for boxes in engine.stream(frames, color="bgr"):
            ...

Threads: one engine may be used from any number of them at once. Processes: a child that was forked opens the engine
anew, because the threads of the engine's library stay behind in the parent; what the parent had opened is left as it
is, since releasing it would wait for those threads. A pickled engine is its folder or package.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, overload

import numpy as np
import numpy.typing as npt

from dnc.errors import DncError, TargetError
from dnc.runtime.decoding import BoxHead, Classification, ClassifierHead, Detection, detections, from_graph
from dnc.runtime.manifest import Manifest, read_manifest
from dnc.runtime.options import check_names
from dnc.runtime.preprocessing import read_image
from dnc.runtime.runners import Runner, Session, find
from dnc.runtime.timing import processors

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["Engine", "Image", "Result", "load"]


class _Picture(Protocol):
    """A PIL image."""

    def convert(self, mode: str, /) -> Any: ...


Image = str | PathLike[str] | bytes | npt.NDArray[np.uint8] | _Picture
"""A path, the bytes of an image file, pixels (H, W, C) or (H, W) of uint8, or a PIL image."""
Result = list[Detection] | list[Classification]

_Value = TypeVar("_Value")


def load(folder: str | PathLike[str], *, threads: int | None = None, **options: str) -> Engine:
    """Reads an engine. The engine's library is loaded at the first use.

    Args:
        folder: what `dnc compile` wrote, or the one file that `dnc package` made of it.
        threads: how many threads one run uses; the engine's own choice if not given.
        options: what to tell the target anew, as device="GPU" to openvino (`Option.at_load`).

    Raises:
        BundleError: it is no engine, is damaged, or was made by a newer dnc.
        TargetError: its target is unknown here, needs a library that is not installed, or has no such option.
    """
    path = Path(folder)
    package = path if path.exists() and not path.is_dir() else None
    if package is not None:
        from dnc.runtime.package import open_package

        path, manifest = open_package(package)
    else:
        manifest = read_manifest(path)
    kind = find(manifest.target, manifest.options)
    anew = [option for option in kind.known_options if option.at_load]
    fixed = [name for name in options if name in _built_in(kind, manifest)]
    if fixed:
        raise TargetError(f"{fixed[0]} is built into the engine", path, f"`dnc compile --option {fixed[0]}=…`")
    check_names(f"target {manifest.target}", anew, options)
    runner = kind({**manifest.options, **options})
    missing = runner.missing()
    if missing:
        raise TargetError(f"target {runner.name} needs {missing}, which is not installed", path, runner.remedy())
    return Engine(path, manifest, runner, threads, options, package)


def _built_in(kind: type[Runner], manifest: Manifest) -> set[str]:
    """Options that only a compiler takes, as far as the engine and what runs it know them."""
    anew = {option.name for option in kind.known_options if option.at_load}
    return {"precision", *manifest.options, *(option.name for option in kind.known_options)} - anew


class Engine:
    """A network ready to run, in a `with` statement or without. Usable from several threads and after a fork."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        runner: Runner,
        threads: int | None = None,
        options: Mapping[str, str] | None = None,
        package: Path | None = None,
    ) -> None:
        self.folder = folder
        """Of a package, where it is unpacked."""
        self.manifest = manifest
        self._runner = runner
        self._threads = threads
        self._options = dict(options or {})
        self._package = package
        self._opened: Session | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._turns: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = (
            weakref.WeakKeyDictionary()
        )
        _engines.add(self)

    def __repr__(self) -> str:
        return f"<dnc.Engine {self.manifest.name} for {self.manifest.target} at {self.folder}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled, as multiprocessing does it, an engine is its folder or package: it is opened again over there."""
        return partial(load, threads=self._threads, **self._options), ((self._package or self.folder).absolute(),)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Releases what the engine's library holds, and ends the threads of `detect_async`, after what they are at.

        Runs that other threads have begun end as they would have. Whatever is begun afterwards raises DncError. To
        close an engine twice is nothing.
        """
        with self._lock:
            self._closed = True
            self._opened = None
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()

    @property
    def session(self) -> Session:
        """The opened engine. Raises DncError if it was closed."""
        opened = self._opened
        if opened is not None:
            return opened
        with self._lock:
            self._check_open()
            if self._opened is None:
                if self._package is not None and not self.folder.exists():
                    # Opened so late that it was pruned.
                    from dnc.runtime.package import open_package

                    open_package(self._package)
                self._opened = self._runner.open(self.folder, self._threads)
            return self._opened

    def _check_open(self) -> None:
        if self._closed:
            raise DncError("the engine is closed", self.folder, "load it again, or close it later")

    def _after_fork(self) -> None:
        """What a forked child begins with: the locks and threads of the parent are not its own."""
        self._lock = threading.Lock()
        self._pool = None
        self._turns = weakref.WeakKeyDictionary()
        if self._opened is not None:
            _never_release(self._opened)
            self._opened = None

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
    ) -> Any:
        """What an image shows, or a list of that for a list of images.

        Args:
            image: see `Image`; a list of images runs as one batch where the engine takes it.
            confidence: detections under it are left out (Darknet's -thresh).
            iou: overlap over which non-maximum suppression drops a box (Darknet's nms).
            top: how many classes a classifier gives.
            color: the order of an array's channels: "rgb", or "bgr" for OpenCV's frames (then BGRA, if they are four).
                Files and PIL images know theirs.

        Returns:
            Detections by descending confidence, or the `top` classes.

        Raises:
            ImageError: an image cannot be read.
            DncError: the network gives neither boxes nor classes, takes no images, or the engine is closed.
        """
        wishes = _Wishes(confidence, iou, top, color)
        if not isinstance(image, list | tuple):
            return self._results([self._pixels(image, wishes)], wishes)[0]
        return self._results([self._pixels(item, wishes) for item in image], wishes)

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
            raise DncError(f"this network gives no {what}", self.folder, f"use {other}()")

    async def detect_async(self, image: Any, **options: Any) -> Any:
        """As `detect`, in a thread of the engine's own, so that the event loop goes on meanwhile.

        Of all that is awaited, as much runs at once as the engine has threads, and twice as much waits with its pixels
        at hand; the rest waits before that. What is cancelled while it waits never runs; what runs already runs to its
        end, and its result is dropped.
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
            turn = self._turns.setdefault(loop, asyncio.Semaphore(3 * _workers()))
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
                self._pool = ThreadPoolExecutor(_workers(), thread_name_prefix="dnc-async")
            return self._pool

    def stream(
        self,
        frames: Iterable[Image],
        *,
        confidence: float = 0.25,
        iou: float = 0.45,
        top: int = 5,
        color: str = "rgb",
        batch: int | None = None,
        workers: int | None = None,
        with_frames: bool = False,
    ) -> Generator[Any, None, None]:
        """The results of frames, in their order, computed while the next frames are read.

        `frames` is read by the caller's thread, a few frames ahead of the result that it waits for, or not at all while
        a result is ready. Reading files, preprocessing, the network and decoding boxes take place in threads of the
        stream's own, which end with it: when it is exhausted, fails or is closed.

        Args:
            frames: images as for `__call__`, of any number; an array must not change before its result is there.
            confidence, iou, top, color: as for `__call__`.
            batch: how many frames run as one batch; what the engine was compiled for, or 1, if not given. On CPUs, more
                than 1 gains nothing (benchmarks/embedding.md), and numbers may then differ in the last bits.
            workers: how many threads; as many as pay if not given.
            with_frames: gives (frame, result) for each frame.

        Raises:
            DncError: the engine takes batches of another size, or the network takes no images.

        What is wrong with a frame, or with `frames`, is raised in the place of its result, and ends the stream.
        """
        size = self.manifest.batch
        if batch is not None and (batch < 1 or (isinstance(size, int) and batch != size)):
            raise DncError(f"batch={batch}: the engine takes {size}", self.folder, "leave it out")
        if workers is not None and workers < 1:
            raise DncError(f"workers={workers} must be at least 1", self.folder)
        self._check_images()
        wishes = _Wishes(confidence, iou, top, color)
        batch = batch or (size if isinstance(size, int) else 1)
        return self._stream(frames, wishes, batch, workers or _workers(), with_frames)

    def _stream(
        self, frames: Iterable[Image], wishes: _Wishes, batch: int, workers: int, with_frames: bool
    ) -> Generator[Any, None, None]:
        from concurrent.futures import ThreadPoolExecutor

        source = iter(frames)
        waiting: deque[tuple[list[Image], Future[_Batch]]] = deque()
        failure: Exception | None = None
        more = True
        pool = ThreadPoolExecutor(workers, thread_name_prefix="dnc-stream")
        try:
            while more or waiting:
                if waiting and (not more or len(waiting) >= 2 * workers or waiting[0][1].done()):
                    part, future = waiting.popleft()
                    results, error = future.result()
                    yield from zip(part, results, strict=False) if with_frames else results
                    if error is not None:
                        raise error
                    continue
                part = []
                try:
                    while len(part) < batch and (more := (frame := next(source, _END)) is not _END):
                        part.append(frame)
                except Exception as error:
                    failure, more = error, False
                if part:
                    waiting.append((part, pool.submit(self._batch, part, wishes)))
            if failure is not None:
                raise failure
        finally:
            pool.shutdown(cancel_futures=True)

    def _batch(self, frames: Sequence[Image], wishes: _Wishes) -> _Batch:
        images = []
        error: Exception | None = None
        for frame in frames:
            try:
                images.append(self._prepare(self._pixels(frame, wishes)))
            except Exception as reason:
                error = reason
                break
        return _Batch([result for group in self._groups(images) for result in self._run(group, wishes)], error)

    def _results(self, images: list[npt.NDArray[np.uint8]], wishes: _Wishes) -> list[Result]:
        return [
            result
            for group in self._groups(images)
            for result in self._run([self._prepare(image) for image in group], wishes)
        ]

    def forward(
        self, array: npt.ArrayLike, states: MutableMapping[str, npt.NDArray[np.float32]] | None = None
    ) -> list[npt.NDArray[np.float32]]:
        """Runs the network on an input that is ready.

        Args:
            array: (N, C, H, W) float32 in [0, 1], or (N, inputs); (N, H, W, C) uint8 for an engine with --input u8.
                Without the batch axis the results come without it.
            states: for recurrent networks: states by name, replaced by their successors. Zero where not given, so that
                a call without it is one step from zero.

        Returns:
            One array for each output head in cfg order, equal to Darknet's layer output.

        Raises:
            DncError: the array has another shape.
        """
        dtype = np.uint8 if self.manifest.input_dtype == "uint8" else np.float32
        try:
            x = np.ascontiguousarray(array, dtype)
        except (TypeError, ValueError) as error:
            raise DncError(f"the input is no array of numbers: {error}", self.folder) from error
        if dtype == np.uint8 and np.asarray(array).dtype != np.uint8:
            raise DncError("the engine takes pixels, uint8", self.folder, "it was compiled with --input u8")
        wanted = self.manifest.input_shape
        single = x.ndim == len(wanted)
        if single:
            x = x[None]
        fits = x.shape[1:] == wanted if dtype == np.float32 else x.ndim == 4 and x.shape[3] == wanted[0]
        size = self.manifest.batch
        if not fits or (isinstance(size, int) and len(x) != size):
            want = ", ".join(map(str, (size, *wanted) if dtype == np.float32 else (size, "height", "width", wanted[0])))
            raise DncError(f"the input has shape {np.shape(array)}, the engine wants ({want})", self.folder)
        own = states if states is not None else {}
        outputs = self.session.run({"input": x, **self._states(len(x), own), **self._thresholds(0.25, 0.45, x)})
        count = len(self.manifest.outputs)
        for name, state in zip(self.manifest.states, outputs[count:], strict=True):
            own[name] = state
        # Detections of a whole batch are one list, which has no batch axis.
        batched = [single and name != "detections" for name in self.manifest.outputs]
        return [output[0] if drop else output for drop, output in zip(batched, outputs[:count], strict=True)]

    def _check_images(self) -> None:
        if self.manifest.preprocessing is None:
            shape = ", ".join(map(str, self.manifest.input_shape))
            raise DncError("this network takes no images", self.folder, f"use forward() with an array (N, {shape})")
        if not self.manifest.heads:
            what = "this network has no head that gives boxes or classes"
            raise DncError(what, self.folder, "use forward(), which gives its last layer's output")

    def _pixels(self, image: Image, wishes: _Wishes) -> npt.NDArray[np.uint8]:
        self._check_images()
        assert self.manifest.preprocessing is not None
        channels = self.manifest.preprocessing.channels
        if isinstance(image, str | PathLike | bytes):
            return read_image(image, channels)
        if not isinstance(image, np.ndarray) and hasattr(image, "convert"):
            # A PIL image may be of any mode; a palette's numbers are no pixels.
            return np.asarray(image.convert({1: "L", 4: "RGBA"}.get(channels, "RGB")))
        pixels: npt.NDArray[np.uint8] = np.asarray(image)
        if wishes.color == "bgr" and pixels.ndim == 3 and pixels.shape[2] in (3, 4):
            return pixels[:, :, ::-1] if pixels.shape[2] == 3 else pixels[:, :, [2, 1, 0, 3]]
        return pixels

    def _groups(self, images: Sequence[_Shaped]) -> list[Sequence[_Shaped]]:
        """What runs together, in order."""
        size = self.manifest.batch
        if isinstance(size, str):
            # Pixels of different sizes cannot be one array, which an engine with --input u8 takes.
            same = len({image.shape for image in images}) == 1
            size = len(images) if same or self.manifest.input_dtype == "float32" else 1
        return [images[start : start + size] for start in range(0, len(images), max(size, 1))]

    def _prepare(self, image: npt.NDArray[np.uint8]) -> _Prepared:
        preprocessing = self.manifest.preprocessing
        assert preprocessing is not None
        pixels = self.manifest.input_dtype == "uint8"
        return _Prepared(preprocessing.match_channels(image) if pixels else preprocessing(image), image.shape[1::-1])

    def _run(self, images: Sequence[_Prepared], wishes: _Wishes) -> list[Result]:
        """The results of images that are one batch, at most."""
        size = self.manifest.batch
        missing = size - len(images) if isinstance(size, int) else 0
        arrays = [image.array for image in images] + [images[-1].array] * missing
        # One image becomes a batch without a copy.
        x = np.stack(arrays) if len(arrays) > 1 else np.ascontiguousarray(arrays[0])[None]
        sizes = [image.size for image in images] + [images[-1].size] * missing
        thresholds = self._thresholds(wishes.confidence, wishes.iou, x, sizes)
        outputs = self.session.run({"input": x, **thresholds, **self._states(len(x), {})})
        return [self._postprocess(image.size, position, outputs, wishes) for position, image in enumerate(images)]

    def _thresholds(
        self, confidence: float, iou: float, x: npt.NDArray[Any], sizes: Sequence[tuple[int, int]] = ()
    ) -> dict[str, npt.NDArray[Any]]:
        """The further inputs of a graph with non-maximum suppression inside."""
        if self.manifest.decode != "graph+nms":
            return {}
        inputs = {"confidence": np.array([confidence], np.float32), "iou": np.array([iou], np.float32)}
        preprocessing = self.manifest.preprocessing
        boxes = np.array([[0, 0, 1, 1]] * len(x), np.float32)
        if preprocessing is not None and sizes:
            transforms = [preprocessing.transform(*size) for size in sizes]
            boxes = np.array([(*transform.offset, *transform.ratio) for transform in transforms], np.float32)
        return {**inputs, **({"window": boxes} if "window" in self.manifest.extra_inputs else {})}

    def _states(
        self, count: int, states: Mapping[str, npt.NDArray[np.float32]]
    ) -> dict[str, npt.NDArray[np.float32]]:
        return {
            name: states[name] if name in states else np.zeros((count, *shape), np.float32)
            for name, shape in self.manifest.states.items()
        }

    def _postprocess(
        self, size: tuple[int, int], position: int, outputs: Sequence[npt.NDArray[Any]], wishes: _Wishes
    ) -> Result:
        manifest = self.manifest
        boxes = [head for head in manifest.heads if isinstance(head, BoxHead)]
        options: dict[str, Any] = {"confidence": wishes.confidence, "iou": wishes.iou, "labels": manifest.labels}
        options |= {"transform": manifest.preprocessing and manifest.preprocessing.transform(*size), "image_size": size}
        if manifest.decode != "host":
            # After them come layers that were kept, and states.
            decoded = outputs[: 1 if manifest.decode == "graph+nms" else 2]
            return from_graph(boxes[-1], decoded, position, **options)
        named = dict(zip(manifest.outputs, outputs, strict=False))
        own = {head.output: named[head.output][position] for head in manifest.heads}
        if boxes:
            return detections(boxes, own, **options)
        head = manifest.heads[-1]
        assert isinstance(head, ClassifierHead)
        return head.top_k(own[head.output], wishes.top, manifest.labels)


@dataclass(frozen=True)
class _Wishes:
    """What a caller asks for."""

    confidence: float
    iou: float
    top: int
    color: str

    def __post_init__(self) -> None:
        if self.color not in ("rgb", "bgr"):
            raise DncError(f"color={self.color!r} is not known", hint="rgb, or bgr for OpenCV's frames")


class _Prepared(NamedTuple):
    """An image that is ready for the network, and its (width, height) before."""

    array: npt.NDArray[Any]
    size: tuple[int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape


_Shaped = TypeVar("_Shaped", npt.NDArray[np.uint8], _Prepared)


class _Batch(NamedTuple):
    """The results of frames, up to one that has none."""

    results: list[Result]
    error: Exception | None


_END: Any = object()
"""What no frame is."""

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _workers() -> int:
    """Threads that run images: one more than there are processors, for while some compute, others wait for memory or
    for Python's lock (benchmarks/embedding.md); 4 at most, because an engine by itself uses all processors."""
    return min(processors() + 1, 4)


def _never_release(session: Session) -> None:
    """Keeps a session as long as the process lives, and while Python ends it: the destructors of OpenVINO and of ONNX
    Runtime wait for threads that a forked child does not have."""
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


def _after_fork() -> None:
    for engine in list(_engines):
        engine._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
