"""The plug-ins of CONTRIBUTING.md, as they stand there, in a process of their own: nobody else is to find them."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from dnc.cli import cli
from tests import ROOT
from tests.docs.blocks import read
from tests.networks import TINY
from tests.patience import PATIENCE

PAGE = ROOT / "CONTRIBUTING.md"
COMMANDS = (
    "weights random net.cfg -o net.weights",
    "info net.cfg",
    "compare net.cfg",
    "compile net.cfg --target exchange --passes eliminate-negation -o net.engine",
    "explain net.engine",
    "export net.cfg --for pair -o net.pair",
)


@pytest.mark.slow
def test_plug_ins(tmp_path: Path) -> None:
    """A cfg with the section is compiled with the pass for the target, and exported for the destination."""
    sections = TINY.split("\n[")
    (tmp_path / "net.cfg").write_text("\n[".join([*sections[:2], "clamp]\nlimit=0.3\n", *sections[2:]]), "utf-8")
    command = [sys.executable, "-m", "tests.docs.test_contributing"]
    result = subprocess.run([*command, tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert any(line.split()[:2] == ["1", "clamp"] for line in lines)
    assert "4 of 4 outputs agree" in result.stdout
    assert "eliminate-negation        0  applies nowhere" in lines
    assert (tmp_path / "net.pair" / "model.onnx").is_file()


def main(folder: Path) -> None:
    """Registers the plug-ins, then runs the commands in a folder."""
    for block in read(PAGE).blocks:
        if block.language == "python":
            module = types.ModuleType(f"plugged{block.line}")
            sys.modules[module.__name__] = module
            exec(compile(block.code, f"{PAGE.name}:{block.line}", "exec"), vars(module))
    os.chdir(folder)
    for command in COMMANDS:
        cli.main(command.split(), standalone_mode=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
