"""A package as part of a C or C++ program: as C source, or as an object file.

    NAME.c, or NAME.o    unsigned char dnc_NAME[], the bytes, at an address that 64 divides; size_t dnc_NAME_bytes
    NAME.h               declares both

`dnc_open_memory` opens it. The C source is one string literal of octal escapes: gcc takes 30 MB in 2 s and 0.4 GB of
memory (clang 0.8 s, 0.3 GB), as a list of numbers in 68 s and 4.1 GB (30 s, 3.0 GB). C89 promises no more than 509
characters, and Microsoft's compiler takes 65,535. An object file is made by a compiler for ELF (Linux, Android, the
BSDs), whose assembler reads the bytes from a file: in no time, whatever their number. The same engine, name and
compiler give the same bytes.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dnc.errors import BundleError, DncError
from dnc.files.places import packaged
from dnc.files.reading import check_foreign
from dnc.files.writing import check_places, scratch_folder, whole_file
from dnc.runtime.manifest import read_engine
from dnc.runtime.package import ALIGNMENT, SUFFIX, pack, unpack

__all__ = ["Embedded", "as_c", "as_object"]

_LINE = 48
"""Bytes of a line of C."""
_SECONDS = 600.0
"""For a compiler that reads one file."""


class Embedded(NamedTuple):
    """What was written."""

    source: Path
    """NAME.c or NAME.o."""
    header: Path
    symbol: str
    """The name of the array; that of its size has _bytes at its end."""
    size: int


def as_c(folder: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Embedded:
    """Writes the package of an engine as NAME.c and NAME.h.

    Args:
        folder: an engine folder, or a package.
        out: NAME.c; if not given, the engine's name with .c for .engine or .dnc, in the current folder.

    Raises:
        BundleError: it is no engine, is damaged, or was replaced meanwhile.
        DncError: `out` does not end in .c, gives a name that dnc.h has, or cannot be written.
    """
    place, header, symbol = _places(folder, out, ".c")
    data = _packed(folder)
    _write(place, header, symbol, _c(data, header.name, symbol))
    return Embedded(place, header, symbol, len(data))


def as_object(
    folder: str | os.PathLike[str], out: str | os.PathLike[str] | None = None, compiler: str = "cc"
) -> Embedded:
    """Writes the package of an engine as NAME.o and NAME.h.

    Args:
        folder: as for `as_c`.
        out: as for `as_c`, with .o.
        compiler: the C compiler for the machine that the program is for, with its options, as in a shell.

    Raises:
        BundleError, DncError: as `as_c`; or there is no such compiler, or it fails.
    """
    place, header, symbol = _places(folder, out, ".o")
    data = _packed(folder)
    _write(place, header, symbol, [_assembled(data, symbol, compiler)])
    return Embedded(place, header, symbol, len(data))


def _places(folder: str | os.PathLike[str], out: str | os.PathLike[str] | None, suffix: str) -> tuple[Path, Path, str]:
    check_foreign(folder, BundleError)
    name = Path(folder).resolve().name.removesuffix(".engine").removesuffix(SUFFIX)
    place = Path(out) if out is not None else Path(name + suffix)
    if place.suffix != suffix:
        raise DncError(f"the name of the file does not end in {suffix}", place, f"-o {place.stem or 'net'}{suffix}")
    symbol = "dnc_" + re.sub(r"\W", "_", place.stem, flags=re.ASCII)
    own = (packaged("embed") / "include" / "dnc.h").read_text(encoding="utf-8")
    if re.search(rf"\b({symbol}|{symbol}_bytes)\b", own):
        raise DncError(f"dnc.h has another thing of the name {symbol}", place, "choose another file name with -o")
    header = place.with_suffix(".h")
    if header.name.lower() == "dnc.h" or re.search(r'["\x00-\x1f]', header.name):
        # Which would be taken for the runtime's, or could not be included.
        raise DncError("no header can have this name", header, "choose another file name with -o")
    check_places([place, header])
    return place, header, symbol


def _packed(folder: str | os.PathLike[str]) -> bytes:
    if os.path.isfile(folder):  # noqa: PTH113 (Path.is_file raises OSError where a name is too long)
        with scratch_folder("package") as scratch:
            return _packed(unpack(folder, scratch / "engine"))
    _, files = read_engine(Path(folder))
    packed = io.BytesIO()
    pack(Path(folder), files, packed)
    return packed.getvalue()


def _write(place: Path, header: Path, symbol: str, parts: Iterator[bytes] | list[bytes]) -> None:
    """Both files, or on an error none. The header depends on the name alone, so that an old one is right too."""
    with whole_file(place) as file, whole_file(header) as declared:
        declared.write(_header(symbol).encode())
        for part in parts:
            file.write(part)


def _header(symbol: str) -> str:
    guard = f"{symbol.upper()}_H"
    return f"""/* An engine for dnc_open_memory, made by dnc. */
#ifndef {guard}
#define {guard}

#include <stddef.h>

#ifdef __cplusplus
extern "C" {{
#endif

extern const unsigned char {symbol}[];
extern const size_t {symbol}_bytes;

#ifdef __cplusplus
}}
#endif

#endif
"""


def _c(data: bytes, header: str, symbol: str) -> Iterator[bytes]:
    plain = {ord(letter): letter for letter in map(chr, range(32, 127)) if letter not in '"\\?'}
    # All of three digits, so that a digit that follows is no part of one. A question mark could begin a trigraph.
    escaped = [plain.get(byte, f"\\{byte:03o}") for byte in range(256)]
    yield f"""/* An engine for dnc_open_memory, made by dnc. */
#include "{header}"

#ifdef __GNUC__
#pragma GCC diagnostic ignored "-Woverlength-strings"
__attribute__((aligned({ALIGNMENT})))
#endif
const unsigned char {symbol}[] =
""".encode()
    for at in range(0, len(data), _LINE):
        yield ('    "' + "".join(map(escaped.__getitem__, data[at : at + _LINE])) + '"\n').encode()
    yield f"    ;\nconst size_t {symbol}_bytes = {len(data)};\n".encode()


def _assembled(data: bytes, symbol: str, compiler: str) -> bytes:
    """What a C compiler makes of the bytes in a file beside it."""
    # The section and the size of the symbol are said in the assembler's words, the rest in the compiler's.
    code = f"""#include <stddef.h>
__asm__(
    ".section .rodata\\n"
    ".balign {ALIGNMENT}\\n"
    ".globl {symbol}\\n"
    ".type {symbol}, %object\\n"
    "{symbol}:\\n"
    ".incbin \\"package\\"\\n"
    ".size {symbol}, {len(data)}\\n"
    ".previous\\n");
extern const size_t {symbol}_bytes;
const size_t {symbol}_bytes = {len(data)};
"""
    with scratch_folder("object") as scratch:
        (scratch / "package").write_bytes(data)
        (scratch / "package.c").write_text(code, encoding="utf-8")
        try:
            # The names are the same everywhere, for the compiler keeps them.
            command = [*shlex.split(compiler), "-c", "package.c", "-o", "package.o"]
            done = subprocess.run(command, cwd=scratch, capture_output=True, timeout=_SECONDS, check=False)
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            hint = "name one with --cc, as aarch64-linux-gnu-gcc; or take --as-c"
            raise DncError(f"the C compiler cannot be run: {error}", compiler, hint) from error
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
            hint = "an object file wants a compiler for ELF; take --as-c for others"
            raise DncError(f"the C compiler fails: {said[0]}", compiler, hint)
        return (scratch / "package.o").read_bytes()
