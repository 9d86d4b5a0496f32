"""`dnc` and `python -m dnc`: the command line, or what to install for it."""

from __future__ import annotations

import sys
from typing import NoReturn

__all__ = ["main"]


def main() -> None:
    """Entry point. Where only the runtime is installed there are no commands."""
    from dnc.files.installed import conflict, to_compile

    if wrong := conflict():
        _fail(wrong)
    try:
        from dnc.cli import main as run
    except ModuleNotFoundError as error:
        if error.name not in ("click", "dnc.cli"):
            raise
        _fail(f"only the runtime is installed; the commands need: {to_compile()}")
    except KeyboardInterrupt:
        # As afterwards, when there is somebody to say it.
        sys.exit(130)
    run()


def _fail(what: str) -> NoReturn:
    print(f"dnc: error: {what}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
