"""Windows, as far as Linux can imitate it (windows.py): what is imported, and what the commands do there."""

from __future__ import annotations

import ast
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

import pytest

import dnc
import dnc.passes
import dnc.targets
from tests import ROOT
from tests.networks import TINY, write_network
from tests.packaging import windows

POSIX = {
    "dnc.runtime.runners.myriad.child": "runs the compiler for Myriad X, which is a library for Linux, in a process",
}
"""Modules that Windows cannot import: why."""


def imitated(code: str, *arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.packaging.windows", code, *map(str, arguments)]
    # The folder of the checkout is where `tests` lies.
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=None)


def modules() -> Iterator[str]:
    for package in (dnc, dnc.passes, dnc.targets):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__") and module.name not in POSIX:
                yield module.name


def test_no_symbolic_links() -> None:
    """Git for Windows checks them out as files with a path in them."""
    if not (ROOT / ".git").exists():
        pytest.skip("git does not know what belongs to it")
    listed = subprocess.run(["git", "ls-files", "-s"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [line for line in listed.stdout.splitlines() if line.startswith("120000")] == []


def test_names_of_files() -> None:
    """Those that Windows can have: no device, no letter of its own, and none twice but for capitals."""
    if not (ROOT / ".git").exists():
        pytest.skip("git does not know what belongs to it")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    names = listed.stdout.split("\0")[:-1]
    for name in names:
        assert not PureWindowsPath(name).is_reserved(), name
        assert not set('<>:"|?*\\') & set(name), name
        assert not any(part.endswith((".", " ")) for part in name.split("/")), name
        assert len(name) < 160, name
    assert len({name.lower() for name in names}) == len(names)


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """Calls, by the last word of what is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            yield (node.func.id if isinstance(node.func, ast.Name) else node.func.attr), node


def trees(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def is_text(name: str, call: ast.Call) -> bool:
    """Whether a call reads or writes text in the system's encoding, which is UTF-8 on Linux alone."""
    if any(word.arg == "encoding" for word in call.keywords):
        return False
    if name in ("read_text", "write_text"):
        # The second one's encoding comes behind the text. A distribution's files have one.
        return len(call.args) == (name == "write_text")
    if name not in ("open", "fdopen"):
        return False
    of_a_path = isinstance(call.func, ast.Attribute) and name == "open"
    given = call.args[0 if of_a_path else 1 :]
    mode = given[0].value if given and isinstance(given[0], ast.Constant) else None
    # Much else is opened, without a mode: engines, archives.
    return mode in ("r", "w", "a", "x", "r+", "w+") or (mode is None and not of_a_path)


@pytest.mark.slow
def test_texts_are_in_utf_8() -> None:
    """Whoever reads or writes text names the encoding: Windows would take that of its country."""
    folders = ("dnc", "passes", "targets", "cfg", "tools", "packages", "examples", "benchmarks")
    found = [(path, call.lineno) for path, tree in trees(*folders) for name, call in calls(tree) if is_text(name, call)]
    assert found == []


@pytest.mark.slow
def test_what_is_imported_late() -> None:
    """An import of what POSIX alone has, inside of a function too, is for Windows to fail with."""
    found = []
    for path, tree in trees("dnc", "passes", "targets"):
        tried = {
            node
            for block in ast.walk(tree)
            if isinstance(block, ast.Try) and any("ImportError" in ast.unparse(each) for each in block.handlers)
            for node in block.body
        }
        for node in ast.walk(tree):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if node not in tried and set(names) & set(windows.MODULES):
                found.append(path.removesuffix(".py").replace("/", "."))
    assert found == list(POSIX)


@pytest.mark.slow
def test_imports() -> None:
    """Every module but those that POSIX names, where the modules and functions of Unix are absent."""
    code = """
import importlib, os, signal, sys
assert sys.platform == "win32" and not hasattr(os, "fork") and not hasattr(signal, "SIGKILL")
failed = []
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except (ImportError, AttributeError) as error:
        # Libraries that are not installed are none of Windows' faults.
        if not isinstance(error, ModuleNotFoundError) or (error.name or "").split(".")[0] in POSIX:
            failed.append(f"{name}: {error!r}")
print(*failed, sep="\\n")
""".replace("POSIX", repr(windows.MODULES))
    names = list(modules())
    assert len(names) > 150
    result = imitated(code, *names)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == ""


@pytest.mark.slow
def test_what_only_posix_has() -> None:
    """The list above is not longer than need be."""
    code = "import importlib, sys; importlib.import_module(sys.argv[1])"
    for name in POSIX:
        assert imitated(code, name).returncode != 0, name


@pytest.mark.slow
def test_commands(tmp_path: Path) -> None:
    """info, compile, detect and the package, with paths as Windows has them where they are names alone."""
    pytest.importorskip("onnxruntime")
    cfg = write_network(tmp_path, "tiny", TINY)
    run = "import sys; from dnc.__main__ import main; main()"
    photograph, engine = ROOT / "dnc" / "graph" / "photograph.jpg", tmp_path / "tiny.engine"
    for arguments in (
        ["info", cfg],
        ["compile", cfg, "--target", "onnx", "-o", engine],
        ["detect", engine, photograph, "--confidence", "0.1", "-o", tmp_path / "found.png"],
        ["package", engine, "-o", tmp_path / "tiny.dnc"],
        ["detect", tmp_path / "tiny.dnc", photograph, "--confidence", "0.1"],
    ):
        result = imitated(run, *arguments)
        assert result.returncode == 0, (arguments, result.stderr)
        assert "Traceback" not in result.stderr
    assert (tmp_path / "found.png").is_file()
    assert not [path for path in tmp_path.iterdir() if path.name.endswith("dnc-part")]
