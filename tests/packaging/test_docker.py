"""The Dockerfiles: in order, and what they name is there. Nothing here builds them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests import ROOT

DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))


def test_dockerfiles() -> None:
    assert [path.name.split(".")[0] for path in DOCKERFILES] == ["compile", "jetson", "runtime"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_lint(path: Path) -> None:
    """hadolint has nothing to say, of the shell in it neither."""
    tool = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if tool is None:
        pytest.skip("hadolint is not installed")
    result = subprocess.run([tool, "--no-color", str(path)], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_names(path: Path) -> None:
    """Extras that the distribution has, its own name, a user that is not root, and a version of each image."""
    text = path.read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    prefix = "" if "compile" in path.name else "runtime-"
    words = re.findall(r"\$\{wheel\}\[([\w,-]+)\]", text) + re.findall(r"^ARG EXTRA=(.*)", text, re.MULTILINE)
    assert words
    assert {f"{prefix}{extra}" for word in words for extra in word.split(",")} <= set(extras)
    assert f"docker build -f docker/{path.name} " in text
    assert "\nUSER 65534\n" in text
    images = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert images
    assert all(re.search(r":\d[\w.-]+$", image) for image in images)


def test_context_has_no_rubbish() -> None:
    """What git ignores in the root, docker is not sent, but for what the Dockerfiles install: wheels in dist/."""
    names = [line.strip("/") for line in (ROOT / ".gitignore").read_text().split()]
    ignored = {name for name in names if "/" not in name}
    docker = {line.removeprefix("**/").strip("/") for line in (ROOT / ".dockerignore").read_text().split()}
    texts = [path.read_text(encoding="utf-8") for path in DOCKERFILES]
    taken = {name for text in texts for name in re.findall(r"--mount=type=bind,source=(\w+)", text)}
    assert taken == {"dist"}
    assert not taken & docker
    assert ignored - docker - taken <= {".coverage"}
