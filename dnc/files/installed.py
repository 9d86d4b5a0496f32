"""Which distribution this dnc came with. Two own the package `dnc`, and what runs engines is in both, file by file.

`darknet-compiler` is all of dnc; `darknet-runtime` is what an application needs, from the same sources, without the
compiler and its libraries. One of them belongs into an environment: pip removes with one the files of the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["conflict", "is_whole", "of_the_compiler", "to_compile", "to_install"]

_COMPILER = "darknet-compiler"
_RUNTIME = "darknet-runtime"
_PACKAGE = Path(__file__).parents[1]


def is_whole() -> bool:
    """Whether the compiler's modules are there, with their libraries or without."""
    return (_PACKAGE / "compiler").is_dir()


def to_install(extra: str) -> str:
    """The command that installs an extra of the distribution that is there: both name them alike."""
    return f'pip install "{_COMPILER if is_whole() else _RUNTIME}[{extra}]"'


def to_compile() -> str:
    """The command that installs the compiler where only the runtime is."""
    first = "" if is_whole() else f"pip uninstall {_RUNTIME}; "
    return f'{first}pip install "{_COMPILER}[compiler]"'


@contextmanager
def of_the_compiler(what: str) -> Iterator[None]:
    """A block that imports what an installation of the runtime alone does not have.

    Args:
        what: what is asked for, for the message.

    Raises:
        ModuleNotFoundError: it is not there; the message says what to install.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = f"{what} needs {error.name}, which is not installed: only the runtime is"
        raise ModuleNotFoundError(f"{missing}; for the compiler: {to_compile()}", name=error.name) from error


def conflict() -> str:
    """What is wrong where both distributions are installed, and the commands that mend it; empty if nothing is."""
    found = _distributions()
    if len(found) < 2:
        return ""
    both = " and ".join(f"{name} {version}" for name, version in sorted(found.items()))
    mend = f'pip uninstall {_RUNTIME} {_COMPILER}; pip install "{_COMPILER}[compiler]"'
    return f"{both} are installed, and each overwrites files of the other: {mend}"


def _distributions() -> dict[str, str]:
    """The versions of the distributions that are installed where this package lies, by their names.

    It reads the names of folders: importlib.metadata takes 20 ms to import.
    """
    found: dict[str, str] = {}
    for path in _PACKAGE.parent.glob("darknet_*.dist-info"):
        name, _, version = path.name.removesuffix(".dist-info").partition("-")
        if name.replace("_", "-") in (_COMPILER, _RUNTIME):
            found[name.replace("_", "-")] = version
    return found
