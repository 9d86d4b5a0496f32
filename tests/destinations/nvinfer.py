"""DeepStream's Gst-nvinfer, imitated: its configuration, read by GLib as it reads it; the network, by ONNX Runtime; the
parser of the folder, built against a stand-in for DeepStream's header; and its suppression."""

from __future__ import annotations

import ctypes as c
import ctypes.util
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from dnc.typing import Array

__all__ = ["KINDS", "Nvinfer", "Object", "Parser", "build", "read_key_file", "suppress"]

HEADER = Path(__file__).with_name("deepstream")
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Wold-style-cast", "-Werror")

KINDS = {
    "property": {
        **dict.fromkeys(("gpu-id", "gie-unique-id", "process-mode", "batch-size", "network-mode"), "integer"),
        **dict.fromkeys(("network-type", "num-detected-classes", "cluster-mode", "model-color-format"), "integer"),
        **dict.fromkeys(("onnx-file", "model-engine-file", "labelfile-path", "int8-calib-file"), "string"),
        **dict.fromkeys(("custom-lib-path", "parse-bbox-func-name"), "string"),
        **dict.fromkeys(("maintain-aspect-ratio", "symmetric-padding", "strongly-typed"), "boolean"),
        "crop-objects-to-roi-boundary": "boolean",
        **dict.fromkeys(("net-scale-factor", "classifier-threshold"), "double"),
        **dict.fromkeys(("infer-dims", "filter-out-class-ids"), "integer_list"),
        "offsets": "double_list",
        "output-blob-names": "string_list",
    },
    "class-attrs-all": {"pre-cluster-threshold": "double", "nms-iou-threshold": "double", "topk": "integer"},
}
"""The keys that Gst-nvinfer knows, of those that are written, and as what it reads them."""


class Object(NamedTuple):
    """What a parser of boxes puts out, or what is left of it."""

    classId: int
    left: float
    top: float
    width: float
    height: float
    confidence: float


class Parser:
    """A library with `parse` of harness.cpp in it."""

    def __init__(self, file: Path) -> None:
        self._parse = c.CDLL(str(file)).parse
        self._parse.restype = c.c_long

    def __call__(
        self,
        output: Array | None,
        size: tuple[int, int],
        thresholds: Sequence[float],
        *,
        classes: int | None = None,
        kind: int = 0,
        sides: Sequence[int] | None = None,
        elements: int | None = None,
    ) -> list[Object] | None:
        """The objects in an output (K, 6), of a network of this width and height; None if the parser refuses it. The
        rest says something else of the output, or of the classes, than is so."""
        held = np.zeros((1, 6), np.float32) if output is None else np.ascontiguousarray(output, np.float32)
        shape = held.shape if sides is None else tuple(sides)
        rows = np.full((len(held) + 1, 7), np.nan, np.float32)
        found = self._parse(
            None if output is None else held.ctypes.data_as(c.c_void_p),
            kind,
            c.c_uint(len(shape)),
            (c.c_uint * 8)(*shape[:8]),
            c.c_uint(held.size if elements is None else elements),
            *map(c.c_uint, size),
            c.c_uint(len(thresholds) if classes is None else classes),
            (c.c_float * max(1, len(thresholds)))(*thresholds),
            c.c_size_t(len(thresholds)),
            rows.ctypes.data_as(c.POINTER(c.c_float)),
            c.c_size_t(len(rows)),
        )
        if found < 0:
            return None
        assert not rows[:found, 6].any(), "a box is turned"
        return [Object(int(row[0]), *row[1:6]) for row in rows[:found].tolist()]


def build(source: Path, out: Path, deepstream: int = 9, *flags: str) -> Path:
    """Compiles a parser with the harness, warnings being errors."""
    words = [*WARNINGS, *flags, f"-DDEEPSTREAM={deepstream}", "-DPARSER=NvDsInferParseDnc", f"-I{HEADER}"]
    line = ["g++", "-std=c++14", "-shared", "-fPIC", *words, source, HEADER / "harness.cpp", "-o", out]
    subprocess.run([str(word) for word in line], check=True)
    return out


