"""libdnc_runtime from Python: built once for the sources as they are, called through ctypes.

Both the library and the harness (harness.cpp: the parts that need no back end) are built in the temporary folder, under
a digest of all that they are made of, so that only the first test run pays for it; processes that need them at once
wait for each other.
"""

from __future__ import annotations

import ctypes as c
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dnc.cli import embed
from dnc.runtime.images import Pixels
from tests import ROOT

__all__ = [
    "EMBED",
    "FORMATS",
    "MANY",
    "TYPES",
    "WARNINGS",
    "Box",
    "Engine",
    "Harness",
    "NativeError",
    "Outputs",
    "build_harness",
    "build_library",
    "build_program",
    "library",
]


EMBED = ROOT / "embed"
WARNINGS = (
    *("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wsign-conversion", "-Wshadow"),
    *("-Wold-style-cast", "-Werror"),
)
FORMATS = {"rgb": (0, 3), "bgr": (1, 3), "gray": (2, 1), "rgba": (3, 4), "bgra": (4, 4)}
"""dnc_pixels and channels, of 8 bits."""
MANY = 5
"""As many channels as there are."""
TYPES = ("uint8", "uint16", "float32")
"""Six formats of each, in this order."""
_SECONDS_KEPT = 24 * 3600
"""Other checkouts may have theirs there."""
_PARTS = ("arithmetic", "bundle", "decode", "files", "json", "package", "preprocess", "sha256")


def _built(name: str, words: Sequence[str], make: Callable[[Path], None]) -> Path:
    """The folder that `make` fills, made anew if the sources, the compiler or `words` are others than before."""
    digest = hashlib.sha256(repr(words).encode())
    files = [
        *(EMBED / "include").iterdir(),
        *(EMBED / "src").iterdir(),
        Path(__file__),
        *Path(__file__).parent.glob("*.cpp"),
    ]
    for path in sorted(files):
        digest.update(path.name.encode() + path.read_bytes())
    digest.update(subprocess.run(["g++", "--version"], capture_output=True, check=True).stdout)
    folder = Path(tempfile.gettempdir()) / f"dnc-embed-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    place = folder / f"{name}-{digest.hexdigest()[:16]}"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            for old in folder.glob("*-*"):
                if time.time() - old.stat().st_mtime > _SECONDS_KEPT:
                    shutil.rmtree(old)
            scratch = Path(tempfile.mkdtemp(dir=folder))
            make(scratch)
            scratch.rename(place)
        os.utime(place)
    return place


def _compile(sources: Sequence[Path], words: Sequence[str], link: Sequence[str], out: Path) -> None:
    """Each source by itself, several at once."""

    def one(source: Path) -> Path:
        made = out.parent / f"{source.stem}.o"
        run(["g++", *words, "-c", source, "-o", made])
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(one, sources))
    run(["g++", *objects, *link, "-o", out])


def run(command: Sequence[object], **options: Any) -> str:
    """What a command prints; fails with what it complains about."""
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert result.returncode == 0, f"{' '.join(map(str, command))}\n{result.stdout}\n{result.stderr}"
    return str(result.stdout)


def _whole() -> tuple[list[Path], list[str], list[str]]:
    """The library's sources, and what `dnc embed --flags` says for the compiler and for the linker."""
    flags = embed._flags(EMBED, embed._libraries())
    sources = [Path(word) for word in flags if word.endswith(".cpp")]
    link = [word for word in flags if ".so" in word or word.startswith("-Wl")]
    return sources, [word for word in flags if not word.endswith(".cpp") and word not in link], link


def build_library() -> Path:
    """libdnc_runtime.so with what `dnc embed --flags` says, and every warning an error."""
    sources, words, link = _whole()
    words += ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-DDNC_BUILDING", *WARNINGS]

    def make(folder: Path) -> None:
        _compile(sources, words, ["-shared", "-pthread", *link], folder / "libdnc_runtime.so")

    return _built("library", [*words, *link], make) / "libdnc_runtime.so"


def build_program(source: Path, *flags: str) -> Path:
    """A program with all of the library in it; `flags` are for the compiler and the linker."""
    sources, words, link = _whole()
    words += ["-std=c++17", "-O1", "-g", *WARNINGS, *flags]

    def make(folder: Path) -> None:
        _compile([*sources, source], words, ["-pthread", *flags, *link], folder / source.stem)

    return _built(source.stem, [*words, *link, source.read_text(encoding="utf-8")], make) / source.stem


