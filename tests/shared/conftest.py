"""The suite of what is not ours to publish: `pytest -m shared`, where ../shared lies beside the repository.

That folder has trained weights (models/), 128 images of COCO's val2017 with their labels (coco128/), 500 of ImageNet
(imagenet1k-sample/), and all that Darknet computed of the former (golden/). What can be shown without them is shown in
the other tests, with tests/golden/.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dnc.files.places import cache_dir
from tests import ROOT

SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session", autouse=True)
def shared() -> Path:
    """The folder."""
    if not SHARED.is_dir():
        pytest.skip("../shared is not there")
    return SHARED


@pytest.fixture(scope="session")
def images(shared: Path) -> Path:
    """COCO's."""
    return shared / "coco128" / "images" / "val2017"


@pytest.fixture(scope="session")
def trained(shared: Path) -> Callable[[str], tuple[Path, Path]]:
    """The cfg and the weights of a network: those of models/, or official ones in the zoo's cache."""

    def files(name: str) -> tuple[Path, Path]:
        cfg = shared / "models" / f"{name}.cfg"
        if cfg.is_file():
            return cfg, cfg.with_suffix(".weights")
        weights = cache_dir() / f"{name}.weights"
        if not weights.is_file():
            pytest.skip(f"needs {weights}: `dnc zoo fetch {name}`")
        return ROOT / "cfg" / f"{name}.cfg", weights

    return files
