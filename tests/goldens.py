"""Darknet's own numbers, from tests/golden/, whose README.md says what each file is and how it was made.

Nothing else reads that folder. Where dnc computes an image or a network of it, the functions here do so and compare.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from dnc.darknet.layers.base import Array
from dnc.darknet.network import Network
from dnc.darknet.reference import run_all
from dnc.darknet.weights import write_weights
from dnc.runtime.decoding import Detection
from dnc.runtime.engine import Engine
from dnc.runtime.images import read_image
from tests import ROOT

__all__ = [
    "FOLDER",
    "IMAGES",
    "INVERTED",
    "MICRO",
    "PHOTOGRAPH",
    "TRAINED",
    "TWO_CHANNELS",
    "WHOLE",
    "Box",
    "Micro",
    "Whole",
    "boxes",
    "detections",
    "difference",
    "differences",
    "every_layer",
    "frames",
    "heads",
    "inputs",
    "micro",
    "misses",
    "reference",
    "turned",
    "whole",
    "write_network",
]

FOLDER = ROOT / "tests" / "golden"

MICRO = sorted(path.stem for path in (FOLDER / "micro").glob("*.npz"))
"""Networks of one feature each, of which every layer is recorded."""
WHOLE = sorted(path.stem for path in (FOLDER / "networks").glob("*.npz"))
"""Networks of cfg/ with random weights, of which the heads are recorded, for the photograph."""
PHOTOGRAPH = ROOT / "dnc" / "graph" / "photograph.jpg"
"""What Darknet saw for `whole`, `inputs` and the detections of WHOLE."""
TRAINED = sorted(path.stem for path in (FOLDER / "heads").glob("*.npz"))
"""Trained detectors, of which heads and detections are recorded, but which are not here themselves."""
IMAGES = ("000000000139", "000000000285", "000000000632")
"""Those of COCO's val2017 that `heads` and the detections of TRAINED are of."""

TWO_CHANNELS = FOLDER / "two-channel"
"""two.cfg, two.weights and la.png; the detections have the folder's name, and are over 0.4."""

INVERTED = {("xnor", 0), ("xnor", 1), ("xnor", 2), ("xnor_1x1", 0)}
"""Micro networks and layers of which the recorded numbers are wrong, or follow what is: see
`test_xnor_of_the_library`."""


@dataclass(frozen=True)
class Micro:
    """A network of a few layers, and what Darknet computed of it."""

    name: str
    cfg: str
    weights: bytes
    input: Array
    layers: dict[int, Array]
    """The output of every layer, in Darknet's own shape."""

    @property
    def path(self) -> Path:
        """The file, which `dnc compare` reads too."""
        return FOLDER / "micro" / f"{self.name}.npz"

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Writes the cfg and the weights."""
        cfg, weights = folder / f"{self.name}.cfg", folder / f"{self.name}.weights"
        cfg.write_text(self.cfg, encoding="utf-8")
        weights.write_bytes(self.weights)
        return cfg, weights


@dataclass(frozen=True)
class Whole:
    """A whole network with random weights, and what Darknet computed of the photograph."""

    name: str
    cfg: str
    sha256: str
    """Of the .weights file."""
    layers: dict[int, Array]
    """The outputs of some layers."""

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Writes the cfg and the weights, which must be those that Darknet was given."""
        cfg, weights = write_network(self.name, self.cfg, folder)
        assert hashlib.sha256(weights.read_bytes()).hexdigest() == self.sha256, "Darknet had other weights"
        return cfg, weights


def micro(name: str) -> Micro:
    """One of MICRO."""
    with np.load(FOLDER / "micro" / f"{name}.npz") as file:
        return Micro(name, str(file["cfg"]), file["weights"].tobytes(), file["input"], _layers(file))


def whole(name: str) -> Whole:
    """One of WHOLE."""
    with np.load(FOLDER / "networks" / f"{name}.npz") as file:
        return Whole(name, str(file["cfg"]), str(file["sha256"]), _layers(file))


def heads(name: str, image: str) -> dict[int, Array]:
    """The maps of one of TRAINED, as activated by its [yolo] layers, for one of IMAGES. Cells whose objectness is 0.01
    or less are zero."""
    with np.load(FOLDER / "heads" / f"{name}.npz") as file:
        return _layers(file, f"{image}_")


def inputs() -> dict[str, Array]:
    """By the mode of preprocessing, what Darknet made of the photograph for an input of 160 x 96: (C, H, W)."""
    with np.load(FOLDER / "preprocess.npz") as file:
        return dict(file)


def _layers(file: Mapping[str, Array], prefix: str = "") -> dict[int, Array]:
    """The arrays whose name is the prefix and layerNNN, by NNN."""
    prefix += "layer"
    return {int(key.removeprefix(prefix)): file[key] for key in sorted(file) if key.startswith(prefix)}


def frames(name: str) -> list[dict[str, Any]]:
    """The JSON that `detector test -out` wrote: of TRAINED one frame for each of IMAGES, of WHOLE the photograph's, of
    "remembering", a network with memory, one for each of `turned`."""
    found: list[dict[str, Any]] = json.loads((FOLDER / "detections" / f"{name}.json").read_text(encoding="utf-8"))
    return found


