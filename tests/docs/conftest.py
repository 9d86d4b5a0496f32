"""The site as `make docs` builds it, of a copy of docs/, so that nothing is left there."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from docs._ext import made
from tests import ROOT


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site."""
    for library in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(library)
    # Once for all workers: the first builds it, and the others wait.
    shared = tmp_path_factory.getbasetemp()
    place = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "docs"
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "site").exists():
            _build(place)
    return place / "site"


def _build(place: Path) -> None:
    left = {str(ROOT / "docs" / folder) for folder in made.FOLDERS}
    shutil.copytree(
        ROOT / "docs",
        place / "docs",
        ignore=lambda folder, names: {name for name in names if str(Path(folder) / name) in left},
        dirs_exist_ok=True,
    )
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-c", str(ROOT / "docs")]
    built = subprocess.run([*command, place / "docs", place / "built"], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (place / "built").rename(place / "site")
