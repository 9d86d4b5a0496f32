"""Plug-ins are files: found on first use, from several threads at once, under their names and aliases."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dnc.darknet.layers import layers
from dnc.errors import DncError, PassError
from dnc.passes import passes
from dnc.registry import Registry
from dnc.targets import targets

Plugins = Callable[..., Registry[Any]]


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plugins]:
    """Makes the package `plugged` of these modules, and returns its registry."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(**modules: str) -> Registry[Any]:
        package = tmp_path / "plugged"
        package.mkdir()
        head = "from dnc.registry import Registry\nplugged = Registry('plugged')\n"
        (package / "__init__.py").write_text(head)
        for name, source in modules.items():
            text = f"from plugged import plugged\n{textwrap.dedent(source)}"
            (package / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        registry: Registry[Any] = importlib.import_module("plugged").plugged
        return registry

    yield make
    for name in [name for name in sys.modules if name.partition(".")[0] == "plugged"]:
        del sys.modules[name]


def plugin(name: str, aliases: str = "()") -> str:
    return f"@plugged.register\nclass {name.title()}:\n    name = {name!r}\n    aliases = {aliases}\n"


def test_found_by_name_and_alias(plugins: Plugins) -> None:
    registry = plugins(b=plugin("bee", "('wasp',)"), a=plugin("ant"), empty="")
    assert list(registry) == ["ant", "bee", "wasp"]
    assert len(registry) == 3
    assert registry["wasp"] is registry["bee"]
    assert registry.get("cat") is None
    assert "ant" in registry
    with pytest.raises(KeyError):
        registry["cat"]


def test_a_name_that_a_user_gave(plugins: Plugins) -> None:
    registry = plugins(a=plugin("ant"), b=plugin("bee"))
    assert registry.find("bee").name == "bee"
    with pytest.raises(DncError, match="unknown plug-in 'bea'") as caught:
        registry.find("bea")
    assert caught.value.hint == "did you mean 'bee'?"
    with pytest.raises(PassError, match="unknown pass 'winograd'") as caught:
        passes.find("winograd")
    assert "option of target tvm" in caught.value.hint


def test_importing_scans_nothing(plugins: Plugins) -> None:
    plugins(broken="raise RuntimeError('imported')")
    assert "plugged.broken" not in sys.modules


def test_two_of_one_name(plugins: Plugins) -> None:
    registry = plugins(a=plugin("ant"), b=plugin("ant"))
    with pytest.raises(TypeError, match="are both called 'ant'"):
        list(registry)


def test_broken_plugin_stays_broken(plugins: Plugins, tmp_path: Path) -> None:
    """The second look-up fails as the first, instead of seeing half a folder; once mended, all are there."""
    registry = plugins(a=plugin("ant"), b=plugin("bee") + "import nothing_of_this_name\n", c=plugin("cat"))
    for _ in range(2):
        with pytest.raises(ImportError):
            registry["cat"]
    (tmp_path / "plugged/b.py").write_text("from plugged import plugged\n" + plugin("bee"))
    importlib.invalidate_caches()
    assert list(registry) == ["ant", "bee", "cat"]


def test_threads(plugins: Plugins) -> None:
    """Whoever comes while the folder is read waits for all of it."""
    slow = {f"m{number}": "import time; time.sleep(0.01)\n" + plugin(f"name{number}") for number in range(9)}
    registry = plugins(**slow)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: registry["name8"].name, range(8))) == {"name8"}


def test_folders() -> None:
    """Every file of the three folders but base.py and helpers registers something."""
    assert {"onnx", "cpu", "cuda"} <= set(targets)
    assert {"fold-batchnorm", "fold-constants", "eliminate-identity", "eliminate-dead-code"} <= set(passes)
    assert {"convolutional", "conv", "yolo", "route", "lstm", "Gaussian_yolo", "silence"} <= set(layers)
    for registry in (targets, passes):
        for name, each in registry.items():
            assert name == each.name
            assert name == name.lower()
            assert each.__doc__


def test_one_plug_in_is_found_without_the_others() -> None:
    code = """
import subprocess
import sys
from dnc.targets import targets
assert targets["onnx"].name == "onnx"
print(sorted(name for name in sys.modules if name.startswith("dnc.targets.") and not name.endswith(".base")))
for name in ("", ".", "os", "base", "..errors", "a.b"):
    assert name not in targets
print(len(targets) > 3)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "['dnc.targets.onnx']\nTrue\n", result.stderr
