"""Pages that show code: their blocks run, in their order, in a folder with what the page takes for granted.

tests/docs/blocks.py says what hidden comments can ask for. `pytest -rP` shows what ran, what did not, and why.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT
from tests.docs.blocks import FILES, RUN, SHOWN, Page, read
from tests.patience import PATIENCE

DOCS = ROOT / "docs"
PAGES = {
    path.stem: path for path in (DOCS / "start.md", *sorted((DOCS / "guides").glob("*.md"))) if path.stem != "index"
}
FETCHING = [name for name, path in PAGES.items() if any(block.instead for block in read(path).blocks)]


@pytest.fixture(params=PAGES)
def page(request: pytest.FixtureRequest) -> Page:
    """Each page in turn."""
    return read(PAGES[request.param])


def test_nothing_is_installed_by_a_name_that_no_index_has(page: Page) -> None:
    """dnc is on no index yet, so that pip takes a checkout."""
    said = page.path.read_text("utf-8")
    assert "pip install darknet-" not in said.replace('"', "")


def test_a_page_says_what_is_code_and_has_some_that_runs(page: Page) -> None:
    assert {block.language for block in page.blocks} <= {*RUN, *FILES, *SHOWN}
    idle = [
        f"{page.path.name}:{block.line}"
        for block in page.blocks
        if block.language not in SHOWN and not block.skip and not block.runs
    ]
    assert not idle, "becomes no file, for its first line is no name, and has no reason not to run"
    assert any(block.runs for block in page.blocks)


def lacking(page: Page) -> list[str]:
    """What the page needs and this machine has not."""
    return [need for need in page.needs if shutil.which(need) is None and importlib.util.find_spec(need) is None]


def run(page: Page, folder: Path, *arguments: str) -> None:
    """Runs a page in a folder; skips if it needs what this machine lacks."""
    missing = lacking(page)
    if missing:
        pytest.skip(f"{page.path.name} needs {', '.join(missing)}")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    ran = subprocess.run(
        [sys.executable, "-m", "tests.docs.running", str(page.path), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    print(ran.stdout)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.slow
def test_its_code_runs(page: Page, tmp_path: Path) -> None:
    # Not its 20 seconds: what it prints is looked at by nobody.
    (tmp_path / "dnc.toml").write_text("[bench]\nseconds = 1\n")
    run(page, tmp_path)


@pytest.mark.network
@pytest.mark.parametrize("name", FETCHING)
def test_its_code_runs_in_a_fresh_checkout(name: str, tmp_path: Path) -> None:
    """Word by word, with what it fetches."""
    checkout = tmp_path / "dnc"
    subprocess.run(["git", "clone", "-q", "--depth", "1", ROOT.as_uri(), checkout], check=True)
    run(read(PAGES[name]), checkout, "--fetch")
