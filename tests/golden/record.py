"""Records with Darknet itself what takes nothing but this repository: `python -m tests.golden.record DARKNET`.

DARKNET is a folder with darknet and libdarknet.so; README.md has the commands that build them. Writes preprocess.npz,
networks/ and the detections of these networks, and then SHA256SUMS; without a folder, that alone. Numbers that were
there before come out the same to the bit, or git shows it.
"""

from __future__ import annotations

import ctypes as c
import hashlib
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dnc.darknet.layers.base import Array
from dnc.darknet.network import Network
from tests import ROOT
from tests.goldens import FOLDER, PHOTOGRAPH, turned, write_network
from tests.networks import RECORDED


class Recorded(NamedTuple):
    """A network of cfg/, and how it is run."""

    source: str
    replaced: dict[str, str]
    """What is replaced in the cfg: it is made small, and not square."""
    threshold: float | None
    """Of boxes; None for a classifier."""


NETWORKS = {
    "enet-coco": Recorded("enet-coco", {"width=416": "width=160", "height=416": "height=192"}, 0.9),
    "yolov4-tiny": Recorded(
        "yolov4-tiny",
        {"width=416": "width=224", "height=416": "height=160", "channels=3": "channels=3\nletter_box=1"},
        0.8,
    ),
    # Darknet's CPU build computes zeros for relu6. Random weights give logits of some thousands.
    "mobilenetv2-leaky": Recorded(
        "mobilenetv2",
        {"=224": "=192", "relu6": "leaky", "[softmax]": "[softmax]\ntemperature=4000"},
        None,
    ),
}

SHIM = """#include "darknet.h"
float *output(network *net, int index, int *count) {
  *count = net->layers[index].outputs;
  return net->layers[index].output;
}
"""


class Image(c.Structure):
    """Darknet's image: channels, rows, columns, from 0 to 1."""

    _fields_ = [("w", c.c_int), ("h", c.c_int), ("c", c.c_int), ("data", c.POINTER(c.c_float))]

    def array(self) -> Array:
        """A copy."""
        return np.ctypeslib.as_array(self.data, (self.c, self.h, self.w)).copy()


class Darknet:
    """What is needed of libdarknet.so."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.folder, library = folder, folder / "libdarknet.so"
        (scratch / "shim.c").write_text(SHIM)
        shim, include = scratch / "shim.so", folder / "include"
        files = map(str, (scratch / "shim.c", library, "-o", shim))
        subprocess.run(["gcc", "-shared", "-fPIC", f"-I{include}", *files], check=True)
        self.library = c.CDLL(str(library), mode=c.RTLD_GLOBAL)
        for name in ("load_image_color", "resize_image", "letterbox_image", "resize_min", "crop_image"):
            getattr(self.library, name).restype = Image
        self.library.load_network_custom.restype = c.c_void_p
        self.library.network_predict_ptr.argtypes = [c.c_void_p, c.c_void_p]
        self._output = c.CDLL(str(shim)).output
        self._output.argtypes, self._output.restype = [c.c_void_p, c.c_int, c.c_void_p], c.POINTER(c.c_float)

    def preprocessed(self, mode: str, width: int, height: int) -> Array:
        """The photograph as `detector test` and `classifier predict` see it."""
        image = self.library.load_image_color(str(PHOTOGRAPH).encode(), 0, 0)
        if mode == "center-crop":
            image = self.library.resize_min(image, width)
            left, top = (image.w - width) // 2, (image.h - height) // 2
            found: Image = self.library.crop_image(image, left, top, width, height)
        else:
            resize = self.library.letterbox_image if mode == "letterbox" else self.library.resize_image
            found = resize(image, width, height)
        return found.array()

    def outputs(self, cfg: Path, weights: Path, x: Array) -> list[Array]:
        """The outputs of all layers of one input."""
        network = self.library.load_network_custom(str(cfg).encode(), str(weights).encode(), 0, 1)
        x = np.ascontiguousarray(x)
        self.library.network_predict_ptr(network, x.ctypes.data)
        found, count = [], c.c_int()
        for layer in Network.load(cfg).layers:
            values = self._output(network, layer.index, c.byref(count))
            found.append(np.ctypeslib.as_array(values, (count.value,)).reshape(layer.shape).copy())
        return found

    def detections(
        self, cfg: Path, weights: Path, threshold: float, images: Sequence[Path] = (PHOTOGRAPH,)
    ) -> list[dict[str, Any]]:
        """What `detector test` writes for these images in one process."""
        folder = cfg.parent
        names = ROOT / "dnc" / "zoo" / "labels" / "coco.names"
        (folder / "coco.data").write_text(f"names={names}\n")
        command: list[str | Path] = [self.folder / "darknet", "detector", "test", folder / "coco.data", cfg, weights]
        command += ["-thresh", str(threshold), "-dont_show", "-out", folder / "boxes.json"]
        paths = "".join(f"{path}\n" for path in images)
        pipes: dict[str, Any] = {"input": paths, "text": True, "stdout": subprocess.DEVNULL}
        subprocess.run(command, cwd=self.folder, check=True, **pipes)
        frames = json.loads((folder / "boxes.json").read_text())
        return [{**frame, "filename": path.name} for frame, path in zip(frames, images, strict=True)]


def save(path: Path, arrays: Mapping[str, Any]) -> None:
    """Writes an .npz, without the time, so that equal numbers are equal files."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.save(content, np.asarray(array))
            file.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue(), zipfile.ZIP_DEFLATED)


