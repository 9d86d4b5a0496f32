"""cv2.dnn with the reader of Darknet's files that OpenCV 5 no longer has: one line of a program changes.

    import dnc.opencv

    net = dnc.opencv.readNetFromDarknet("yolov4-tiny.cfg", "yolov4-tiny.weights")
    net.setInput(cv2.dnn.blobFromImage(image, 1 / 255, (416, 416), swapRB=True))
    outputs = net.forward(net.getUnconnectedOutLayersNames())

The Net is OpenCV's own, with OpenCV 4's names, shapes and rows (`dnc.destinations.opencv`). Functions and arguments
are called as in OpenCV 4; whatever is not here comes from cv2.dnn, so that `import dnc.opencv as dnn` does as well.
The network is compiled each time, which takes a second or a few: `dnc export NET.cfg --for opencv` does so once, also
for C++.
"""

from __future__ import annotations

import dataclasses
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from dnc.errors import DestinationError, DncError, Where, listening, warn
from dnc.files.installed import of_the_compiler
from dnc.files.writing import scratch_folder

with of_the_compiler("dnc.opencv"):
    from dnc.compiler.options import CompileOptions
    from dnc.destinations.exporting import Wanted, export_cfg
    from dnc.destinations.opencv import LEGACY_NAMES, OpenCV

if TYPE_CHECKING:
    import cv2

__all__ = ["ClassificationModel", "DetectionModel", "Model", "readNet", "readNetFromDarknet"]

File: TypeAlias = "str | PathLike[str]"
Buffer: TypeAlias = "bytes | bytearray | memoryview | npt.NDArray[np.uint8]"

_OLDEST = (4, 5)
_CALL = "readNetFromDarknet(cfg, weights)"
_LOCK = threading.Lock()


def readNetFromDarknet(
    cfgFile: File | Buffer | None = "",
    darknetModel: File | Buffer | None = "",
    *,
    bufferCfg: Buffer | None = None,
    bufferModel: Buffer | None = None,
) -> cv2.dnn.Net:
    """A network of Darknet's files, as OpenCV 4's function of this name gave it.

    Args:
        cfgFile: the .cfg file, or its bytes.
        darknetModel: the .weights file, or its bytes; looked for beside the cfg where it is not given, or None.
        bufferCfg, bufferModel: the same, by the names that OpenCV 4 has for bytes.

    Raises:
        CfgError, WeightsError: a file cannot be read or does not fit; place and line are said, of bytes the argument.
        DestinationError: OpenCV cannot hold the network, or is not installed, or too old; or no cfg is given.
    """
    library = _opencv()
    with scratch_folder("opencv") as folder:
        given = {
            "network.cfg": ("cfgFile", cfgFile) if bufferCfg is None else ("bufferCfg", bufferCfg),
            "network.weights": ("darknetModel", darknetModel) if bufferModel is None else ("bufferModel", bufferModel),
        }
        cfg, weights = (_file(value, folder / name) for name, (_, value) in given.items())
        called = {str(folder / name): argument for name, (argument, _) in given.items()}
        if not weights and str(folder / "network.cfg") == cfg:
            raise DestinationError("no weights are given, and bytes have none beside them", hint=_CALL)
        if not cfg:
            raise DestinationError("no .cfg file is given", weights or None, _CALL)
        # What the passes do is proven where they are tested, and a program that starts does not wait for it.
        options = CompileOptions(target=OpenCV.target, verify=False)
        wanted = Wanted(OpenCV.name, folder / "network.onnx")
        with _calling(called):
            return _net(library, export_cfg(cfg, weights or None, wanted, options).path, cfg)


def readNet(
    model: File = "", config: File | Buffer = "", framework: str | Buffer = "", *rest: Any, **named: Any
) -> cv2.dnn.Net:
    """As cv2.dnn.readNet, which it calls for whatever is no network of Darknet's. Raises as `readNetFromDarknet`.

    Args:
        model: the .weights or the .cfg file; or the name of a framework, and the other two are bytes.
        config: the other file; or bytes of the weights, which OpenCV calls bufferModel.
        framework: "darknet", where the files' names do not say so; or bytes of the cfg, bufferConfig.
    """
    if named.keys() & {"bufferModel", "bufferConfig"} or not isinstance(config, str | PathLike):
        weights, cfg = named.get("bufferModel", config), named.get("bufferConfig", framework if model else "")
        if str(model or framework).lower() == "darknet":
            return readNetFromDarknet(cfg, weights)
    else:
        files = [os.fspath(model), os.fspath(config)]
        if str(framework).lower() == "darknet" or any(file.endswith((".cfg", ".weights")) for file in files):
            if files[0].endswith(".cfg") or files[1].endswith(".weights"):
                files.reverse()
            return readNetFromDarknet(files[1], files[0])
    given = [value for value in (model, config, framework) if not isinstance(value, str) or value]
    found: cv2.dnn.Net = _opencv().dnn.readNet(*given, *rest, **named)
    return found