def turned(folder: Path) -> list[Path]:
    """Writes the photograph, turned to the left by 0 to 3 quarters, as four files."""
    pixels = read_image(PHOTOGRAPH)
    paths = [folder / f"turned{quarters}.png" for quarters in range(4)]
    for quarters, path in enumerate(paths):
        Image.fromarray(np.ascontiguousarray(np.rot90(pixels, quarters))).save(path)
    return paths


class Box(NamedTuple):
    """One detection of either side."""

    class_id: int
    confidence: float
    edges: npt.NDArray[np.float64]
    """left, top, right, bottom, as fractions of the image."""

    @staticmethod
    def of(class_id: int, confidence: float, x: float, y: float, w: float, h: float) -> Box:
        """The box around a center."""
        return Box(class_id, confidence, np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2]))


def detections(found: Sequence[Mapping[str, Any]]) -> dict[str, list[Box]]:
    """Darknet's detections by the stem of the image's name, out of frames."""
    keys = ("center_x", "center_y", "width", "height")
    return {
        Path(frame["filename"]).stem: [
            Box.of(item["class_id"], item["confidence"], *(item["relative_coordinates"][key] for key in keys))
            for item in frame["objects"]
        ]
        for frame in found
    }


def boxes(found: Sequence[Detection]) -> list[Box]:
    """Our detections."""
    return [Box.of(d.class_id, d.confidence, d.center_x, d.center_y, d.width, d.height) for d in found]


def misses(some: Sequence[Box], others: Sequence[Box], over: float, confidence: float, edge: float) -> list[Box]:
    """Those of `some` over a confidence that no box of `others`, whatever its own, is near enough to.

    One side's 0.2003 is the other side's 0.1996, so the threshold holds for the one side alone.
    """

    def near(a: Box, b: Box) -> bool:
        close = a.class_id == b.class_id and abs(a.confidence - b.confidence) <= confidence
        return close and float(np.abs(a.edges - b.edges).max()) <= edge

    return [a for a in some if a.confidence > over and not any(near(a, b) for b in others)]


def reference(network: Network, x: Array) -> dict[int, Array]:
    """All layers of one image by the reference."""
    return {index: y[0] for index, y in run_all(network, x[None])}


def every_layer(engine: Engine, x: Array) -> dict[int, Array]:
    """The outputs of one image by an engine; all layers if it was compiled with keep_layers."""
    indices = [int(name.removeprefix("layer")) for name in engine.manifest.outputs]
    return {index: y[0] for index, y in zip(indices, engine.forward(x[None]), strict=True)}


def difference(got: Array, golden: Array) -> float:
    """The largest one, relative to the largest value."""
    assert got.shape == golden.shape
    return float(np.abs(got - golden).max() / np.abs(golden).max())


def differences(golden: Micro, got: Mapping[int, Array]) -> Iterator[tuple[str, float]]:
    """Each layer that can be compared, as a text, and its `difference`."""
    layers = Network.parse(golden.cfg).layers
    assert list(golden.layers) == list(range(len(layers)))
    for layer in layers:
        expected, y = golden.layers[layer.index], got[layer.index]
        if layer.name == "cost":
            # Darknet without a truth to compare with never fills this memory.
            assert y.shape == expected.shape
            assert not expected.any()
            continue
        if (golden.name, layer.index) in INVERTED:
            continue
        if getattr(layer, "antialiasing", 0):
            # Recorded with the shape before the blur, whose result is at the start of that memory.
            expected = expected.ravel()[: y.size].reshape(y.shape)
        yield f"layer {layer.index} [{layer.name}]", difference(y, expected)


def write_network(name: str, cfg: str, folder: Path) -> tuple[Path, Path]:
    """Writes a cfg and random weights: the same ones wherever and whenever, since numpy promises the bits of a PCG64
    and what is made of them here is exact but for one root, which IEEE 754 defines.

    Variances are between 0.5 and 1.5, scales between 0.8 and 1.2, biases and means between -0.2 and 0.2; weights are
    even between plus and minus the root of 6 / (the products in a sum), which keeps the size of what passes a ReLU.
    """
    path = folder / f"{name}.cfg"
    path.write_text(cfg, encoding="utf-8")
    network = Network.load(path)
    bits = np.random.PCG64(0)

    def array(kind: str, shape: tuple[int, ...]) -> Array:
        # 24 bits, which float32 holds: from -1 to 1.
        even = (bits.random_raw(math.prod(shape)) >> np.uint64(40)).reshape(shape) * 2.0**-23 - 1
        if kind == "variance":
            even = 1 + 0.5 * even
        elif kind == "scales":
            even = 1 + 0.2 * even
        elif kind in ("biases", "mean"):
            even = 0.2 * even
        else:
            even = even * math.sqrt(6 / math.prod(shape[1:]))
        return even.astype(np.float32)

    arrays = tuple({key: array(key, shape) for key, shape in layer.weights().items()} for layer in network.layers)
    with path.with_suffix(".weights").open("wb") as file:
        write_weights(file, network.layers, arrays)
    return path, path.with_suffix(".weights")
