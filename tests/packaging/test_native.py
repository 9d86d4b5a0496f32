"""The wheels of libdnc_runtime: for which systems they are; that programs in C and C++ are built with them, by flags,
CMake and pkg-config, and find Python's boxes; for aarch64 under qemu."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

import dnc
from tests import ROOT
from tests.embed.native import run
from tests.networks import TINY, write_network
from tests.packaging.conftest import built, python
from tools import native
from tools.packages import epoch, files

pytestmark = [pytest.mark.slow, pytest.mark.network]

EXAMPLE = ROOT / "examples" / "cpp" / "detect.cpp"
CMAKE = """
cmake_minimum_required(VERSION 3.16)
project(app LANGUAGES CXX)
find_package(dnc_runtime REQUIRED)
add_executable(app ${EXAMPLE})
target_link_libraries(app dnc::runtime)
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One for each processor, by its name."""
    pytest.importorskip("auditwheel")
    for tool in ("apt-get", "dpkg-deb", "clang++", "cmake", "aarch64-linux-gnu-ld"):
        if shutil.which(tool) is None:
            pytest.skip(f"there is no {tool}")
    out = tmp_path_factory.mktemp("native")
    built("libdnc_runtime", out=out)
    return {arch: path for arch in native.ARCHS for path in out.glob(f"*_{arch}.whl")}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> dnc.Engine:
    pytest.importorskip("openvino", exc_type=ImportError)
    cfg = write_network(tmp_path_factory.mktemp("network"), "net", TINY, seed=3)
    return dnc.compile(cfg, target="openvino", out=cfg.with_name("engine"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    path = tmp_path_factory.mktemp("picture") / "a.ppm"
    path.write_bytes(b"P6 50 40 255 " + pixels.tobytes())
    return path


def expected(engine: dnc.Engine, picture: Path) -> list[list[str]]:
    """What the example prints, in words."""
    pixels = np.frombuffer(picture.read_bytes()[-40 * 50 * 3 :], np.uint8).reshape(40, 50, 3)
    boxes = engine(pixels, confidence=0.1)
    assert boxes
    return [[box.label, f"{box.confidence:g}", *map(str, box.pixels(50, 40))] for box in boxes]


def same(printed: str, boxes: list[list[str]]) -> bool:
    """Another processor's kernels round otherwise."""
    found = [line.split() for line in printed.splitlines()]
    close = [abs(float(one[1]) - float(other[1])) < 1e-4 for one, other in zip(found, boxes, strict=True)]
    return all(close) and [(x[0], *x[2:]) for x in found] == [(x[0], *x[2:]) for x in boxes]


