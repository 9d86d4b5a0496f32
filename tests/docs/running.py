"""Runs a page in the current folder: `python -m tests.docs.running PAGE [--fetch]`. Blocks run in their order.

Those of Python share their names, those of bash the environment and the folder. With --fetch nothing stands in for what
is fetched. It ends with 1 and says the page and the line, if a block fails.
"""

from __future__ import annotations

import contextlib
import io
import linecache
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from tests.docs.blocks import SHOWN, Block, read


def shell(code: str) -> tuple[int, str]:
    """Runs bash until the first command that fails; what it leaves in the environment is here afterwards."""
    kept = Path(".environment")
    command = ["bash", "-e", "-o", "pipefail", "-c", f"{code}\nenv -0 > {kept.absolute()}"]
    ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if kept.exists():
        for entry in filter(None, kept.read_text("utf-8").split("\0")):
            name, _, value = entry.partition("=")
            os.environ[name] = value
        kept.unlink()
        os.chdir(os.environ["PWD"])
    elif not ran.returncode:
        return 1, f"{ran.stdout}something ended the shell before the end of the block"
    return ran.returncode, ran.stdout


def python(code: str, page: Path, line: int, names: dict[str, Any]) -> tuple[int, str]:
    """Runs Python in `names`; a traceback has the page's lines."""
    linecache.checkcache(str(page))
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            exec(compile("\n" * (line - 1) + code, str(page), "exec"), names)
        except BaseException:
            traceback.print_exc()
            return 1, said.getvalue()
    return 0, said.getvalue()


def run(block: Block, page: Path, names: dict[str, Any], fetch: bool) -> None:
    """Runs a block, with what stands before or in place of it.

    Raises:
        SystemExit: it failed, or printed something else than the page shows.
    """
    where = f"{page.name}:{block.line}"
    if block.setup:
        code, said = shell(block.setup)
        if code:
            sys.exit(f"{where}: the setup before it failed\n{said}")
    if block.skip:
        print(f"-- {where} is not run: {block.skip}", flush=True)
        return
    if block.language in SHOWN:
        return
    if block.file:
        Path(block.file).write_text(block.code, "utf-8")
        return
    if block.language == "python":
        code, said = python(block.code, page, block.line, names)
    else:
        code, said = shell(block.instead if block.instead and not fetch else block.code)
    print(f"-- {where}\n{said}", flush=True)
    if block.output is None:
        if code:
            sys.exit(f"{where} failed")
    elif block.output.split() != said.split():
        sys.exit(f"{where}: the page shows\n{block.output}")


def main() -> None:
    """Runs the page that the command line names."""
    page = Path(sys.argv[1])
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in read(page).blocks:
        run(block, page, names, "--fetch" in sys.argv)


if __name__ == "__main__":
    main()