def build_harness(*flags: str) -> Path:
    """The harness; `flags` are for the compiler and the linker."""
    name = "harness" + "".join(letter for word in flags for letter in word if letter.isalnum())[:40]
    words = [
        "-std=c++17",
        "-O1",
        "-g",
        "-ffp-contract=off",
        f"-I{EMBED / 'include'}",
        f"-I{EMBED / 'src'}",
        *WARNINGS,
        *flags,
    ]
    sources = [*(EMBED / "src" / f"{part}.cpp" for part in _PARTS), Path(__file__).with_name("harness.cpp")]

    def make(folder: Path) -> None:
        _compile(sources, words, flags, folder / "harness")

    return _built(name, words, make) / "harness"


class Harness:
    """The harness, running."""

    def __init__(self, program: Path, environment: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )

    def __call__(self, *words: object) -> list[str]:
        """The lines that a command gives; raises NativeError for its error, and AssertionError if it crashed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write("\t".join(map(str, words)).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._crashed(words)
        lines: list[str] = []
        for line in self._process.stdout:
            text = line.decode("utf-8", "replace").rstrip("\n")
            if text == "end":
                if lines and lines[0].startswith("error "):
                    _, status, message = lines[0].split(" ", 2)
                    raise NativeError(int(status), message)
                return lines
            lines.append(text)
        self._crashed(words)
        raise AssertionError

    def refusal(self, *words: object) -> NativeError | None:
        """The error of a command; None if it has none."""
        try:
            self(*words)
        except NativeError as error:
            return error
        return None

    def _crashed(self, words: Sequence[object]) -> None:
        _, complaint = self._process.communicate()
        raise AssertionError(f"{words}: exit {self._process.returncode}\n{complaint.decode(errors='replace')}")

    def close(self) -> None:
        """Ends it; fails if it complains then, of a leak for instance."""
        _, complaint = self._process.communicate()
        assert (self._process.returncode, complaint) == (0, b"")


class NativeError(Exception):
    """What the library reports."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


# dnc.h


class _OpenOptions(c.Structure):
    _fields_ = [
        *(("size", c.c_size_t), ("threads", c.c_int), ("options", c.POINTER(c.c_char_p))),
        *(("max_candidates", c.c_size_t), ("trust", c.c_int)),
    ]


class _Image(c.Structure):
    _fields_ = [
        *(("size", c.c_size_t), ("data", c.c_void_p), ("bytes", c.c_size_t), ("width", c.c_size_t)),
        *(("height", c.c_size_t), ("stride", c.c_size_t), ("format", c.c_int), ("channels", c.c_size_t)),
    ]


class _Array(c.Structure):
    _fields_ = [
        *(("size", c.c_size_t), ("name", c.c_char_p), ("type", c.c_int), ("rank", c.c_size_t)),
        *(("shape", c.POINTER(c.c_size_t)), ("data", c.c_void_p), ("bytes", c.c_size_t)),
    ]


class _Head(c.Structure):
    _fields_ = [
        *(("size", c.c_size_t), ("kind", c.c_char_p), ("output", c.c_char_p), ("where", c.c_char_p)),
        ("classes", c.c_size_t),
    ]


class _Detection(c.Structure):
    _fields_ = [
        *(("size", c.c_size_t), ("class_id", c.c_int), ("label", c.c_char_p), ("confidence", c.c_float)),
        *(("center_x", c.c_float), ("center_y", c.c_float), ("width", c.c_float), ("height", c.c_float)),
        *(("left", c.c_int), ("top", c.c_int), ("right", c.c_int), ("bottom", c.c_int)),
    ]


class _Classification(c.Structure):
    _fields_ = [("size", c.c_size_t), ("class_id", c.c_int), ("label", c.c_char_p), ("confidence", c.c_float)]


class Box(NamedTuple):
    """dnc_detection."""

    class_id: int
    label: str
    confidence: float
    place: tuple[float, float, float, float]
    pixels: tuple[int, int, int, int]


