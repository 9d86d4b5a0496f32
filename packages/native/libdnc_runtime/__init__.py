"""The compiled libdnc_runtime, for programs in C and C++: where its headers and its library lie."""

from pathlib import Path

PREFIX = Path(__file__).resolve().parent
"""Has include/, lib/, lib/cmake/ and lib/pkgconfig/: what CMAKE_PREFIX_PATH is to name."""


def flags() -> list[str]:
    """What g++ and clang++ take, behind the sources."""
    return [f"-I{PREFIX / 'include'}", f"-L{PREFIX / 'lib'}", "-ldnc_runtime", f"-Wl,-rpath,{PREFIX / 'lib'}"]
