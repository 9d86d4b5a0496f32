"""The site as `make docs` builds it, of a copy of docs/, so that nothing is left there."""

from __future__ import annotations

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
    place = tmp_path_factory.mktemp("docs")
    left = {str(ROOT / "docs" / folder) for folder in made.FOLDERS}
    shutil.copytree(
        ROOT / "docs",
        place / "docs",
        ignore=lambda folder, names: {name for name in names if str(Path(folder) / name) in left},
    )
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-c", str(ROOT / "docs")]
    built = subprocess.run([*command, place / "docs", place / "site"], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return place / "site"
