"""An engine whose classes have names, and an image; what examples are run and loaded by."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
import pytest

import dnc
from tests import ROOT
from tests.networks import TINY, write_network

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="session")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes with names."""
    cfg = write_network(tmp_path_factory.mktemp("network"), "net", TINY, seed=3)
    cfg.with_suffix(".names").write_text("cat\ndog\n")
    return cfg


@pytest.fixture(scope="session")
def engine(cfg: Path) -> dnc.Engine:
    pytest.importorskip("openvino", exc_type=ImportError)
    return dnc.compile(cfg, target="openvino", out=cfg.with_name("e"), verify=False)


@pytest.fixture
def image(tmp_path: Path) -> npt.NDArray[np.uint8]:
    """Pixels, which a.ppm and a.png have too."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.ppm")
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return pixels


def load(name: str) -> ModuleType:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
