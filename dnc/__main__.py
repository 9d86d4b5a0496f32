"""`dnc` and `python -m dnc`: the command line, or what to install for it."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Entry point. Where only the runtime is installed there are no commands."""
    try:
        from dnc.cli import main as run
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        what = 'only the runtime is installed; the commands need: pip install "darknet-compiler[compiler]"'
        print(f"dnc: error: {what}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        # As afterwards, when there is somebody to say it.
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