def test_wheels(wheels: dict[str, Path]) -> None:
    """Named by the oldest system that has what they need; one library, which looks for its back ends beside itself."""
    pytest.importorskip("twine")
    pytest.importorskip("check_wheel_contents")
    pytest.importorskip("elftools")
    from elftools.elf.elffile import ELFFile

    assert sorted(wheels) == sorted(native.ARCHS)
    for arch, wheel in wheels.items():
        assert wheel.name == f"libdnc_runtime-{dnc.__version__}-py3-none-manylinux_2_31_{arch}.whl"
        for tool in (["twine", "check", "--strict"], ["check_wheel_contents"]):
            run([sys.executable, "-m", *tool, wheel])
        archive = zipfile.ZipFile(wheel)
        (name,) = [name for name in archive.namelist() if ".so" in name]
        assert name == "libdnc_runtime/lib/libdnc_runtime.so"
        with archive.open(name) as file:
            elf = ELFFile(file)
            assert elf["e_machine"] == {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64"}[arch]
            tags = {tag.entry.d_tag: tag for tag in elf.get_section_by_name(".dynamic").iter_tags()}
            assert tags["DT_RUNPATH"].runpath == "$ORIGIN/../../openvino/libs:$ORIGIN/../../tvm_ffi/lib"
        assert str(ROOT).encode() not in archive.read(name)


def test_same_bytes_twice(wheels: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled again, elsewhere: as a release is, in a copy with other paths to all that the library is linked with."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch())
    source = tmp_path / "source"
    for path in files():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, source / path)
    (source / "build").mkdir()
    (source / "build" / "native").symlink_to(native.CACHE)
    again = built("libdnc_runtime", "--arch", "x86_64", out=tmp_path / "out", source=source)
    assert again["libdnc_runtime.whl"].read_bytes() == wheels["x86_64"].read_bytes()


@pytest.fixture(scope="module")
def installed(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the library, and with what it depends on, of which nothing is here."""
    environment = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(environment, with_pip=True)
    result = python(environment, "-m", "pip", "install", "--quiet", wheels["x86_64"])
    assert result.returncode == 0, result.stderr
    return environment


def test_flags(installed: Path, engine: dnc.Engine, picture: Path, tmp_path: Path) -> None:
    flags = python(installed, "-m", "libdnc_runtime", "--flags").stdout.split()
    run(["g++", "-std=c++17", EXAMPLE, *flags, "-o", tmp_path / "app"])
    assert same(run([tmp_path / "app", engine.folder, picture, "0.1"]), expected(engine, picture))


def test_cmake(installed: Path, engine: dnc.Engine, picture: Path, tmp_path: Path) -> None:
    prefix = python(installed, "-m", "libdnc_runtime").stdout.strip()
    (tmp_path / "CMakeLists.txt").write_text(CMAKE)
    options = [f"-DCMAKE_PREFIX_PATH={prefix}", f"-DEXAMPLE={EXAMPLE}"]
    run(["cmake", "-S", tmp_path, "-B", tmp_path / "build", *options])
    run(["cmake", "--build", tmp_path / "build"])
    assert same(run([tmp_path / "build" / "app", engine.folder, picture, "0.1"]), expected(engine, picture))


def test_pkg_config(installed: Path, engine: dnc.Engine, picture: Path, tmp_path: Path) -> None:
    if shutil.which("pkg-config") is None:
        pytest.skip("there is no pkg-config")
    folder = Path(python(installed, "-m", "libdnc_runtime").stdout.strip()) / "lib" / "pkgconfig"
    command = ["pkg-config", "--cflags", "--libs", "dnc_runtime"]
    flags = run(command, env={"PKG_CONFIG_PATH": str(folder), "PATH": "/usr/bin:/bin"}).split()
    run(["g++", "-std=c++17", EXAMPLE, *flags, "-o", tmp_path / "app"])
    assert same(run([tmp_path / "app", engine.folder, picture, "0.1"]), expected(engine, picture))
    assert run([*command[:1], "--modversion", folder / "dnc_runtime.pc"]).strip() == dnc.__version__


def test_aarch64(wheels: dict[str, Path], engine: dnc.Engine, picture: Path, tmp_path: Path) -> None:
    """Cross-compiled with what pip installs for the board; qemu runs it with OpenVINO's library for ARM."""
    compiler, qemu, system = "aarch64-linux-gnu-g++", "qemu-aarch64", Path("/usr/aarch64-linux-gnu")
    if shutil.which(compiler) is None or shutil.which(qemu) is None:
        pytest.skip(f"there is no {compiler} or {qemu}")
    site = tmp_path / "site"
    shutil.copytree(native.back_ends("aarch64"), site)
    zipfile.ZipFile(wheels["aarch64"]).extractall(site)
    prefix = site / "libdnc_runtime"
    libraries = [prefix / "lib", site / "openvino" / "libs", site / "tvm_ffi" / "lib"]
    link = [f"-L{prefix / 'lib'}", "-ldnc_runtime", *(f"-Wl,-rpath-link,{each}" for each in libraries)]
    run([compiler, "-std=c++17", EXAMPLE, f"-I{prefix / 'include'}", *link, "-o", tmp_path / "app"])
    search = ":".join(map(str, libraries[:1]))
    command = [qemu, "-L", system, "-E", f"LD_LIBRARY_PATH={search}", tmp_path / "app", engine.folder, picture, "0.1"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert same(result.stdout, expected(engine, picture))
    needed = run(["aarch64-linux-gnu-objdump", "-T", prefix / "lib" / "libdnc_runtime.so"])
    numbers = [tuple(map(int, found.split("."))) for found in re.findall(r"GLIBC_([\d.]+)", needed)]
    assert max(numbers) <= (2, 31)