def Model(model: File | cv2.dnn.Net = "", config: File = "", *, network: cv2.dnn.Net | None = None) -> cv2.dnn.Model:
    """cv2.dnn.Model of a Net, which OpenCV calls `network`, or of files as `readNet` takes them."""
    found: cv2.dnn.Model = _model("Model", model if network is None else network, config)
    return found


def DetectionModel(
    model: File | cv2.dnn.Net = "", config: File = "", *, network: cv2.dnn.Net | None = None
) -> cv2.dnn.DetectionModel:
    """cv2.dnn.DetectionModel of a Net, which OpenCV calls `network`, or of files as `readNet` takes them."""
    found: cv2.dnn.DetectionModel = _model("DetectionModel", model if network is None else network, config)
    return found


def ClassificationModel(
    model: File | cv2.dnn.Net = "", config: File = "", *, network: cv2.dnn.Net | None = None
) -> cv2.dnn.ClassificationModel:
    """cv2.dnn.ClassificationModel of a Net, which OpenCV calls `network`, or of files as `readNet` takes them."""
    found: cv2.dnn.ClassificationModel = _model("ClassificationModel", model if network is None else network, config)
    return found


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(f"module 'dnc.opencv' has no attribute {name!r}")
    return getattr(_opencv().dnn, name)


def _model(kind: str, model: Any, config: File) -> Any:
    return getattr(_opencv().dnn, kind)(readNet(model, config) if isinstance(model, str | PathLike) else model)


def _opencv() -> Any:
    """The module cv2; raises DestinationError if it is missing or too old."""
    hint = "pip install opencv-python-headless"
    try:
        import cv2
    except ImportError as error:
        raise DestinationError(f"OpenCV is not installed: {error}", hint=hint) from error
    version = tuple(map(int, re.findall(r"\d+", cv2.__version__)[:3]))
    if version < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise DestinationError(f"OpenCV {cv2.__version__} is older than {oldest}", hint=f"{hint} --upgrade")
    return cv2


def _file(given: File | Buffer | None, place: Path) -> str:
    """The path of a file, empty for None; bytes are written to `place`."""
    if given is None:
        return ""
    if isinstance(given, str | PathLike):
        return os.fspath(given)
    content: Any = given
    place.write_bytes(memoryview(content).tobytes())
    return str(place)


@contextmanager
def _calling(names: Mapping[str, str]) -> Iterator[None]:
    """Lets errors and warnings call files by these names, by their paths."""

    def named(text: str) -> str:
        for path, name in names.items():
            text = text.replace(path, name)
        return text

    def renamed(error: DncError) -> DncError:
        where = error.where
        if isinstance(where, Where):
            where = dataclasses.replace(where, file=named(where.file))
        elif isinstance(where, str | PathLike):
            where = named(os.fspath(where))
        return type(error)(named(error.message), where, named(error.hint))

    try:
        with listening() as heard:
            yield
    except DncError as error:
        raise renamed(error) from error
    finally:
        for warning, once in heard:
            warn(renamed(warning), once)


def _net(library: Any, file: Path, cfg: str) -> cv2.dnn.Net:
    """Reads an export."""
    import onnx

    model = onnx.load(file)
    # OpenCV lists outputs that the file names in the order of their names, yolo_106 before yolo_82; without, it takes
    # the layers that nothing reads, in the order of the cfg.
    del model.graph.output[:]
    onnx.save(model, file)
    # OpenCV 5's new engine does not take the file, and would say so: it is asked for the classic one, which works for
    # files, but not for bytes.
    engine = [library.dnn.ENGINE_CLASSIC] if hasattr(library.dnn, "ENGINE_CLASSIC") else []
    try:
        with _plain_names():
            net: cv2.dnn.Net = library.dnn.readNetFromONNX(str(file), *engine)
    except library.error as error:
        what = f"OpenCV {library.__version__} cannot read the network: {error.err or error}"
        raise DestinationError(what, cfg, "`dnc.load` runs it") from error
    return net


@contextmanager
def _plain_names() -> Iterator[None]:
    with _LOCK:
        before = os.environ.get(LEGACY_NAMES)
        os.environ[LEGACY_NAMES] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ[LEGACY_NAMES]
            else:
                os.environ[LEGACY_NAMES] = before
