"""dnc embed: what is printed and copied; that it builds is in tests/embed/."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dnc import __version__
from dnc.cli import embed
from tests import ROOT
from tests.conftest import Result

Command = Callable[..., Result]

EMBED = ROOT / "embed"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What OpenVINO's wheel looks like, alone; nothing of it is imported."""
    monkeypatch.setattr(embed, "_tvm", lambda: None)
    root = tmp_path / "packages" / "openvino"
    for name in ("__init__.py", "libs/libopenvino.so.2641", "libs/libopenvino_c.so.2641", "include/x.hpp"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("raise ImportError\n")
    (root / "cmake").mkdir()
    definitions = 'INTERFACE_COMPILE_DEFINITIONS "_GLIBCXX_USE_CXX11_ABI=1;OV_THREAD=TBB"\n'
    (root / "cmake" / "OpenVINOTargets.cmake").write_text(definitions * 2)
    monkeypatch.syspath_prepend(str(root.parent))
    monkeypatch.delitem(__import__("sys").modules, "openvino", raising=False)
    return root


def test_table(command: Command, wheel: Path) -> None:
    result = command("embed")
    assert result.code == 0
    assert result.out.split() == ["target", "library", "openvino", str(wheel / "libs" / "libopenvino.so.2641")]
    assert result.err.startswith("dnc: the sources are ")


def test_none(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no library is installed, it says so in place of an empty table."""
    monkeypatch.setattr(embed, "_libraries", list)
    assert "to install one: pip install" in command("embed").out
    assert command("embed").out.count("\n") == 1


def test_json(command: Command, wheel: Path) -> None:
    result = command("embed", "--json")
    found = json.loads(result.out)
    assert Path(found["sources"]).resolve() == EMBED
    library, cmake = str(wheel / "libs" / "libopenvino.so.2641"), str(wheel / "cmake")
    assert found["back_ends"] == [{"target": "openvino", "library": library, "cmake": cmake}]


def test_flags(command: Command, wheel: Path) -> None:
    """Every source but those of other back ends, the library and where it is at run time."""
    words = command("embed", "--flags").out.split()
    sources = {Path(word).name for word in words if word.endswith(".cpp")}
    others = {path.name for path in (EMBED / "src").glob("backend_*.cpp")} - {"backend_openvino.cpp"}
    assert sources == {path.name for path in (EMBED / "src").glob("*.cpp")} - others
    assert {"-DDNC_WITH_OPENVINO", "-D_GLIBCXX_USE_CXX11_ABI=1", "-ffp-contract=off"} < set(words)
    assert words[-3:] == [str(wheel / "libs" / "libopenvino.so.2641"), f"-Wl,-rpath,{wheel / 'libs'}", "-ldl"]
    assert words[words.index("-isystem") + 1] == str(wheel / "include")


def test_prefix_path(command: Command, wheel: Path) -> None:
    assert command("embed", "--prefix-path").out == f"{wheel / 'cmake'}\n"


@pytest.mark.parametrize("option", ["--flags", "--prefix-path"])
def test_nothing_installed(option: str, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "_libraries", list)
    result = command("embed", option)
    assert (result.code, result.out) == (1, "")
    assert result.err == (
        "dnc: error: no library of a target with headers for C++ is installed\n"
        '  hint: pip install "darknet-compiler[openvino]", or apache-tvm-ffi for engines of target tvm\n'
    )
    assert command("embed").code == 0


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What the wheel of libdnc_runtime looks like, of this version; that one is made is in tests/packaging."""
    root = tmp_path / "site" / "libdnc_runtime"
    shutil.copytree(ROOT / "packages" / "native" / "libdnc_runtime", root)
    shutil.copytree(EMBED / "include", root / "include")
    monkeypatch.syspath_prepend(str(root.parent))
    yield root
    sys.modules.pop("libdnc_runtime", None)


def test_compiled(command: Command, wheel: Path, compiled: Path) -> None:
    """Programs are linked with the library of the wheel, and no source is compiled."""
    assert command("embed", "--prefix-path").out == f"{compiled}\n"
    library = compiled / "lib"
    expected = [f"-I{compiled / 'include'}", f"-L{library}", "-ldnc_runtime", f"-Wl,-rpath,{library}"]
    assert command("embed", "--flags").out.split() == expected
    assert json.loads(command("embed", "--json").out)["compiled"] == str(compiled)
    assert f"compiled, the library is in {library}" in command("embed").err


def test_compiled_of_another_version(command: Command, wheel: Path, compiled: Path) -> None:
    header = compiled / "include" / "dnc.h"
    header.write_text(header.read_text().replace(f'DNC_VERSION "{__version__}"', 'DNC_VERSION "0.0.7"'))
    result = command("embed", "--prefix-path")
    assert result.out == f"{wheel / 'cmake'}\n"
    assert "another version than dnc, and is not used" in result.err
    assert f"pip install libdnc_runtime=={__version__}" in result.err


def test_blank_in_a_path(command: Command, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = wheel.parent.rename(wheel.parent.with_name("my packages"))
    monkeypatch.syspath_prepend(str(moved))
    result = command("embed", "--flags")
    assert (result.code, result.out) == (1, "")
    assert "a blank in a path, which $(dnc embed --flags) cannot have" in result.err


def test_copy(command: Command, tmp_path: Path) -> None:
    """All that CMake needs, into a folder that is new or empty, and nothing else beside it."""
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "deep" / "er", tmp_path / "empty"):
        result = command("embed", "--copy", out)
        assert (result.code, result.out, result.err) == (0, f"{out}\n", "")
        copied = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
        assert copied == {path.relative_to(EMBED): path.read_bytes() for path in EMBED.rglob("*") if path.is_file()}
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "empty", tmp_path / "file"):
        result = command("embed", "--copy", out)
        assert (result.code, result.out) == (1, "")
        assert "there is something in this place already" in result.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "empty", "file"]