def write_frames(path: Path, frames: list[dict[str, Any]]) -> None:
    """Writes Darknet's JSON, an object a line."""
    texts = []
    for frame in frames:
        objects = ",\n".join(map(json.dumps, frame["objects"]))
        head = json.dumps({key: value for key, value in frame.items() if key != "objects"})
        texts.append(f'{head[:-1]}, "objects": [\n{objects}\n]}}')
    path.write_text("[" + ",\n".join(texts) + "]\n", encoding="utf-8")


def record(folder: Path) -> None:
    """Runs Darknet."""
    with tempfile.TemporaryDirectory() as scratch:
        darknet = Darknet(folder.resolve(), Path(scratch))
        modes = ("resize", "letterbox", "center-crop")
        save(FOLDER / "preprocess.npz", {mode: darknet.preprocessed(mode, 160, 96) for mode in modes})
        for name, (source, replaced, threshold) in NETWORKS.items():
            text = (ROOT / "cfg" / f"{source}.cfg").read_text(encoding="utf-8")
            for old, new in replaced.items():
                assert old in text
                text = text.replace(old, new)
            cfg, weights = write_network(name, text, Path(scratch))
            network = Network.load(cfg)
            mode = "center-crop" if threshold is None else "letterbox" if network.letter_box else "resize"
            _, height, width = network.input_shape
            outputs = darknet.outputs(cfg, weights, darknet.preprocessed(mode, width, height))
            heads = [layer.index for layer in network.layers if layer.name in ("yolo", "softmax")]
            arrays: dict[str, Any] = {"cfg": text, "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
            for index in sorted({*heads, *(head - 1 for head in heads)}):
                arrays[f"layer{index:03d}"] = outputs[index]
            save(FOLDER / "networks" / f"{name}.npz", arrays)
            if threshold is not None:
                write_frames(FOLDER / "detections" / f"{name}.json", darknet.detections(cfg, weights, threshold))
        cfg, weights = write_network("remembering", RECORDED, Path(scratch))
        found = darknet.detections(cfg, weights, 0.4, turned(Path(scratch)))
        write_frames(FOLDER / "detections" / "remembering.json", found)


def sums() -> str:
    """The digests of all recordings, for `sha256sum -c`."""
    files = sorted(path for path in FOLDER.rglob("*") if path.suffix in (".npz", ".json"))
    return "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(FOLDER).as_posix()}\n" for path in files
    )


if __name__ == "__main__":
    if sys.argv[1:]:
        record(Path(sys.argv[1]))
    (FOLDER / "SHA256SUMS").write_text(sums())
