"""The C API: dnc.h as declarations with the comments that stand above and beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from docs._ext.text import definitions, fenced, prose

__all__ = ["HEADERS", "c_page", "directive", "pages"]

HEADERS = Path(__file__).resolve().parents[2] / "embed/include"
_C = re.compile(
    r"""
      /\*(?P<comment>.*?)\*/
    | typedef\ enum\ (?P<enum>\w+)\ DNC_ENUM\ \{(?P<values>.*?)\}\ \w+;
    | typedef\ struct\ (?P<struct>\w+)\ \{(?P<members>.*?)\}\ \w+;
    | typedef\ struct\ (?P<opaque>\w+)\ \w+;
    | (?P<functions>(?:DNC_API\ [^;]+;\s)+)
    | (?P<blank>\n[ \t]*\n)
    """,
    re.DOTALL | re.VERBOSE,
)
_VALUE = re.compile(r"(DNC_\w+ = \d+),?(?: */\*(.*?)\*/)?", re.DOTALL)
_MEMBER = re.compile(r"^ *([^;/\n]+);(?: */\*(.*?)\*/)?", re.DOTALL | re.MULTILINE)


def pages() -> Mapping[str, str]:
    """The page by its place."""
    return {"reference/embed/c.md": c_page((HEADERS / "dnc.h").read_text("utf-8"))}


def c_page(header: str) -> str:
    """dnc.h."""
    first, _, rest = header.partition("*/")
    intro, rules = _comment(first.removeprefix("/*")).split("Rules that hold for all of it:\n\n")
    title, _, example = intro.partition("\n\n")
    terms = re.findall(r"^    (\w+) +(.*(?:\n {8,}.*)*)", rules, re.MULTILINE)
    parts = [
        "# C: dnc.h",
        prose(title),
        fenced("\n".join(line[4:] for line in example.rstrip().splitlines()), "c"),
        "## Rules that hold for all of it",
        definitions((f"**{term}**", prose(" ".join(text.split()))) for term, text in terms),
        "## Declarations",
        *_declarations(rest.partition('extern "C" {')[2]),
    ]
    return "\n\n".join(parts) + "\n"


def _comment(text: str) -> str:
    """A comment's text, with its indentation, but not with the stars of its lines."""
    return "\n".join(re.sub(r"^ \* ?", "", line) for line in text.strip().splitlines()).rstrip("* \n")


def directive(kind: str, signatures: Sequence[str], text: str, inner: Sequence[str] | None = None) -> str:
    """Declarations for Sphinx, of which the last has the text, and the declarations within it."""
    fence = "::::" if inner is None else ":::::"
    bodies = [""] * (len(signatures) - 1) + ["\n\n".join([text, *(inner or [])]).strip()]
    made = []
    for signature, body in zip(signatures, bodies, strict=True):
        head = f"{fence}{{{kind}}} {' '.join(signature.split())}\n"
        made.append(f"{head}\n{body}\n{fence}" if body else f"{head}{fence}")
    return "\n\n".join(made)


def _inner(kind: str, pattern: re.Pattern[str], text: str) -> list[str]:
    return [directive(kind, [name], prose(_comment(said))) for name, said in pattern.findall(text)]


def _declarations(text: str) -> Iterator[str]:
    comment = ""
    for found in _C.finditer(text):
        if found["comment"] is not None:
            comment = prose(_comment(found["comment"]))
            continue
        if found["enum"]:
            yield directive("c:enum", [found["enum"]], comment, _inner("c:enumerator", _VALUE, found["values"]))
        elif found["struct"]:
            yield directive("c:struct", [found["struct"]], comment, _inner("c:member", _MEMBER, found["members"]))
        elif found["opaque"]:
            yield directive("c:struct", [found["opaque"]], "What it holds is the library's own.")
        elif found["functions"]:
            functions = [each.removeprefix("DNC_API ") for each in re.findall(r"DNC_API [^;]+", found["functions"])]
            yield directive("c:function", functions, comment)
        comment = ""
