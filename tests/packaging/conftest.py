"""Environments of their own, and what is installed into them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests import ROOT

DEPENDENCIES = "".join(f"{path}\n" for path in sys.path if path.endswith("site-packages"))
"""Where this environment has its libraries: a path, which brings no editable dnc."""


def python(
    environment: Path, *arguments: object, more: Mapping[str, str] | None = None, **options: object
) -> subprocess.CompletedProcess[str]:
    """Runs an environment's Python, which sees nothing of this one's variables."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | dict(more or {})
    command = [str(environment / "bin" / "python"), *map(str, arguments)]
    return subprocess.run(command, env=clean, capture_output=True, text=True, **options)  # type: ignore[call-overload, no-any-return]


def new_environment(place: Path, *packages: object) -> Path:
    """An environment with distributions, as files; their dependencies are those of this environment."""
    venv.create(place, with_pip=True)
    # The one that Python 3.11 puts there is too old, and would come before this environment's.
    python(place, "-m", "pip", "uninstall", "--yes", "--quiet", "setuptools")
    for package in packages:
        result = python(place, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", package)
        assert result.returncode == 0, result.stderr
    (site,) = place.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(DEPENDENCIES)
    return place


def built(*arguments: str, out: Path, source: Path = ROOT) -> dict[str, Path]:
    """A checkout's distributions, by python -m tools.packages: "darknet-compiler.whl", "darknet-runtime.tar.gz", ..."""
    pytest.importorskip("build.__main__")
    command = [sys.executable, "-m", "tools.packages", *arguments, "--out", str(out)]
    result = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = {}
    for path in out.iterdir():
        name, suffix = path.name.split("-")[0], ".whl" if path.suffix == ".whl" else ".tar.gz"
        found[name.replace("darknet_", "darknet-") + suffix] = path
    return found


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both distributions of Python, sdist and wheel."""
    return built("darknet-compiler", "darknet-runtime", out=tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, without what building or testing left there; a folder to work in beside it."""
    place = tmp_path_factory.mktemp("packaging")
    left = ("build", "dist", "demo", "*.egg-info", "__pycache__", "*.engine", ".*")
    shutil.copytree(ROOT, place / "source", symlinks=True, ignore=shutil.ignore_patterns(*left))
    return place


@pytest.fixture(scope="module")
def environment(place: Path) -> Path:
    """An environment with pip alone."""
    venv.create(place / "venv", with_pip=True)
    return place / "venv"
