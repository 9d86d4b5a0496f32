"""darknet-compiler's wheel: all that belongs into it is there, and it works in an environment of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import dnc
from dnc.runtime.package import package
from tests import ROOT
from tests.networks import TINY, write_network
from tests.packaging.conftest import DEPENDENCIES, python

pytestmark = pytest.mark.slow


def sources() -> set[str]:
    """What the wheel has of this checkout, by its names there."""
    found: set[str] = set()
    for folder in ("dnc", "passes", "targets"):
        place = "" if folder == "dnc" else "dnc/"
        files = (path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file())
        found |= {f"{place}{path}" for path in files if "__pycache__" not in path.parts}
    found |= {f"dnc/cfg/{path.name}" for path in (ROOT / "cfg").iterdir() if path.suffix in (".cfg", ".py")}
    inside = (path.relative_to(ROOT / "embed") for path in (ROOT / "embed").rglob("*") if path.is_file())
    found |= {f"dnc/embed/{path}" for path in inside}
    # The licence is in the wheel's metadata.
    return found - {"dnc/zoo/labels/LICENSE-WordNet"}


def build(environment: Path, what: Path, out: Path) -> Path:
    """`pip wheel --no-deps`; the wheel."""
    result = python(environment, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", out, what)
    if result.returncode and "No matching distribution found for setuptools" in result.stderr:
        pytest.skip("setuptools cannot be fetched to build with")
    assert result.returncode == 0, result.stderr
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(place: Path, environment: Path) -> Path:
    return build(environment, place / "source", place / "wheel")


def names(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def test_contents(wheel: Path) -> None:
    """Every module, pass, target and cfg, labels and what else is read, and nothing else."""
    assert names(wheel) == sources()


def test_metadata(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    text = archive.read(metadata).decode()
    assert "Name: darknet-compiler\n" in text
    assert f"Version: {dnc.__version__}\n" in text
    assert "License-Expression: MIT\n" in text
    assert {"Typing :: Typed", "Topic :: Software Development :: Compilers"} <= set(
        re.findall(r"^Classifier: (.*)$", text, re.MULTILINE)
    )
    assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    base = set(re.findall(r"^Requires-Dist: ([\w.-]+)(?!.*extra ==)", text, re.MULTILINE))
    # The runtime's alone; an engine's library is an extra: there are several, of which one may be installed.
    assert base == {"libstb", "numpy"}
    extras = set(re.findall(r"^Provides-Extra: (\S+)", text, re.MULTILINE))
    targets = {"onnx", "openvino", "cuda", "tvm"}
    assert targets | {f"runtime-{name}" for name in targets} | {"compiler", "myriad", "all", "dev"} <= extras


def test_one_version_number() -> None:
    """Written in dnc/__init__.py, and nowhere else: the rest reads it there."""
    files = [ROOT / "pyproject.toml", ROOT / "setup.py", *(ROOT / "embed").rglob("CMakeLists.txt")]
    files += [path for folder in ("dnc", "passes", "targets") for path in (ROOT / folder).rglob("*.py")]
    number = re.compile(rf"version\w* *(=|==|:)? *\"?{re.escape(dnc.__version__)}", re.IGNORECASE)
    found = [path for path in files if number.search(path.read_text(encoding="utf-8"))]
    assert found == [ROOT / "dnc" / "__init__.py"]


def test_editable(place: Path, environment: Path) -> None:
    """`pip install -e`: what stands beside dnc/ is found inside it, as are the files that are no modules."""
    venv.create(place / "editable", with_pip=True)
    result = python(place / "editable", "-m", "pip", "install", "--no-deps", "--quiet", "-e", place / "source")
    if result.returncode and "No matching distribution found for setuptools" in result.stderr:
        pytest.skip("setuptools cannot be fetched to build with")
    assert result.returncode == 0, result.stderr
    (packages,) = (place / "editable").glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(DEPENDENCIES)
    code = """
