"""The C++ API: the public classes of dnc.hpp, with the comments that stand above and beside their members."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from docs._ext.headers import HEADERS, directive
from docs._ext.text import fenced, prose

__all__ = ["cpp_page", "pages"]

_SEVERAL = re.compile(r"(\w+) (\w+ = \w+(?:, \w+ = \w+)+)")


def pages() -> Mapping[str, str]:
    """The page by its place."""
    return {"reference/embed/cpp.md": cpp_page((HEADERS / "dnc.hpp").read_text("utf-8"))}


def cpp_page(header: str) -> str:
    """dnc.hpp: classes begin and end at the start of a line; their members are indented by four blanks."""
    intro, _, rest = header.partition("#ifndef")
    title, _, more = _text(intro.splitlines()).split("\n\n")
    rest = re.sub(r"^namespace detail \{.*?^\}  // namespace detail", "", rest, flags=re.DOTALL | re.MULTILINE)
    code = "\n".join(line.removeprefix("//     ") for line in intro.split("\n//\n")[1].splitlines())
    parts = ["# C++: dnc.hpp", prose(title), fenced(code, "cpp"), prose(more), *_classes(rest.splitlines())]
    return "\n\n".join(parts) + "\n"


def _text(lines: Sequence[str]) -> str:
    """What lines of comments say."""
    return "\n".join(line.strip().removeprefix("//").strip() for line in lines).strip()


def _classes(lines: Sequence[str]) -> Iterator[str]:
    for number, line in enumerate(lines):
        found = re.match(r"(class|struct) (\w+)", line)
        if found:
            kind, name = found.groups()
            end = lines.index("};", number)
            yield f"## {name}"
            text = prose(_text(_above(lines, number)))
            yield directive(f"cpp:{kind}", [f"dnc::{name}"], text, list(_members(lines[number + 1 : end])))


def _above(lines: Sequence[str], number: int) -> Sequence[str]:
    """The comments right above a line."""
    first = number
    while first and lines[first - 1].strip().startswith("//"):
        first -= 1
    return lines[first:number]


def _members(lines: Sequence[str]) -> Iterator[str]:
    number = 0
    while number < len(lines) and lines[number] != "private:":
        line = lines[number]
        if not re.match(r" {4}\w", line):
            number += 1
            continue
        first = number
        while not re.search(r"[;{]", lines[number].partition("//")[0]):
            number += 1
        declaration, _, rest = " ".join(lines[first : number + 1]).partition("//")
        if "{" in declaration and declaration.count("{") > declaration.count("}"):
            number = lines.index("    }", number)
        text = prose(_text(_above(lines, first)) or rest.strip())
        declared = " ".join(re.split(r"[;{]| : ", declaration)[0].split())
        several = _SEVERAL.fullmatch(declared)
        if several:
            yield directive("cpp:member", [f"{several[1]} {name}" for name in several[2].split(", ")], text)
        else:
            yield directive("cpp:function" if "(" in declared else "cpp:member", [declared], text)
        number += 1
