"""Engines and images for the commands; made once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dnc
from dnc.darknet.network import Network
from dnc.darknet.weights import write_weights
from tests.networks import NETWORKS, TINY


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with NAME.cfg, NAME.weights (random ones) and NAME.engine of some networks; not to be written to."""
    folder = tmp_path_factory.mktemp("engines")
    # "features" has neither boxes nor classes.
    networks = {name: NETWORKS[name] for name in ("tiny", "classifier", "vector")}
    for name, text in {**networks, "features": TINY.partition("[yolo]")[0]}.items():
        cfg = folder / f"{name}.cfg"
        cfg.write_text(text, encoding="utf-8")
        network = Network.load(cfg).with_random_weights(1)
        with cfg.with_suffix(".weights").open("wb") as file:
            write_weights(file, network.layers, network.arrays)
        if name == "tiny":
            cfg.with_suffix(".names").write_text("cat\nblack dog\n", encoding="utf-8")
        dnc.compile(cfg, target="onnx", out=folder / f"{name}.engine")
    return folder


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a.png, b.jpg and c.PNG, of different sizes, and notes.txt; not to be written to."""
    folder = tmp_path_factory.mktemp("photographs")
    generator = np.random.default_rng(3)
    for name, sides in (("a.png", (30, 40, 3)), ("b.jpg", (21, 17, 3)), ("c.PNG", (16, 16, 4))):
        Image.fromarray(generator.integers(0, 256, sides, np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no image", encoding="utf-8")
    return folder
