"""Engines and images for the commands; made once."""

from __future__ import annotations

import shutil
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
    # "features" has neither boxes nor classes. Tiny is the last, for its .names would be looked at for the others too.
    networks = {name: NETWORKS[name] for name in ("classifier", "vector")}
    for name, text in {**networks, "features": TINY.partition("[yolo]")[0], "tiny": NETWORKS["tiny"]}.items():
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


@pytest.fixture
def folder(engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """tiny.cfg, tiny.weights, obj.data with three images to train on and one to validate with; the current folder."""
    for name in ("tiny.cfg", "tiny.weights"):
        shutil.copy(engines / name, tmp_path / name)
    generator = np.random.default_rng(0)
    for name in ("a", "b", "c", "d"):
        Image.fromarray(generator.integers(0, 256, (12, 20, 3), np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "train.txt").write_text("a.png\nb.png\nc.png\n", encoding="utf-8")
    (tmp_path / "valid.txt").write_text("d.png\n", encoding="utf-8")
    (tmp_path / "obj.data").write_text("classes = 2\ntrain = train.txt\nvalid = valid.txt\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path
