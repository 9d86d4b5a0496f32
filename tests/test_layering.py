"""Layering, as a rule that runs: who may import whom, that nothing goes in circles, and where an import may wait.

The packages stand in ORDER, bottom to top. A module imports its own package and those below it, wherever in the file
the import stands; `import dnc` counts as an import of what is then used of it. An import inside a function defers a
library that takes long to load or may be absent (HEAVY), or a module of dnc that imports one (DEFERRED says which, and
why); what the commands need is imported when they run. Imports for type checkers alone follow the order as well.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import dnc
from tests import ROOT
from tools.packages import RUNTIME

ORDER = (
    *("ground", "runtime", "tables", "graph", "darknet", "zoo", "passes", "targets"),
    *("evaluation", "quantization", "compiler", "destinations", "opencv", "bench", "diagnosis", "cli"),
)
GROUND = ("errors", "files", "registry", "typing")
FOLDERS = {"dnc.passes": "passes", "dnc.targets": "targets", "dnc": "dnc"}

HEAVY = {
    "PIL": "an extra of the runtime; 50 ms",
    "click": "the runtime does without",
    "cv2": "an extra",
    "dask": "an extra; seconds",
    "distributed": "an extra; seconds",
    "libstb": "an application that passes arrays does without",
    "matplotlib": "an extra",
    "numpy": "`dnc --help` does without",
    "onnx": "100 ms; the runtime does without",
    "onnx_ir": "a second: it brings sympy; the runtime does without",
    "onnxruntime": "an extra; 100 ms",
    "openvino": "an extra",
    "pycocotools": "an extra",
    "rich": "100 ms; the runtime does without",
    "supervision": "an extra",
    "torch": "an extra",
    "tvm": "an extra; seconds",
    "tvm_ffi": "an extra",
}
"""Libraries whose import may stand in a function: why."""
ALSO_HEAVY = {
    *("asyncio", "concurrent.futures", "ctypes", "importlib", "importlib.metadata", "json", "resource", "shutil"),
    "traceback",
}
"""Modules of Python of which the same is true: they take milliseconds, or are not everywhere."""

_TVM = "imports TVM, which is an extra"
DEFERRED: Mapping[str, str] = {
    "dnc.runtime.engine": "dnc.bench.child times its import",
    "dnc.runtime.package": "an application that opens folders reads no packages",
    "dnc.runtime.runners.cuda.kernels": "a back end of cuda: the other one is not needed",
    "dnc.runtime.runners.cuda.onnxruntime": "a back end of cuda: the other one is not needed",
    "dnc.runtime.runners.tvm.session": "an application that finds its runner does without the rest",
    "dnc.targets.cuda.emit": _TVM,
    "dnc.targets.cuda.lowering": _TVM,
    "dnc.targets.tvm.cpu_tuning": _TVM,
    "dnc.targets.tvm.emit.suppression": _TVM,
    "dnc.targets.tvm.joining": _TVM,
    "dnc.targets.tvm.provenance": _TVM,
    "dnc.targets.tvm.schedules": _TVM,
    "dnc.targets.tvm.schedules.interleave": _TVM,
    "dnc.zoo.importer": "imports onnx; fetching weights needs it only for those of other frameworks",
}
"""Modules of dnc that modules other than commands may import inside functions: why."""


class Import(NamedTuple):
    """An import."""

    module: str
    """Who imports."""
    line: int
    name: str
    """What is imported: a module."""
    deferred: bool
    """Whether it stands in a function."""
    typing: bool
    """Whether only type checkers see it."""

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.name}"


@cache
def modules() -> dict[str, Path]:
    """Every module of dnc and its file."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


