"""What the tests of target cuda share: an engine, which takes long to compile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import dnc
from dnc.darknet.network import Network
from tests.networks import NETWORKS, write_network
from tests.targets.cuda.emulation import make_driver, make_nvcc


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an engine for sm_75 and sm_87, an image, and the emulated GPU."""
    folder = tmp_path_factory.mktemp("gpu")
    cfg = write_network(folder, "yolo", NETWORKS["yolo"])
    make_driver(folder)
    options = {"backend": "tvm", "arch": "sm_87,sm_75", "compiler": str(make_nvcc(folder, folder))}
    dnc.compile(cfg, out=folder / "e", target="cuda", options=options)
    shape = Network.load(cfg).input_shape
    np.save(folder / "image.npy", np.random.default_rng(0).random(shape, dtype=np.float32))
    return folder
