"""A small detector, its calibration and its images, in which faults are planted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dnc.compiler.options import CompileOptions
from dnc.compiler.source import preprocessing_for
from dnc.darknet.network import Network
from dnc.darknet.weights import write_weights
from dnc.diagnosis.diagnosing import Wanted, diagnose
from dnc.diagnosis.report import Diagnosis
from dnc.graph.verification import photograph
from dnc.quantization.collecting import calibrate

_CONV = "[convolutional]\nbatch_normalize=1\nfilters={}\nsize={}\nstride={}\npad=1\nactivation={}\n"
NET = (
    "[net]\nwidth=32\nheight=32\nchannels=3\n"
    + _CONV.format(8, 3, 2, "leaky")
    + _CONV.format(16, 1, 1, "swish")
    + _CONV.format(16, 3, 1, "leaky")
    + "[shortcut]\nfrom=-2\nactivation=linear\n"
    + _CONV.format(16, 1, 1, "leaky")
    + _CONV.format(16, 1, 1, "leaky")
    + "[convolutional]\nfilters=14\nsize=1\nactivation=linear\n"
    + "[yolo]\nmask=0,1\nanchors=10,14, 23,27\nclasses=2\nnum=2\n"
)
"""Whatever stands between two of its products, so that some channels can be equalized and some cannot."""

Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass
class Ward:
    """A network and what is done to it."""

    folder: Path

    @property
    def cfg(self) -> Path:
        return self.folder / "net.cfg"

    @property
    def table(self) -> Path:
        return self.folder / "net.calibration.json"

    @property
    def images(self) -> Path:
        return self.folder / "images"

    def change_weights(self, change: Callable[[list[Arrays]], None]) -> None:
        """Changes the arrays of its layers, and calibrates it anew."""
        network = Network.load(self.cfg, self.cfg.with_suffix(".weights"))
        arrays = [{name: array.copy() for name, array in each.items()} for each in network.arrays]
        change(arrays)
        with self.cfg.with_suffix(".weights").open("wb") as file:
            write_weights(file, network.layers, tuple(arrays))
        self.calibrate()

    def calibrate(self) -> None:
        network = Network.load(self.cfg, self.cfg.with_suffix(".weights"))
        preprocessing = preprocessing_for(network, self.cfg.with_suffix(".weights"))
        images = sorted(self.images.iterdir())
        calibrate(network, preprocessing, images, method="minmax", source=str(self.images)).write(self.table)

    def change_range(self, name: str, by: float) -> None:
        """Makes a range of the calibration larger."""
        values = json.loads(self.table.read_text("utf-8"))
        known = values["ranges"][name]
        known["low"], known["high"] = known["low"] * by, known["high"] * by
        known["threshold"] = max(-known["low"], known["high"])
        self.table.write_text(json.dumps(values), "utf-8")

    def diagnose(self, *, wanted: Wanted | None = None, against: Path | None = None, **options: Any) -> Diagnosis:
        """Diagnoses it, on target onnx in 8 bits unless told otherwise; evaluates nothing."""
        told = {"target": "onnx", "precision": "int8", "calibration": self.table, **options}
        return diagnose(self.cfg, None, CompileOptions(**told), wanted=wanted or Wanted(2, 2, 2, 0), against=against)


@pytest.fixture
def ward(tmp_path: Path) -> Ward:
    """A healthy one."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        Image.fromarray(np.roll(photograph(), 40 * number, axis=1)).resize((48, 40)).save(images / f"{number}.png")
    found = Ward(tmp_path)
    found.cfg.write_text(NET, "utf-8")
    network = Network.load(found.cfg).with_random_weights(1)
    with found.cfg.with_suffix(".weights").open("wb") as file:
        write_weights(file, network.layers, network.arrays)
    found.calibrate()
    return found
