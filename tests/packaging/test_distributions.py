"""What would be published: complete, whole by the tools that registries have for it, the same bytes twice; and how the
two distributions of the package `dnc` live together."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import dnc
from dnc.files import installed
from tests import ROOT
from tests.networks import TINY, write_network
from tests.packaging.conftest import built, new_environment, python
from tools.packages import RUNTIME

pytestmark = pytest.mark.slow


def members(wheel: Path) -> dict[str, bytes]:
    """The files of a wheel, without its metadata."""
    archive = zipfile.ZipFile(wheel)
    return {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}


def metadata(wheel: Path) -> str:
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    return archive.read(name).decode()


def unpacked(archive: Path, place: Path) -> Path:
    with tarfile.open(archive) as tar:
        tar.extractall(place, filter="data")
    (folder,) = place.iterdir()
    return folder


def test_sdist_is_complete(distributions: dict[str, Path]) -> None:
    """Every file that git has is in it: tests, documentation, examples, benchmarks, what CI runs."""
    if not (ROOT / ".git").exists():
        pytest.skip("git does not know what belongs to it")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    with tarfile.open(distributions["darknet-compiler.tar.gz"]) as tar:
        names = {member.name.partition("/")[2] for member in tar if member.isfile()}
    known = {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}
    assert names >= known
    made = {name for name in names - known if not name.startswith("darknet_compiler.egg-info/")}
    assert made == {"PKG-INFO", "setup.cfg"}


def test_sdist_works(distributions: dict[str, Path], tmp_path: Path) -> None:
    """A part of the suite passes in it, unpacked and installed in an environment of its own."""
    source = unpacked(distributions["darknet-compiler.tar.gz"], tmp_path / "sdist")
    environment = new_environment(tmp_path / "venv")
    install = ["-m", "pip", "install", "--no-deps", "--no-index", "--no-build-isolation", "--quiet", "-e", source]
    result = python(environment, *install)
    assert result.returncode == 0, result.stderr
    with tarfile.open(distributions["darknet-compiler.tar.gz"]) as tar:
        packed = {
            member.name.partition("/")[2] for member in tar if member.isfile() and ".egg-info/" not in member.name
        }
    listed = python(environment, "-c", "from tools.packages import files; print(*files(), sep='\\n')", cwd=source)
    assert set(listed.stdout.splitlines()) == packed
    part = ["tests/test_layering.py", "tests/passes/test_fold_batchnorm.py", "tests/darknet/test_cfg.py"]
    result = python(environment, "-m", "pytest", "-q", "-p", "no:cacheprovider", *part, cwd=source)
    assert result.returncode == 0, result.stdout
    assert "passed" in result.stdout
    where = python(environment, "-c", "import dnc, dnc.passes; print(dnc.__file__, dnc.passes.__file__)", cwd=tmp_path)
    assert where.stdout.count(str(source)) == 2


@pytest.mark.parametrize("name", ["darknet-compiler", "darknet-runtime"])
def test_registries_take_it(name: str, distributions: dict[str, Path]) -> None:
    """twine renders the description and knows every field; the wheel has no file twice, nor one that is misplaced."""
    pytest.importorskip("twine")
    pytest.importorskip("check_wheel_contents")
    files = [distributions[f"{name}{suffix}"] for suffix in (".whl", ".tar.gz")]
    for tool in (["twine", "check", "--strict", *files], ["check_wheel_contents", files[0]]):
        result = subprocess.run([sys.executable, "-m", *map(str, tool)], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr


def test_same_bytes_twice(distributions: dict[str, Path], tmp_path: Path) -> None:
    """Built again, at another time and elsewhere."""
    again = built("darknet-compiler", "darknet-runtime", out=tmp_path / "again")
    assert len(again) == 4

    def digests(found: dict[str, Path]) -> dict[str, str]:
        return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found.items()}

    assert digests(again) == digests(distributions)


def test_runtime_is_a_part_of_the_compiler(distributions: dict[str, Path]) -> None:
    """The runtime, what it stands on, and nothing else; file by file the compiler's."""
    runtime, whole = members(distributions["darknet-runtime.whl"]), members(distributions["darknet-compiler.whl"])
    assert runtime.items() <= whole.items()
    known = {name for name in whole if any(Path(name).is_relative_to(part) for part in RUNTIME)}
    assert set(runtime) == known
    assert {"dnc/__init__.py", "dnc/py.typed", "dnc/runtime/runners/myriad/toolchains.json"} < known


