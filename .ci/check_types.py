"""Checks types in a tree where everything lies where it is packaged: mypy does not know what setup.py maps into dnc.

build/types/ is a copy of what is checked, with passes/ and targets/ inside dnc/; mypy runs there, and its messages name
the files of the checkout. Copies keep their times, so that mypy's cache holds. Arguments are given to mypy.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TREE = ROOT / "build" / "types"
INSIDE = ("passes", "targets")
"""Folders that are packages of dnc (setup.py); cfg/ has only files and what makes them."""


def main() -> int:
    """Lays the tree out anew and runs mypy in it; returns its exit status."""
    shutil.rmtree(TREE, ignore_errors=True)
    for name in ("dnc", "cfg", "docs", "tests", "tools", *INSIDE):
        for path in (ROOT / name).rglob("*.py"):
            copy = TREE / ("dnc" if name in INSIDE else "") / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
    shutil.copy2(ROOT / "pyproject.toml", TREE)
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(ROOT / ".mypy_cache"), *sys.argv[1:]]
    result = subprocess.run(command, cwd=TREE, capture_output=True, text=True)
    print(re.sub(rf"^dnc/({'|'.join(INSIDE)})/", r"\1/", result.stdout, flags=re.MULTILINE), end="")
    print(result.stderr, end="", file=sys.stderr)
    return result.returncode


if __name__ == "__main__":
    sys.exit(main())
