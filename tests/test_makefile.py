"""The Makefile, as far as nothing is installed for it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest

from tests import ROOT

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


def make(*arguments: str) -> str:
    """What it prints, as if no other make had started the tests."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


@needs_make
def test_help_lists_every_target() -> None:
    listed = make("help")
    names = re.findall(r"^make (\S+) +\S", listed, re.MULTILINE)
    [targets] = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(names) == sorted(targets.split())
    assert len(names) == len(listed.splitlines())


@needs_make
@pytest.mark.parametrize(("targets", "extras"), [("demo", ["onnx"]), ("test", ["dev"]), ("test demo", ["dev", "onnx"])])
def test_a_target_installs_what_it_needs(targets: str, extras: list[str]) -> None:
    planned = make("-n", "VENV=build/none", *targets.split())
    assert re.findall(r"pip install .*\.\[(\w+)\]", planned) == extras
    # What developing takes has all of that: really run, the demo finds it installed.
    assert ("touch build/none/.installed build/none/.running" in planned) == ("dev" in extras)
