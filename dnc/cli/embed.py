"""dnc embed: what a C or C++ compiler needs to build applications that run engines, in the manner of python3-config.

The sources of libdnc_runtime are part of this installation. A back end is there if the library of its target is
installed with headers: the wheels of openvino and of apache-tvm-ffi have them. The distribution libdnc_runtime has the
library compiled, with all back ends: where it is installed, programs are linked with that.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import click

from dnc import __version__
from dnc.cli import print_json, remark
from dnc.errors import DncError, TargetError, warn
from dnc.files.places import packaged
from dnc.files.writing import whole_folder
from dnc.tables import Table

_NONE = "no library of a target with headers for C++ is installed"
_TO_INSTALL = 'pip install "darknet-compiler[openvino]", or apache-tvm-ffi for engines of target tvm'


class _Library(NamedTuple):
    """A target's library for a C++ compiler."""

    target: str
    file: Path
    include: Path
    cmake: Path
    """What CMAKE_PREFIX_PATH has to name."""
    defines: tuple[str, ...]


@click.command(epilog="Example: dnc embed --flags")
@click.option("--flags", "what", flag_value="flags", help="Print what g++ and clang++ take: paths, sources, libraries.")
@click.option("--prefix-path", "what", flag_value="prefix", help="Print the CMAKE_PREFIX_PATH of the back ends.")
@click.option("--copy", "out", type=click.Path(), help="Copy the sources and their CMakeLists.txt into a new folder.")
@click.option("--json", "as_json", is_flag=True, help="Print an object.")
def command(what: str | None, out: str | None, as_json: bool) -> None:
    """Show how to build C and C++ applications that run engines.

    Without options: where the sources are, and which targets they can run here.
    """
    sources = packaged("embed")
    if out is not None:
        _copy(sources, Path(out))
        click.echo(out)
        return
    libraries, compiled = _libraries(), _compiled()
    if what == "flags":
        words = _flags(sources, _some(libraries)) if compiled is None else import_module("libdnc_runtime").flags()
        click.echo(" ".join(_words(words)))
    elif what == "prefix":
        folders = [library.cmake for library in _some(libraries)] if compiled is None else [compiled]
        click.echo(";".join(map(str, folders)))
    elif as_json:
        back_ends = [
            {"target": built.target, "library": str(built.file), "cmake": str(built.cmake)} for built in libraries
        ]
        prefix = str(compiled) if compiled is not None else None
        print_json({"version": __version__, "sources": str(sources), "compiled": prefix, "back_ends": back_ends})
    else:
        table = Table.of("target", "library", folds=["library"])
        for library in libraries:
            table.add(library.target, str(library.file))
        table.show()
        if not libraries:
            click.echo(f"{_NONE}; to install one: {_TO_INSTALL}")
        remark(f"the sources are {sources}")
        if compiled is not None:
            remark(f"compiled, the library is in {compiled / 'lib'}")


def _libraries() -> list[_Library]:
    """Libraries that are installed."""
    libraries = [_openvino(), _tvm()]
    return [library for library in libraries if library is not None]


def _openvino() -> _Library | None:
    import re
    from importlib.util import find_spec

    # Importing it would take a third of a second.
    spec = find_spec("openvino")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        root = Path(place)
        files = sorted((root / "libs").glob("libopenvino.so.*"))
        if files and (root / "include").is_dir():
            targets = (root / "cmake" / "OpenVINOTargets.cmake").read_text(encoding="utf-8")
            # Its strings are those of one of the two ABIs of GCC's library.
            abi = re.findall(r"_GLIBCXX_USE_CXX11_ABI=\d", targets)
            return _Library("openvino", files[-1], root / "include", root / "cmake", tuple(abi[:1]))
    return None


def _tvm() -> _Library | None:
    """The interface that TVM's runtime is called by; the runtime itself is in the engine."""
    from importlib.util import find_spec

    spec = find_spec("tvm_ffi")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        root = Path(place)
        library = root / "lib" / "libtvm_ffi.so"
        if library.is_file() and (root / "include").is_dir():
            return _Library("tvm", library, root / "include", root, ())
    return None


def _compiled() -> Path | None:
    """The folder with include/ and lib/ of libdnc_runtime, if it is installed and of this version."""
    from importlib.util import find_spec

    spec = find_spec("libdnc_runtime")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        header = Path(place) / "include" / "dnc.h"
        if header.is_file():
            if f'#define DNC_VERSION "{__version__}"' in header.read_text(encoding="utf-8"):
                return header.parents[1]
            what = "the installed libdnc_runtime has another version than dnc, and is not used"
            warn(DncError(what, header, f"pip install libdnc_runtime=={__version__}"))
    return None


def _some(libraries: list[_Library]) -> list[_Library]:
    if not libraries:
        raise TargetError(_NONE, hint=_TO_INSTALL)
    return libraries


def _flags(sources: Path, libraries: list[_Library]) -> list[str]:
    chosen = {f"backend_{library.target}.cpp" for library in libraries}
    files = sorted((sources / "src").glob("*.cpp"))
    own = [str(file) for file in files if not file.name.startswith("backend_") or file.name in chosen]
    # The numbers equal Darknet's: no product and sum in one rounding.
    words = ["-O2", "-ffp-contract=off", "-pthread", f"-I{sources / 'include'}"]
    for library in libraries:
        words += [f"-DDNC_WITH_{library.target.upper()}", *(f"-D{define}" for define in library.defines)]
        words += ["-isystem", str(library.include)]
    words += own
    for library in libraries:
        words += [str(library.file), f"-Wl,-rpath,{library.file.parent}"]
    return [*words, "-ldl"]


def _words(words: list[str]) -> list[str]:
    for word in words:
        if any(letter.isspace() for letter in word):
            # What a shell puts in for $(...) it splits at blanks, quoted or not.
            raise DncError(
                "a blank in a path, which $(dnc embed --flags) cannot have", word, "use CMake: --prefix-path"
            )
    return words


def _copy(sources: Path, out: Path) -> None:
    """A copy that appears whole or not at all."""
    import shutil

    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise DncError("there is something in this place already", out, "choose another folder")
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole_folder(out) as folder:
            shutil.copytree(sources, folder, dirs_exist_ok=True)
    except OSError as error:
        raise DncError(f"cannot write the folder: {error.strerror or error}", out, "is it read-only?") from error