def read_imports(module: str, text: str, known: Mapping[str, object]) -> Iterator[Import]:
    """The imports in the text of a module, with `dnc.name` for what is used of the package by `import dnc`."""

    def walk(node: ast.AST, deferred: bool, typing: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            typing = True
        deferred |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: imports are absolute"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            # `from dnc import name` is what dnc has lazily.
            lazy = [dnc._HOMES.get(alias.name, "") if node.module == "dnc" else "" for alias in node.names]
            plain = [name if name in known else node.module or "" for name in inner]
            names = [home or name for home, name in zip(lazy, plain, strict=True)]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "dnc":
            names = [dnc._HOMES[node.attr]] if node.attr in dnc._HOMES else []
            # Written where it is used, imported by dnc.
            deferred = False
        yield from (Import(module, node.lineno, name, deferred, typing) for name in dict.fromkeys(names))  # type: ignore[attr-defined]
        for child in ast.iter_child_nodes(node):
            yield from walk(child, deferred, typing)

    yield from walk(ast.parse(text), False, False)


@cache
def imports() -> list[Import]:
    """All of them, but those of dnc/__init__.py: it names what everybody may import from `dnc`, and loads it on use."""
    known = modules()
    return [
        item
        for module, path in sorted(known.items())
        if module != "dnc"
        for item in read_imports(module, path.read_text(encoding="utf-8"), known)
    ]


def layer(module: str) -> int:
    """The place of a module's package in ORDER."""
    parts = module.split(".")
    name = parts[1] if len(parts) > 1 else "ground"
    return ORDER.index("ground" if name in GROUND else "cli" if name == "__main__" else name)


def upwards(found: list[Import]) -> list[str]:
    return [str(item) for item in found if item.name.split(".")[0] == "dnc" and layer(item.name) > layer(item.module)]


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Modules that import each other, by Tarjan's algorithm."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in sorted(edges[module]):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            place = stack.index(module)
            if len(stack) > place + 1:
                found.append(sorted(stack[place:]))
            del stack[place:]

    for module in sorted(edges):
        if module not in index:
            visit(module)
    return found


def graph(found: list[Import]) -> dict[str, set[str]]:
    """Who imports whom at run time, wherever the import stands."""
    known = modules()
    edges: dict[str, set[str]] = {module: set() for module in known}
    for item in found:
        if item.name in known and item.name not in ("dnc", item.module) and not item.typing:
            edges[item.module].add(item.name)
    return edges


def late(found: list[Import]) -> list[str]:
    """Imports inside functions that no rule allows."""
    wrong = []
    for item in found:
        top = item.name.partition(".")[0]
        if item.typing or not item.deferred or layer(item.module) == ORDER.index("cli"):
            continue
        allowed = item.name in DEFERRED if top == "dnc" else top in HEAVY or item.name in ALSO_HEAVY
        if not allowed:
            wrong.append(str(item))
    return wrong


def test_nothing_imports_upwards() -> None:
    assert upwards(imports()) == []


def test_no_circles() -> None:
    assert circles(graph(imports())) == []


def test_imports_in_functions_defer_something_heavy() -> None:
    assert late(imports()) == []


def test_what_may_be_deferred_is_deferred() -> None:
    """No rule without a use."""
    names = {item.name for item in imports() if item.deferred and layer(item.module) != ORDER.index("cli")}
    assert set(DEFERRED) <= names


def test_the_runtime_imports_the_ground_alone() -> None:
    """With what stands in functions and for type checkers."""
    below = {"dnc", *(f"dnc.{name}" for name in ("runtime", *GROUND))}
    found = [item for item in imports() if layer(item.module) <= ORDER.index("runtime")]
    inner = [item for item in found if item.name.split(".")[0] == "dnc"]
    assert [str(item) for item in inner if ".".join(item.name.split(".")[:2]) not in below] == []


def test_the_runtime_s_package_has_it_whole() -> None:
    """With the ground, and nothing of what stands above."""
    own = {Path(name).parts[1].removesuffix(".py") for name in RUNTIME}
    assert own == {"__init__", "__main__", "py.typed", "runtime", *GROUND}


def test_entries_of_the_package() -> None:
    entries = [path for path in (ROOT / "dnc").iterdir() if path.suffix in ("", ".py") and path.name != "__pycache__"]
    assert len(entries) <= 19, sorted(path.name for path in entries)
    names = {path.stem for path in entries} | {"passes", "targets"}
    assert names - {"__init__", "__main__"} == {*ORDER, *GROUND} - {"ground"}


def test_there_are_no_symbolic_links() -> None:
    """Where a checkout has none (Windows), one is a text file with a path."""
    left = {".git", ".venv", "build"}
    tops = [path for path in ROOT.iterdir() if path.name not in left]
    assert [path for top in tops for path in (top, *top.rglob("*")) if path.is_symlink()] == []


@pytest.mark.parametrize(
    ("module", "text", "rule"),
    [
        ("dnc.runtime.engine", "from dnc.graph import builder", "upwards"),
        ("dnc.runtime.engine", "def f():\n    import dnc.targets", "upwards"),
        ("dnc.graph.work", "import dnc\ndef f():\n    dnc.compile('a')", "upwards"),
        ("dnc.graph.work", "from dnc import compile", "upwards"),
        ("dnc.graph.work", "if TYPE_CHECKING:\n    from dnc.targets import Target", "upwards"),
        ("dnc.errors", "from dnc.runtime import engine", "upwards"),
        ("dnc.graph.work", "def f():\n    import math", "late"),
        ("dnc.graph.work", "async def f():\n    from dnc.errors import DncError", "late"),
    ],
)
def test_violations_are_seen(module: str, text: str, rule: str) -> None:
    found = list(read_imports(module, text, modules()))
    assert len({"upwards": upwards, "late": late}[rule](found)) == 1


def test_circles_are_seen() -> None:
    edges = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": {"e"}, "e": set[str](), "f": {"g"}, "g": {"f"}}
    assert circles(edges) == [["a", "b", "c"], ["f", "g"]]


if __name__ == "__main__":
    # What is wrong, for people.
    print(*upwards(imports()), *map(str, circles(graph(imports()))), *late(imports()), sep="\n", file=sys.stdout)
