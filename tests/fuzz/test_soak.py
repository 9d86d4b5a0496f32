"""What the soak counts, and that it would see what piles up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT
from tests.fuzz.soak import TARGETS, Counts
from tests.patience import PATIENCE
from tests.thinning import thinned


@pytest.mark.parametrize("target", thinned(TARGETS))
def test_nothing_piles_up(target: str) -> None:
    """In a process of its own, whose threads are the soak's."""
    pytest.importorskip(TARGETS[target], exc_type=ImportError)
    command = [sys.executable, "-m", "tests.fuzz.soak", "--target", target, "--rounds", "26"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("nothing piled up\n")


def test_what_piles_up_is_seen(tmp_path: Path) -> None:
    before = Counts.now(tmp_path)
    assert Counts.now(tmp_path).more(before) == []
    (tmp_path / "left").write_text("")
    descriptor = os.open(tmp_path / "left", os.O_RDONLY)
    kept = b"x" * (60 << 20)
    found = Counts.now(tmp_path).more(before)
    os.close(descriptor)
    assert [text.split(" ", 1)[1] for text in found] == ["more descriptors", "more files", "MB more memory"], len(kept)
