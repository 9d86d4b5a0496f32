"""Python 3.12 and 3.13, where only an older one is at hand: nothing is used that they removed, or warn of as syntax."""

from __future__ import annotations

import ast
import re
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ROOT

REMOVED = {
    *("asynchat", "asyncore", "distutils", "imp", "smtpd", "lib2to3"),
    *(
        "aifc",
        "audioop",
        "cgi",
        "cgitb",
        "chunk",
        "crypt",
        "imghdr",
        "mailcap",
        "msilib",
        "nis",
        "nntplib",
        "ossaudiodev",
    ),
    *("pipes", "sndhdr", "spwd", "sunau", "telnetlib", "uu", "xdrlib"),
}
"""Modules that 3.12 and 3.13 have no more."""
GONE = re.compile(
    r"\.(utcnow|utcfromtimestamp|find_loader|find_module|FastChildWatcher|SafeChildWatcher|getdefaultlocale"
    r"|resetlocale|assertEquals|ast\.(Num|Str|Bytes|NameConstant|Ellipsis))\("
)
"""Functions that are gone, or that warn."""


def sources() -> Iterator[Path]:
    for folder in ("dnc", "passes", "targets", "cfg", "tools", "packages", "examples", "benchmarks", "docs", "tests"):
        yield from (ROOT / folder).rglob("*.py")


@pytest.mark.slow
def test_nothing_that_was_removed() -> None:
    found = []
    for path in sources():
        text = path.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            # What 3.11 calls deprecated, as "\d", 3.12 shows to whoever imports it.
            warnings.simplefilter("error")
            tree = ast.parse(text, path)
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            found += [f"{path}: {name}" for name in names if name.split(".")[0] in REMOVED]
        found += [f"{path}: {match[0]}" for match in GONE.finditer(text) if path != Path(__file__)]
    assert found == []


def test_one_oldest_python() -> None:
    """ruff knows the oldest one that the packages promise; every later one that they name follows it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    oldest = project["project"]["requires-python"].removeprefix(">=")
    assert project["tool"]["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"
    prefix = "Programming Language :: Python :: "
    named = [each.removeprefix(prefix) for each in project["project"]["classifiers"] if each.startswith(prefix)]
    assert [each for each in named if each != "3 :: Only"] == [oldest, "3.12", "3.13"]
    native = tomllib.loads((ROOT / "packages" / "native" / "pyproject.toml").read_text(encoding="utf-8"))
    assert native["project"]["requires-python"] == project["project"]["requires-python"]
