"""Text of the code as Markdown: what docstrings and help say, and lists of terms."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence

from dnc.runtime.options import Option

__all__ = ["allowed", "attribute_texts", "code", "definitions", "fenced", "options", "prose", "toctree"]

_SPAN = re.compile(r"`[^`\n]+`")
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def prose(text: str) -> str:
    """A docstring's paragraphs, lists and indented blocks; only what stands in backticks or indented is code."""
    blocks = re.split(r"((?:^    .*\n?)+)", inspect.cleandoc(text), flags=re.MULTILINE)
    return "".join(_indented(block) if block.startswith("    ") else _unindented(block) for block in blocks).strip()


def _unindented(block: str) -> str:
    return "\n".join(map(_escaped, block.split("\n")))


def _indented(block: str) -> str:
    """A block of terms in one column and texts in another becomes a list of terms; any other is code."""
    entries: list[tuple[str, str]] = []
    column = None
    for line in block.splitlines():
        entry = re.match(r"    (\S.*?)  +(?=\S)", line)
        if column is None and entry:
            column = entry.end()
        if column and re.match(r"    \S", line) and re.match(r" \S", line[column - 1 :]):
            entries.append((line[:column].strip(), line[column:]))
        elif entries and column and not line[:column].strip() and line[column : column + 1].strip():
            entries[-1] = (entries[-1][0], f"{entries[-1][1]} {line.strip()}")
        else:
            return block
    if len(entries) < 2:
        return block
    return definitions((code(term), _escaped(said)) for term, said in entries) + "\n"


def _escaped(line: str) -> str:
    parts, end = [], 0
    for span in _SPAN.finditer(line):
        parts += [_plain(line[end : span.start()]), span[0]]
        end = span.end()
    return "".join(parts) + _plain(line[end:])


def _plain(text: str) -> str:
    """Without what Markdown would take for emphasis, HTML or links; `[net]` stays as it is read. Options are code, as
    two hyphens would be a dash."""
    text = re.sub(r"([*<>\\])|(?<=\])(\()|(?<!\w)(_)|(_)(?!\w)", r"\\\g<0>", text)
    return _OPTION.sub(lambda found: code(found[0]), text)


def code(text: str) -> str:
    """Text as a code span, with whatever is in it."""
    fence = "``" if "`" in text else "`"
    return f"{fence}{text}{fence}"


def fenced(text: str, language: str = "text") -> str:
    """A block of code."""
    return f"```{language}\n{text.rstrip()}\n```"


def definitions(terms: Iterable[tuple[str, str]]) -> str:
    """A list of terms, Markdown both, and what each means."""
    return "\n\n".join(f"{term}\n: " + (text.replace("\n", "\n  ") or "\N{EN DASH}") for term, text in terms)


def options(known: Sequence[Option]) -> str:
    """Declared options: name, default, what is allowed and what it does."""
    return definitions((code(f"{option.name}={option.default}"), _about(option)) for option in known)


def _about(option: Option) -> str:
    summary = option.summary
    if not re.match(r"[\w.+-]+[:;,]", summary):
        # Otherwise it begins with a value of the option.
        summary = summary[:1].upper() + summary[1:]
    said = [prose(summary) + "." * (not summary.endswith(("…", ".")))]
    what, *words = allowed(option)
    if what and not all(word in option.summary for word in words or [what]):
        said.append(f"Allowed is {prose(what)}.")
    if option.at_load:
        said.append("May be given anew when the engine is loaded.")
    return " ".join(said)


def allowed(option: Option) -> Sequence[str]:
    """What `Option.parse` says of a value that nothing can mean, and the words that are allowed; ("",) for any text."""
    try:
        option.parse("\0")
    except ValueError as error:
        return [str(each) for each in error.args] or [""]
    return [""]


def toctree(names: Iterable[str], **settings: str) -> str:
    """A list of pages for the navigation."""
    head = "".join(f":{key}: {value}".rstrip() + "\n" for key, value in settings.items())
    return "```{toctree}\n" + head + "\n" + "\n".join(names) + "\n```"


def attribute_texts(kind: type) -> Mapping[str, str]:
    """The strings that stand below the attributes of a class, by the attributes' names."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    assert isinstance(tree.body[0], ast.ClassDef)
    found, name = {}, ""
    for node in tree.body[0].body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            if name:
                found[name] = inspect.cleandoc(node.value.value)
            continue
        target = node.target if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [None])[0]
        name = target.id if isinstance(target, ast.Name) else ""
    return found
