"""Runs an engine: needs numpy and the engine's own library, nothing of the compiler.

    engine = dnc.load("yolov4-tiny.engine")
    for box in engine("dog.jpg"):
        print(box.label, box.confidence, box.pixels(768, 576))
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, MutableMapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dnc.bundle import Bundle, read_bundle
from dnc.decode import BoxHead, Classification, ClassifierHead, Detection, detections, from_graph
from dnc.errors import DncError, TargetError, close_match
from dnc.preprocess import read_image
from dnc.targets import Session, Target, targets

__all__ = ["Engine", "Image", "Result", "load"]

Image = str | PathLike[str] | bytes | npt.NDArray[np.uint8]
"""A path, the bytes of an image file, pixels (H, W, C) or (H, W) in RGB, or a PIL image."""
Result = list[Detection] | list[Classification]


def load(folder: str | PathLike[str], *, threads: int | None = None, **options: str) -> Engine:
    """Reads an engine folder. The engine's library is loaded at the first use.

    Args:
        folder: what `dnc compile` wrote.
        threads: how many threads one run uses; the engine's own choice if not given.
        options: what to tell the target anew, as device="GPU" to openvino (`Option.at_load`).

    Raises:
        BundleError: the folder is no engine, is damaged, or was made by a newer dnc.
        TargetError: its target is unknown here, needs a library that is not installed, or has no such option.
    """
    path = Path(folder)
    bundle = read_bundle(path)
    if bundle.target not in targets:
        hint = close_match(bundle.target, targets) or "a newer dnc made it"
        raise TargetError(f"unknown target '{bundle.target}'", path, hint)
    kind = targets[bundle.target]
    fixed = [option.name for option in kind.known_options if option.name in options and not option.at_load]
    if fixed:
        raise TargetError(f"{fixed[0]} is built into the engine", path, f"`dnc compile --option {fixed[0]}=…`")
    target = kind({**bundle.options, **options})
    missing = target.missing_to_open()
    if missing:
        raise TargetError(f"target {target.name} needs {missing}, which is not installed", path, target.remedy())
    return Engine(path, bundle, target, threads, options)


class Engine:
    """A network ready to run. One engine may be used from several threads."""

    def __init__(
        self,
        folder: Path,
        bundle: Bundle,
        target: Target,
        threads: int | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.bundle = bundle
        self._target = target
        self._threads = threads
        self._options = dict(options or {})
        self._opened: Session | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<dnc.Engine {self.bundle.name} for {self.bundle.target} at {self.folder}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled, as multiprocessing does it, an engine is its folder: it is opened again over there."""
        return partial(load, threads=self._threads, **self._options), (self.folder.absolute(),)

    @property
    def session(self) -> Session:
        """The opened engine."""
        with self._lock:
            if self._opened is None:
                self._opened = self._target.open(self.folder, self._threads)
            return self._opened

    @property
    def device(self) -> str:
        """What the engine runs on, in its library's words."""
        return self.session.device

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes; empty if none were given."""
        return self.bundle.labels

    def __call__(
        self, image: Image | Sequence[Image], *, confidence: float = 0.25, iou: float = 0.45, top: int = 5
    ) -> Any:
        """What an image shows, or a list of that for a list of images.

        Args:
            image: see `Image`; a list of images runs as one batch where the engine takes it.
            confidence: detections under it are left out (Darknet's -thresh).
            iou: overlap over which non-maximum suppression drops a box (Darknet's nms).
            top: how many classes a classifier gives.

        Returns:
            Detections by descending confidence, or the `top` classes.

        Raises:
            ImageError: an image cannot be read.
        """
        single = not isinstance(image, list | tuple)
        given: Sequence[Any] = [image] if single else image  # type: ignore[assignment]
        images = [self._pixels(item) for item in given]
        if not images:
            return []
        results: list[Result] = []
        for batch in self._batches(images):
            inputs, prepared = self._prepare(batch, confidence, iou)
            outputs = self.session.run({**inputs, **self._states(len(inputs["input"]), {})})
            results += [
                self._postprocess(pixels, position, outputs, confidence, iou, top)
                for position, pixels in enumerate(batch[:prepared])
            ]
        return results[0] if single else results

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
        dtype = np.uint8 if self.bundle.input_dtype == "uint8" else np.float32
        try:
            x = np.ascontiguousarray(array, dtype)
        except (TypeError, ValueError) as error:
            raise DncError(f"the input is no array of numbers: {error}", self.folder) from error
        if dtype == np.uint8 and np.asarray(array).dtype != np.uint8:
            raise DncError("the engine takes pixels, uint8", self.folder, "it was compiled with --input u8")
        wanted = self.bundle.input_shape
        single = x.ndim == len(wanted)
        if single:
            x = x[None]
        fits = x.shape[1:] == wanted if dtype == np.float32 else x.ndim == 4 and x.shape[3] == wanted[0]
        size = self.bundle.batch
        if not fits or (isinstance(size, int) and len(x) != size):
            want = ", ".join(map(str, (size, *wanted) if dtype == np.float32 else (size, "height", "width", wanted[0])))
            raise DncError(f"the input has shape {np.shape(array)}, the engine wants ({want})", self.folder)
        own = states if states is not None else {}
        outputs = self.session.run({"input": x, **self._states(len(x), own), **self._thresholds(0.25, 0.45, x)})
        count = len(self.bundle.outputs)
        for name, state in zip(self.bundle.states, outputs[count:], strict=True):
            own[name] = state
        # Detections of a whole batch are one list, which has no batch axis.
        batched = [single and name != "detections" for name in self.bundle.outputs]
        return [output[0] if drop else output for drop, output in zip(batched, outputs[:count], strict=True)]

    def _pixels(self, image: Image) -> npt.NDArray[np.uint8]:
        if self.bundle.preprocessing is None:
            shape = ", ".join(map(str, self.bundle.input_shape))
            raise DncError("this network takes no images", self.folder, f"use forward() with an array (N, {shape})")
        if not self.bundle.heads:
            what = "this network has no head that gives boxes or classes"
            raise DncError(what, self.folder, "use forward(), which gives its last layer's output")
        if isinstance(image, str | PathLike | bytes):
            return read_image(image, self.bundle.preprocessing.channels)
        if hasattr(image, "convert"):
            # A PIL image may be of any mode; a palette's numbers are no pixels.
            image = image.convert({1: "L", 4: "RGBA"}.get(self.bundle.preprocessing.channels, "RGB"))
        return np.asarray(image)

    def _batches(self, images: list[npt.NDArray[np.uint8]]) -> list[list[npt.NDArray[np.uint8]]]:
        size = self.bundle.batch
        if isinstance(size, str):
            # Pixels of different sizes cannot be one array, which an engine with --input u8 takes.
            same = len({image.shape for image in images}) == 1
            size = len(images) if same or self.bundle.input_dtype == "float32" else 1
        return [images[start : start + size] for start in range(0, len(images), size)]

    def _prepare(
        self, images: list[npt.NDArray[np.uint8]], confidence: float, iou: float
    ) -> tuple[dict[str, npt.NDArray[Any]], int]:
        preprocessing = self.bundle.preprocessing
        assert preprocessing is not None
        if self.bundle.input_dtype == "uint8":
            x: npt.NDArray[Any] = np.stack([preprocessing.match_channels(image) for image in images])
        else:
            x = np.stack([preprocessing(image) for image in images])
        count, size = len(x), self.bundle.batch
        if isinstance(size, int) and count < size:
            x = np.concatenate([x, np.repeat(x[-1:], size - count, axis=0)])
        return {"input": x, **self._thresholds(confidence, iou, x, images)}, count

    def _thresholds(
        self, confidence: float, iou: float, x: npt.NDArray[Any], images: Sequence[npt.NDArray[np.uint8]] = ()
    ) -> dict[str, npt.NDArray[Any]]:
        """The further inputs of a graph with non-maximum suppression inside."""
        if self.bundle.decode != "graph+nms":
            return {}
        inputs = {"confidence": np.array([confidence], np.float32), "iou": np.array([iou], np.float32)}
        preprocessing = self.bundle.preprocessing
        boxes = np.array([[0, 0, 1, 1]] * len(x), np.float32)
        if preprocessing is not None and images:
            sizes = [(image.shape[1], image.shape[0]) for image in images]
            sizes += sizes[-1:] * (len(x) - len(sizes))
            transforms = [preprocessing.transform(*size) for size in sizes]
            boxes = np.array([(*transform.offset, *transform.ratio) for transform in transforms], np.float32)
        return {**inputs, **({"window": boxes} if "window" in self.bundle.extra_inputs else {})}

    def _states(
        self, count: int, states: Mapping[str, npt.NDArray[np.float32]]
    ) -> dict[str, npt.NDArray[np.float32]]:
        return {
            name: states[name] if name in states else np.zeros((count, *shape), np.float32)
            for name, shape in self.bundle.states.items()
        }

    def _postprocess(
        self,
        image: npt.NDArray[np.uint8],
        position: int,
        outputs: Sequence[npt.NDArray[Any]],
        confidence: float,
        iou: float,
        top: int,
    ) -> Result:
        bundle = self.bundle
        boxes = [head for head in bundle.heads if isinstance(head, BoxHead)]
        preprocessing = bundle.preprocessing
        transform = preprocessing.transform(image.shape[1], image.shape[0]) if preprocessing else None
        if bundle.decode != "host":
            # After them come layers that were kept, and states.
            decoded = outputs[: 1 if bundle.decode == "graph+nms" else 2]
            return from_graph(
                boxes[-1], decoded, position, confidence=confidence, iou=iou, transform=transform, labels=bundle.labels
            )
        named = dict(zip(bundle.outputs, outputs, strict=False))
        own = {head.output: named[head.output][position] for head in bundle.heads}
        if boxes:
            return detections(
                boxes, own, confidence=confidence, iou=iou, transform=transform, labels=bundle.labels
            )
        head = bundle.heads[-1]
        assert isinstance(head, ClassifierHead)
        return head.top_k(own[head.output], top, bundle.labels)
