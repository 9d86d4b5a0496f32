"""What reads and runs the blocks of a page: none is passed over in silence, and none fails so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dnc.cli import Exit
from tests import ROOT
from tests.docs.blocks import read
from tests.docs.running import main, shell


@pytest.mark.parametrize("text", ["- one\n\n  ```sh\n  false\n  ```\n", "~~~sh\nfalse\n~~~\n"])
def test_a_block_that_would_not_be_seen(text: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n{text}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"page\.md:\d"):
        read(page)


@pytest.mark.parametrize("code", ["false\ntrue", "false | cat", "exit 0\nfalse", "no-such-command\ntrue"])
def test_what_fails_does_so(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shell(code)[0]
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n```sh\n{code}\n```\n", encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["running", str(page)])
    with pytest.raises(SystemExit, match=r"page\.md:4 failed"):
        main()


def test_the_table_of_exit_codes() -> None:
    """Of docs/guides/terminal.md: all that there are, and no others."""
    table = (ROOT / "docs/guides/terminal.md").read_text("utf-8").partition("## Exit codes")[2]
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.M)} == {*Exit}