def library(path: Path) -> c.CDLL:
    """The library with the types of its functions."""
    own = c.CDLL(str(path))
    handle, out, size = c.c_void_p, c.POINTER(c.c_void_p), c.c_size_t
    types: dict[str, tuple[Any, ...]] = {
        "dnc_version": (c.c_char_p,),
        "dnc_abi": (c.c_int,),
        "dnc_targets": (c.c_char_p,),
        "dnc_last_error": (c.c_char_p,),
        "dnc_last_status": (c.c_int,),
        "dnc_open": (c.c_int, c.c_char_p, c.POINTER(_OpenOptions), out),
        "dnc_open_memory": (c.c_int, c.c_void_p, size, c.POINTER(_OpenOptions), out),
        "dnc_open_stream": (c.c_int, handle, out),
        "dnc_reset": (c.c_int, handle),
        "dnc_close": (None, handle),
        "dnc_engine_name": (c.c_char_p, handle),
        "dnc_engine_target": (c.c_char_p, handle),
        "dnc_engine_device": (c.c_char_p, handle),
        "dnc_engine_task": (c.c_int, handle),
        "dnc_engine_classes": (size, handle),
        "dnc_engine_label": (c.c_char_p, handle, size),
        "dnc_engine_input_count": (size, handle),
        "dnc_engine_input": (c.c_int, handle, size, c.POINTER(_Array)),
        "dnc_engine_output_count": (size, handle),
        "dnc_engine_output": (c.c_int, handle, size, c.POINTER(_Array)),
        "dnc_engine_head_count": (size, handle),
        "dnc_engine_head": (c.c_int, handle, size, c.POINTER(_Head)),
        "dnc_preprocess": (c.c_int, handle, c.POINTER(_Image), c.c_void_p, size, c.POINTER(size)),
        "dnc_run": (c.c_int, handle, c.POINTER(_Array), size, out),
        "dnc_outputs_count": (size, handle),
        "dnc_outputs_get": (c.c_int, handle, size, c.POINTER(_Array)),
        "dnc_outputs_free": (None, handle),
        "dnc_detect": (c.c_int, handle, c.POINTER(_Image), size, c.c_float, c.c_float, out),
        "dnc_classify": (c.c_int, handle, c.POINTER(_Image), size, size, out),
        "dnc_postprocess": (c.c_int, handle, c.POINTER(_Image), size, c.c_float, c.c_float, size, out),
        "dnc_results_count": (size, handle, size),
        "dnc_results_detection": (c.c_int, handle, size, size, c.POINTER(_Detection)),
        "dnc_results_classification": (c.c_int, handle, size, size, c.POINTER(_Classification)),
        "dnc_results_free": (None, handle),
    }
    for name, (result, *arguments) in types.items():
        function = getattr(own, name)
        function.restype, function.argtypes = result, arguments
    return own


def _text(value: bytes | None) -> str:
    return (value or b"").decode()


def _image(pixels: Pixels, form: str) -> _Image:
    own = _Image(c.sizeof(_Image))
    order, channels = FORMATS.get(form, (MANY, pixels.shape[-1]))
    row = pixels.shape[1] * channels * pixels.itemsize
    own.data, own.height, own.width = pixels.ctypes.data, pixels.shape[0], pixels.shape[1]
    own.stride, own.format = pixels.strides[0], order + 6 * TYPES.index(pixels.dtype.name)
    own.channels = channels
    own.bytes = (own.height - 1) * own.stride + row
    return own


