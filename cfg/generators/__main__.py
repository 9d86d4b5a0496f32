"""`python -m cfg.generators` writes the generated networks into cfg/; with `--check` it names those that differ."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cfg.generators import generated
from dnc.files.writing import whole_file

__all__ = ["main"]

FOLDER = Path(__file__).resolve().parent.parent


def main(arguments: list[str] | None = None, folder: Path = FOLDER) -> int:
    """Writes the files that are not as they should be, or checks them; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m cfg.generators", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a file differs")
    check = parser.parse_args(arguments).check
    differ = []
    for name, text in generated().items():
        path = folder / name
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        differ.append(name)
        if not check:
            with whole_file(path) as file:
                file.write(text.encode())
    for name in differ:
        print(f"{name} differs from its generator" if check else f"wrote {name}")
    return 1 if check and differ else 0


if __name__ == "__main__":
    sys.exit(main())