class Nvinfer:
    """The element with its config-file-path: a folder that was exported for it."""

    def __init__(self, folder: Path, parser: Parser | None = None) -> None:
        self.folder, self._parser = folder, parser
        groups = read_key_file(folder / "config_infer_primary.txt", KINDS)
        self.property, self.suppression = groups["property"], groups.get("class-attrs-all", {})
        self._session = ort.InferenceSession(folder / self.property["onnx-file"], providers=["CPUExecutionProvider"])
        lines = (folder / self.property["labelfile-path"]).read_text("utf-8").splitlines()
        self.labels = [line.split(";") for line in lines if line]

    def prepare(self, frames: npt.NDArray[np.uint8]) -> Array:
        """Tensors of frames (N, H, W, 3) in RGB, or (N, H, W) in gray, that have the network's size already."""
        channels, height, width = self.property["infer-dims"]
        color = self.property["model-color-format"]
        assert frames.shape[1:] == ((height, width) if color == 2 else (height, width, channels))
        planes = frames[:, None] if color == 2 else frames.transpose(0, 3, 1, 2)[:, :: -1 if color == 1 else 1]
        offsets = np.array(self.property.get("offsets", [0.0] * channels), np.float32)
        assert len(offsets) == channels
        scaled: Array = np.float32(self.property["net-scale-factor"]) * (
            planes.astype(np.float32) - offsets[:, None, None]
        )
        return scaled

    def run(self, tensors: Array) -> Array:
        """The output that output-blob-names has."""
        [entry] = self._session.get_inputs()
        [output] = self._session.run(self.property["output-blob-names"], {entry.name: tensors})
        assert isinstance(output, np.ndarray)
        return output

    def detect(self, tensors: Array) -> list[list[Object]]:
        """The objects of each image, on the network's input."""
        assert self.property["network-type"] == 0
        assert self.property["parse-bbox-func-name"] == "NvDsInferParseDnc"
        assert self._parser is not None
        _, height, width = self.property["infer-dims"]
        classes = self.property["num-detected-classes"]
        found = []
        for rows in self.run(tensors):
            objects = self._parser(rows, (width, height), [self.suppression["pre-cluster-threshold"]] * classes)
            assert objects is not None
            assert all(item.confidence >= self.suppression["pre-cluster-threshold"] for item in objects)
            # cluster-mode=4 leaves all of them.
            mode, most = self.property["cluster-mode"], self.suppression["topk"]
            kept = suppress(objects, self.suppression["nms-iou-threshold"] if mode == 2 else 1.0, most)
            hidden = self.property.get("filter-out-class-ids", ())
            found.append([item for item in kept if item.classId not in hidden])
        return found

    def classify(self, tensors: Array) -> list[tuple[int, str, float]]:
        """The class of each image: the first of the largest values over the threshold."""
        assert self.property["network-type"] == 1
        found = []
        for row in self.run(tensors):
            best = int(np.argmax(row))
            assert row[best] > self.property["classifier-threshold"]
            found.append((best, self.labels[0][best], float(row[best])))
        return found


def suppress(objects: Sequence[Object], iou: float, most: int) -> list[Object]:
    """cluster-mode=2: class by class, from the best down, what overlaps none that is kept by more than `iou`."""
    kept: list[Object] = []
    for number in sorted({item.classId for item in objects}):
        own: list[Object] = []
        for item in sorted((item for item in objects if item.classId == number), key=lambda item: -item.confidence):
            if all(_iou(item, other) <= np.float32(iou) for other in own):
                own.append(item)
        kept += own[:most]
    return kept


def _iou(one: Object, other: Object) -> float:
    across = min(one.left + one.width, other.left + other.width) - max(one.left, other.left)
    down = min(one.top + one.height, other.top + other.height) - max(one.top, other.top)
    common = max(across, 0.0) * max(down, 0.0)
    return common / (one.width * one.height + other.width * other.height - common)


def read_key_file(file: Path, kinds: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, Any]]:
    """Groups, keys and their values, read by GKeyFile as `kinds` says; a key that is not in there raises KeyError."""
    library = ctypes.util.find_library("glib-2.0")
    assert library is not None
    glib = c.CDLL(library)
    glib.g_key_file_new.restype = c.c_void_p
    glib.g_key_file_get_double.restype = c.c_double
    for name in ("g_key_file_get_groups", "g_key_file_get_keys"):
        getattr(glib, name).restype = c.POINTER(c.c_char_p)
    key_file, length, error = c.c_void_p(glib.g_key_file_new()), c.c_size_t(), c.c_void_p()

    def call(name: str, *arguments: object) -> Any:
        found = getattr(glib, f"g_key_file_{name}")(key_file, *arguments, c.byref(error))
        assert not error, (name, arguments)
        return found

    def value(kind: str, group: bytes, key: bytes) -> Any:
        single, _, is_list = kind.partition("_")
        types = {"string": c.c_char_p, "double": c.c_double, "integer": c.c_int, "boolean": c.c_int}
        get = getattr(glib, f"g_key_file_get_{kind}")
        get.restype = c.POINTER(types[single]) if is_list else types[single]
        found = call(f"get_{kind}", group, key, *([c.byref(length)] if is_list else []))
        items = found[: length.value] if is_list else [found]
        items = [item.decode() if isinstance(item, bytes) else item for item in items]
        return items if is_list else items[0]

    call("load_from_file", str(file).encode(), 0)
    read: dict[str, dict[str, Any]] = {}
    for group in list(glib.g_key_file_get_groups(key_file, c.byref(length))[: length.value]):
        keys = list(call("get_keys", group, c.byref(length))[: length.value])
        known = kinds[group.decode()]
        read[group.decode()] = {key.decode(): value(known[key.decode()], group, key) for key in keys}
    return read