class Engine:
    """An engine as the library opens it."""

    def __init__(
        self,
        native: c.CDLL,
        folder: object,
        threads: int = 0,
        options: Sequence[str] = (),
        of: Engine | None = None,
        trust: bool = False,
    ) -> None:
        """`folder` may be bytes, which have to stay: a package in memory."""
        self.native = native
        self.handle = c.c_void_p()
        if of is not None:
            self.check(native.dnc_open_stream(of.handle, c.byref(self.handle)))
            return
        words = (c.c_char_p * (len(options) + 1))(*[word.encode() for word in options], None)
        told = _OpenOptions(c.sizeof(_OpenOptions), threads, words, 0, trust)
        if isinstance(folder, bytes):
            place = c.cast(c.c_char_p(folder), c.c_void_p)
            self.check(native.dnc_open_memory(place, len(folder), c.byref(told), c.byref(self.handle)))
            return
        self.check(native.dnc_open(os.fsencode(str(folder)), c.byref(told), c.byref(self.handle)))

    def check(self, status: int) -> None:
        if status:
            assert self.native.dnc_last_status() == status
            raise NativeError(status, self.native.dnc_last_error().decode())

    def close(self) -> None:
        self.native.dnc_close(self.handle)
        self.handle = c.c_void_p()

    def stream(self) -> Engine:
        return Engine(self.native, None, of=self)

    def reset(self) -> None:
        self.check(self.native.dnc_reset(self.handle))

    def describe(self, kind: str) -> list[tuple[str, str, tuple[int, ...]]]:
        """Name, type and shape of the inputs or outputs; -1 for any length."""
        found = []
        for index in range(getattr(self.native, f"dnc_engine_{kind}_count")(self.handle)):
            array = _Array(c.sizeof(_Array))
            self.check(getattr(self.native, f"dnc_engine_{kind}")(self.handle, index, c.byref(array)))
            assert array.data is None
            shape = tuple(-1 if side == c.c_size_t(-1).value else side for side in array.shape[: array.rank])
            found.append((_text(array.name), ("float32", "uint8")[array.type], shape))
        return found

    def heads(self) -> list[tuple[str, str, str, int]]:
        found = []
        for index in range(self.native.dnc_engine_head_count(self.handle)):
            head = _Head(c.sizeof(_Head))
            self.check(self.native.dnc_engine_head(self.handle, index, c.byref(head)))
            found.append((_text(head.kind), _text(head.output), _text(head.where), head.classes))
        return found

    def preprocess(self, pixels: Pixels, form: str = "rgb") -> npt.NDArray[Any]:
        image, needed = _image(pixels, form), c.c_size_t()
        self.check(self.native.dnc_preprocess(self.handle, c.byref(image), None, 0, c.byref(needed)))
        out = np.zeros(needed.value, np.uint8)
        self.check(self.native.dnc_preprocess(self.handle, c.byref(image), out.ctypes.data, out.size, None))
        return out

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Outputs:
        arrays = (_Array * len(inputs))()
        shapes = []
        for own, (name, array) in zip(arrays, inputs.items(), strict=True):
            assert array.flags.c_contiguous
            shapes.append((c.c_size_t * array.ndim)(*array.shape))
            own.size, own.name, own.type = c.sizeof(_Array), name.encode(), int(array.dtype == np.uint8)
            own.rank, own.shape, own.data, own.bytes = array.ndim, shapes[-1], array.ctypes.data, array.nbytes
        handle = c.c_void_p()
        self.check(self.native.dnc_run(self.handle, arrays, len(inputs), c.byref(handle)))
        return Outputs(self.native, handle)

    @contextmanager
    def _results(
        self, function: str, images: Sequence[_Image], *rest: float, of: c.c_void_p | None = None
    ) -> Iterator[c.c_void_p]:
        handle = c.c_void_p()
        own = (_Image * max(len(images), 1))(*images)
        self.check(getattr(self.native, function)(of or self.handle, own, len(images), *rest, c.byref(handle)))
        try:
            yield handle
        finally:
            self.native.dnc_results_free(handle)

    def detect(
        self, images: Sequence[Pixels], confidence: float = 0.25, iou: float = 0.45, form: str = "rgb"
    ) -> list[list[Box]]:
        with self._results("dnc_detect", [_image(each, form) for each in images], confidence, iou) as results:
            return [self._boxes(results, index) for index in range(len(images))]

    def postprocess(
        self,
        outputs: Outputs,
        sizes: Sequence[tuple[int, int]],
        confidence: float = 0.25,
        iou: float = 0.45,
        top: int = 5,
    ) -> list[list[Any]]:
        """Of images that are (width, height) large."""
        images = [_Image(c.sizeof(_Image), width=width, height=height) for width, height in sizes]
        with self._results("dnc_postprocess", images, confidence, iou, top, of=outputs.handle) as results:
            return [self._boxes(results, place) or self._classes(results, place) for place in range(len(images))]

    def _boxes(self, results: c.c_void_p, image: int) -> list[Box]:
        found = []
        one = _Detection(c.sizeof(_Detection))
        index = -1
        while self.native.dnc_results_detection(results, image, index := index + 1, c.byref(one)) == 0:
            place = (one.center_x, one.center_y, one.width, one.height)
            pixels = (one.left, one.top, one.right, one.bottom)
            found.append(Box(one.class_id, _text(one.label), one.confidence, place, pixels))
        return found

    def classify(self, images: Sequence[Pixels], top: int = 5) -> list[list[tuple[int, str, float]]]:
        with self._results("dnc_classify", [_image(each, "rgb") for each in images], top) as results:
            return [self._classes(results, image) for image in range(len(images))]

    def _classes(self, results: c.c_void_p, image: int) -> list[tuple[int, str, float]]:
        found = []
        one = _Classification(c.sizeof(_Classification))
        index = -1
        while self.native.dnc_results_classification(results, image, index := index + 1, c.byref(one)) == 0:
            found.append((one.class_id, _text(one.label), one.confidence))
        return found


class Outputs:
    """What a run gave; freed by `close`."""

    def __init__(self, native: c.CDLL, handle: c.c_void_p) -> None:
        self.native = native
        self.handle = handle

    def arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """Views on the engine's memory, by name."""
        found = {}
        for index in range(self.native.dnc_outputs_count(self.handle)):
            array = _Array(c.sizeof(_Array))
            assert self.native.dnc_outputs_get(self.handle, index, c.byref(array)) == 0
            shape = tuple(array.shape[: array.rank])
            numbers = c.cast(array.data, c.POINTER(c.c_float))
            assert array.bytes == 4 * int(np.prod(shape))
            empty = np.zeros(shape, np.float32)
            found[_text(array.name)] = np.ctypeslib.as_array(numbers, shape) if empty.size else empty
        return found

    def close(self) -> None:
        self.native.dnc_outputs_free(self.handle)
