"""The wheel: all that belongs into it is there, and it works in an environment of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from dnc.weights import write_weights
from tests.networks import TINY

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.slow


def sources() -> set[str]:
    """What the wheel has of this checkout, by its names there."""
    found = {f"dnc/{path.relative_to(ROOT / 'dnc')}" for path in (ROOT / "dnc").rglob("*.py")}
    for folder, package in (("passes", "passes"), ("targets", "targets")):
        found |= {f"dnc/{package}/{path.name}" for path in (ROOT / folder).glob("*.py")}
    found |= {f"dnc/cfgs/{path.name}" for path in (ROOT / "cfg").glob("*.cfg")}
    found |= {f"dnc/data/{path.name}" for path in (ROOT / "dnc" / "data").iterdir() if path.is_file()}
    return found | {"dnc/zoo.json"}


def python(environment: Path, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [str(environment / "bin" / "python"), *map(str, arguments)]
    return subprocess.run(command, env=clean, capture_output=True, text=True, **options)  # type: ignore[call-overload, no-any-return]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, without what building or testing left there; a folder to work in beside it."""
    place = tmp_path_factory.mktemp("packaging")
    left = ("build", "dist", "demo", "*.egg-info", "__pycache__", "*.engine", ".*")
    shutil.copytree(ROOT, place / "source", symlinks=True, ignore=shutil.ignore_patterns(*left))
    return place


def build(environment: Path, what: Path, out: Path) -> Path:
    """`pip wheel --no-deps`; the wheel."""
    result = python(environment, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", out, what)
    if result.returncode and "No matching distribution found for setuptools" in result.stderr:
        pytest.skip("setuptools cannot be fetched to build with")
    assert result.returncode == 0, result.stderr
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def environment(place: Path) -> Path:
    """An environment with pip alone."""
    venv.create(place / "venv", with_pip=True)
    return place / "venv"


@pytest.fixture(scope="module")
def wheel(place: Path, environment: Path) -> Path:
    return build(environment, place / "source", place / "wheel")


def names(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def test_contents(wheel: Path) -> None:
    """Every module, pass, target and cfg, what is in dnc/data, and nothing else."""
    assert names(wheel) == sources()


def test_metadata(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    text = archive.read(metadata).decode()
    assert "Name: darknet-compiler\n" in text
    assert "License-Expression: MIT\n" in text
    assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    base = set(re.findall(r"^Requires-Dist: ([\w.-]+)(?!.*extra ==)", text, re.MULTILINE))
    # onnxruntime is an extra: there are several, of which one may be installed.
    assert not any(name.startswith("onnxruntime") for name in base)
    assert {"click", "numpy", "onnx", "onnx-ir", "rich"} <= base


def test_source_distribution(place: Path, environment: Path, wheel: Path) -> None:
    """What is on PyPI beside the wheel makes the same wheel."""
    result = python(environment, "-m", "pip", "install", "--quiet", "setuptools>=77")
    if result.returncode:
        pytest.skip("setuptools cannot be fetched to build with")
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    result = python(environment, "-c", code, place / "sdist", cwd=place / "source")
    assert result.returncode == 0, result.stderr
    (archive,) = (place / "sdist").glob("*.tar.gz")
    assert names(build(environment, archive, place / "again")) == names(wheel)


@pytest.fixture(scope="module")
def installed(place: Path, environment: Path, wheel: Path) -> Path:
    """The wheel, installed. Its dependencies are those of this environment: a path, which brings no editable dnc."""
    result = python(environment, "-m", "pip", "install", "--no-deps", "--quiet", wheel)
    assert result.returncode == 0, result.stderr
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return environment


def test_works(installed: Path, place: Path) -> None:
    """Imported from the wheel; the command compiles a network, finds the zoo's cfgs and labels, and runs an engine."""
    folder = place / "work"
    folder.mkdir()
    result = python(installed, "-c", "import dnc, dnc.passes; print(dnc.__file__, dnc.passes.__file__)", cwd=folder)
    assert result.stdout.count(str(installed)) == 2, result.stderr
    command = [str(installed / "bin" / "dnc")]
    assert "dnc compile" in subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    code = """
import json, sys
import dnc
from dnc.passes import passes
from dnc.targets import targets
from dnc import zoo
cfgs = [len(dnc.Network.load(entry.cfg).layers) for entry in zoo.entries() if zoo.find_cfg(entry.cfg).exists()]
print(json.dumps([sorted(passes), sorted(targets), len(zoo.entries()), cfgs]))
"""
    result = python(installed, "-c", code, cwd=folder)
    assert result.returncode == 0, result.stderr
    known_passes, known_targets, entries, layers = json.loads(result.stdout)
    assert "fold-batchnorm" in known_passes
    assert "onnx" in known_targets
    assert entries > 3
    assert len(layers) > 3
    from dnc.network import Network

    network = Network.parse(TINY).with_random_weights(0)
    (folder / "tiny.cfg").write_text(TINY)
    with (folder / "tiny.weights").open("wb") as file:
        write_weights(file, network.layers, network.arrays)
    result = subprocess.run([*command, "compile", "tiny.cfg"], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    code = "import dnc; print(dnc.load('tiny.engine').forward([[[0] * 16] * 16] * 3)[0].shape)"
    assert python(installed, "-c", code, cwd=folder).stdout == "(14, 8, 8)\n"


def test_this_environment_is_no_part_of_it(installed: Path) -> None:
    """The test above would prove little if dnc came from here."""
    result = python(installed, "-c", "import dnc; print(dnc.__file__)", cwd="/")
    assert str(ROOT) not in result.stdout
    assert sys.prefix not in result.stdout
