"""No test depends on the clock, or on what chance brings: neither on a busy machine nor on a slow one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from hypothesis import HealthCheck, settings

from tests import ROOT

CLOCKS = {"time", "timeit"}
"""What tells how long something took."""
WITH_CLOCKS = {
    "tests/conftest.py": "which sets it for all",
    "tests/patience.py": "which ends what hangs",
    "tests/embed/native.py": "how old a folder is",
    "tests/fuzz/__main__.py": "which runs for as long as it is told to",
    "tests/fuzz/running.py": "which ends what hangs",
    "tests/fuzz/soak.py": "which runs for as long as it is told to",
    "tests/runtime/test_package.py": "how old a folder is",
    "tests/targets/cuda/compiling.py": "which says how long it took",
    "tests/targets/myriad/test_installing.py": "how old a folder is",
    "tests/zoo/test_zoo.py": "a server that is slow",
}


def _told(path: Path) -> Iterator[str]:
    """What a file of tests says of seconds."""
    name_of_file = path.relative_to(ROOT)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Import | ast.ImportFrom | ast.keyword | ast.Call):
            continue
        place = f"{name_of_file}:{node.lineno}"
        if isinstance(node, ast.Import) and CLOCKS & {each.name for each in node.names}:
            yield f"{place}: a clock"
        if isinstance(node, ast.ImportFrom) and node.module in CLOCKS:
            yield f"{place}: a clock"
        if isinstance(node, ast.keyword) and node.arg == "timeout" and isinstance(node.value, ast.Constant):
            yield f"{place}: timeout=PATIENCE"
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name == "settings" and any(keyword.arg == "deadline" for keyword in node.keywords):
                yield f"{place}: tests/conftest.py sets the deadline"
            unseeded = not node.args and not node.keywords
            if unseeded and name in ("default_rng", "RandomState", "Random", "seed"):
                yield f"{place}: {name}() of another seed each time"


def test_no_test_looks_at_the_clock() -> None:
    found = [
        line
        for path in sorted((ROOT / "tests").rglob("*.py"))
        if str(path.relative_to(ROOT)) not in WITH_CLOCKS
        for line in _told(path)
    ]
    assert found == []


def test_settings_of_a_test() -> None:
    """Those of tests/conftest.py hold where a test has some of its own."""
    own = settings(max_examples=1)
    assert (own.deadline, own.derandomize, own.database) == (None, True, None)
    assert HealthCheck.too_slow in own.suppress_health_check