import dnc, dnc.passes.fold_batchnorm, dnc.targets.tvm.emit
from dnc.darknet.cfg import bundled_cfg
from dnc.cli import embed
print(dnc.__file__, dnc.passes.__file__, bundled_cfg(sys.argv[1]), sep="\\n")
""".replace("import dnc,", "import sys\nimport dnc,")
    name = next(path.name for path in (ROOT / "cfg").glob("*.cfg"))
    result = python(place / "editable", "-c", code, name, cwd=place)
    assert result.stdout.split() == [
        str(place / "source" / part) for part in ("dnc/__init__.py", "passes/__init__.py", f"cfg/{name}")
    ], result.stderr


@pytest.fixture(scope="module")
def installed(place: Path, environment: Path, wheel: Path) -> Path:
    """The wheel, installed. Its dependencies are those of this environment."""
    result = python(environment, "-m", "pip", "install", "--no-deps", "--quiet", wheel)
    assert result.returncode == 0, result.stderr
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(DEPENDENCIES)
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
from dnc.darknet.cfg import bundled_cfg
cfgs = [len(dnc.Network.load(path).layers) for entry in zoo.entries() if (path := bundled_cfg(entry.cfg)).exists()]
print(json.dumps([sorted(passes), sorted(targets), len(zoo.entries()), cfgs]))
"""
    result = python(installed, "-c", code, cwd=folder)
    assert result.returncode == 0, result.stderr
    known_passes, known_targets, entries, layers = json.loads(result.stdout)
    assert "fold-batchnorm" in known_passes
    assert "onnx" in known_targets
    assert entries > 3
    assert len(layers) > 3
    write_network(folder, "tiny", TINY)
    result = subprocess.run([*command, "compile", "tiny.cfg"], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    code = "import dnc; print(dnc.load('tiny.engine').forward([[[0] * 16] * 16] * 3)[0].shape)"
    assert python(installed, "-c", code, cwd=folder).stdout == "(14, 8, 8)\n"


def test_this_environment_is_no_part_of_it(installed: Path) -> None:
    """The test above would prove little if dnc came from here."""
    result = python(installed, "-c", "import dnc; print(dnc.__file__)", cwd="/")
    assert str(ROOT) not in result.stdout
    assert sys.prefix not in result.stdout


COMPILER = ("click", "onnx", "onnx-ir", "pillow", "rich")
"""What an app that runs engines need not have."""


@pytest.mark.network
@pytest.mark.parametrize(("target", "library"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_runtime_alone(target: str, library: str, place: Path, wheel: Path, tmp_path: Path) -> None:
    """`pip install darknet-compiler[runtime-TARGET]` in an environment of its own: numpy, the decoder of images and the
    engine's library; a folder and a package give this environment's boxes, from a JPEG file on."""
    pytest.importorskip(library)
    cfg = write_network(tmp_path, "tiny", TINY)
    engine = dnc.compile(cfg, target=target, out=tmp_path / "tiny.engine")
    package(engine.folder, tmp_path / "tiny.dnc")
    photograph = ROOT / "dnc" / "graph" / "photograph.jpg"
    expected = [box.to_json() for box in engine.detect(photograph, confidence=0.1)]
    assert expected
    venv.create(tmp_path / "venv", with_pip=True)
    result = python(tmp_path / "venv", "-m", "pip", "install", "--quiet", f"{wheel}[runtime-{target}]")
    if result.returncode:
        pytest.skip(f"{library} cannot be fetched")
    listed = json.loads(python(tmp_path / "venv", "-m", "pip", "list", "--format=json").stdout)
    installed = {each["name"].lower() for each in listed}
    assert {"numpy", "libstb", library} <= installed
    assert not {*COMPILER, "sympy"} & installed
    code = """
import asyncio, json, sys, dnc
for path in sys.argv[2:]:
    with dnc.load(path) as engine:
        found = engine.detect(sys.argv[1], confidence=0.1)
        assert list(engine.stream([sys.argv[1]] * 3, confidence=0.1)) == [found] * 3
        assert asyncio.run(engine.detect_async(sys.argv[1], confidence=0.1)) == found
    print(json.dumps([box.to_json() for box in found]))
"""
    clean = {"DNC_CACHE": str(tmp_path / "cache")}
    found = python(tmp_path / "venv", "-c", code, photograph, engine.folder, tmp_path / "tiny.dnc", cwd="/", more=clean)
    assert found.returncode == 0, found.stderr
    for line in found.stdout.splitlines():
        for box, right in zip(json.loads(line), expected, strict=True):
            assert box["name"] == right["name"]
            # Another version of a library may round otherwise.
            assert box["confidence"] == pytest.approx(right["confidence"], abs=1e-4)
            assert box["pixels"] == pytest.approx(right["pixels"], abs=1)
    command = subprocess.run([tmp_path / "venv" / "bin" / "dnc", "info", "x"], capture_output=True, text=True)
    only = 'only the runtime is installed; the commands need: pip install "darknet-compiler[compiler]"'
    assert (command.returncode, command.stdout, command.stderr) == (1, "", f"dnc: error: {only}\n")
    # What stb_image does not read says what to install.
    (tmp_path / "bad.jpg").write_bytes(photograph.read_bytes()[:5000])
    code = "import dnc, sys; dnc.load(sys.argv[1]).detect(sys.argv[2])"
    found = python(tmp_path / "venv", "-c", code, engine.folder, tmp_path / "bad.jpg", cwd="/")
    assert "ImageError: cannot read the image: it is damaged" in found.stderr
    assert "pip install pillow" in found.stderr