def test_metadata_is_alike(distributions: dict[str, Path]) -> None:
    """One version; what the compiler has as extras runtime-X, the runtime has as X."""
    runtime, whole = metadata(distributions["darknet-runtime.whl"]), metadata(distributions["darknet-compiler.whl"])
    for text in (runtime, whole):
        assert f"Version: {dnc.__version__}\n" in text
        assert {"Author: the dnc authors", "License-Expression: MIT", "Requires-Python: >=3.11"} <= set(
            text.split("\n")
        )

    def needs(text: str, prefix: str) -> set[str]:
        found = re.findall(r"^Requires-Dist: (.*?)(?:; extra == [\"'](.*)[\"'])?$", text, re.MULTILINE)
        short = {(what.replace(f"compiler[{prefix}", "runtime["), extra) for what, extra in found}
        return {f"{what} for {extra[len(prefix) :]}" for what, extra in short if not extra or extra.startswith(prefix)}

    assert needs(runtime, "") == needs(whole, "runtime-")
    assert "openvino>=2026.4 for openvino" in needs(runtime, "")
    assert not re.search(r"\b(onnx|click|rich|pillow)\b(?!\")", "".join(needs(runtime, "")))


@pytest.fixture(scope="module")
def alone(distributions: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """darknet-runtime in an environment; its dependencies, and more, are those of this one."""
    return new_environment(tmp_path_factory.mktemp("alone") / "venv", distributions["darknet-runtime.whl"])


def test_runtime_runs_engines(alone: Path, tmp_path: Path) -> None:
    """Boxes of an image, and classes, as this environment finds them; nothing of the compiler is there."""
    cfg = write_network(tmp_path, "tiny", TINY)
    engine = dnc.compile(cfg, out=tmp_path / "tiny.engine")
    photograph = ROOT / "dnc" / "graph" / "photograph.jpg"
    expected = [box.to_json() for box in engine.detect(photograph, confidence=0.1)]
    code = """
import json, sys, dnc
with dnc.load(sys.argv[1]) as engine:
    print(json.dumps([dnc.__file__, [box.to_json() for box in engine.detect(sys.argv[2], confidence=0.1)]]))
assert callable(engine.classify)
"""
    result = python(alone, "-c", code, engine.folder, photograph, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    file, found = json.loads(result.stdout)
    assert file.startswith(str(alone))
    assert found == expected
    assert expected


def test_runtime_says_what_compiles(alone: Path) -> None:
    """dnc.compile and the command name the distribution, and that this one goes first."""
    mend = 'pip uninstall darknet-runtime; pip install "darknet-compiler[compiler]"'
    result = python(alone, "-m", "dnc", "compile", "x.cfg", cwd="/")
    assert result.stderr == f"dnc: error: only the runtime is installed; the commands need: {mend}\n"
    assert result.returncode == 1
    result = python(alone, "-c", "import dnc; dnc.compile('x.cfg')", cwd="/")
    assert mend in result.stderr.splitlines()[-1]
    code = "from dnc.runtime.runners import runners; print(runners['tvm']().remedy(), runners['onnx']().remedy())"
    result = python(alone, "-c", code, cwd="/")
    assert result.stdout.startswith('pip install "darknet-runtime[tvm]" pip install "darknet-runtime[onnx]"')


def test_both_installed(distributions: dict[str, Path], tmp_path: Path) -> None:
    """The command says so, and what it names mends it: pip would take files away with one that are the other's, too."""
    wheels = distributions["darknet-runtime.whl"], distributions["darknet-compiler.whl"]
    environment = new_environment(tmp_path / "venv", *wheels)
    result = python(environment, "-m", "dnc", "--help", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    number = dnc.__version__
    assert f"darknet-compiler {number} and darknet-runtime {number} are installed" in result.stderr
    assert "pip uninstall darknet-runtime darknet-compiler; pip install" in result.stderr
    names = ["darknet-runtime", "darknet-compiler"]
    assert python(environment, "-m", "pip", "uninstall", "--yes", "--quiet", *names).returncode == 0
    install = ["-m", "pip", "install", "--no-deps", "--no-index", "--quiet", wheels[1]]
    assert python(environment, *install).returncode == 0
    assert "dnc compile" in python(environment, "-m", "dnc", "--help", cwd=tmp_path).stdout


def test_a_checkout_is_whole() -> None:
    assert installed.is_whole()
    assert installed.conflict() == ""
    assert installed.to_install("onnx") == 'pip install "darknet-compiler[onnx]"'
    assert installed.to_compile() == 'pip install "darknet-compiler[compiler]"'
