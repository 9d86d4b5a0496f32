"""Skipped tests: which reasons a machine without special hardware may have, and a record of what ran and what did not.

    pytest --no-skips          a skip fails, unless its reason is one of HARDWARE
    pytest --outcomes FILE     appends lines to FILE: passed or skipped, the test, the reason
    pytest --left FILE         leaves out what has passed, as FILE says
    python -m tests.skips FILE prints the tests that never ran, with reasons; fails if one is none of HARDWARE

A plug-in of pytest (tests/conftest.py); `.ci/run` records every step, and asks at the end.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

HARDWARE = {
    r"this processor is no |this CPU has no ": "instructions that not every processor has",
    r"for x86$|x86-64-v2 is for other machines|the linker is for another machine": "another architecture",
    r"an NVIDIA GPU|no GPU": "an NVIDIA GPU",
    r"this onnxruntime has a CUDA provider": "a machine without an NVIDIA GPU",
    r"root may read everything": "a user who may not read everything",
    r"tmpfs cannot be mounted": "a container that may mount",
    r"could not import 'model_explorer": "Model Explorer and its reader of ONNX, of 700 MB with what they bring",
    r"could not import 'torch'": "PyTorch, of 3 GB with what it brings",
    r"\.\./shared|: `dnc zoo fetch |the cache and ": "inputs outside this repository: the suite `shared`",
}
"""What a reason may say, and what the test needs."""


def is_hardware(reason: str) -> bool:
    """Whether a reason is one of those that nothing here can be done about."""
    return any(re.search(pattern, reason) for pattern in HARDWARE)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declares the options."""
    parser.addoption("--no-skips", action="store_true", help="fail what skips for want of anything but hardware")
    parser.addoption("--outcomes", metavar="FILE", help="append to FILE what passed and what was skipped")
    parser.addoption("--left", metavar="FILE", help="leave out what has passed, as FILE says")


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


def _strict(report: Any) -> None:
    if report.skipped and not hasattr(report, "wasxfail") and not is_hardware(_reason(report)):
        report.longrepr = f"skipped, though this step is for it: {_reason(report)}"
        report.outcome = "failed"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """A skip fails."""
    report = yield
    if item.config.getoption("--no-skips"):
        _strict(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Any:
    """A module that skips fails."""
    report = yield
    if collector.config.getoption("--no-skips"):
        _strict(report)
    return report


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what has passed."""
    path = config.getoption("--left")
    if path is None:
        return
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    passed = {test for outcome, test, _ in (line.split("\t") for line in lines) if outcome == "passed"}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in passed])
    items[:] = [item for item in items if item.nodeid not in passed]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Nothing that is left is no failure."""
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and session.config.getoption("--left"):
        session.exitstatus = pytest.ExitCode.OK


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Appends to the file."""
    path = config.getoption("--outcomes")
    if path is None:
        return
    with Path(path).open("a", encoding="utf-8") as file:
        for report in terminalreporter.stats.get("passed", []):
            file.write(f"passed\t{report.nodeid}\t\n")
        for report in terminalreporter.stats.get("skipped", []):
            file.write(f"skipped\t{report.nodeid}\t{' '.join(_reason(report).split())}\n")


def never_ran(lines: list[str]) -> dict[str, str]:
    """Tests that were skipped and never passed, with the last reason. A module that skipped is one test."""
    passed: set[str] = set()
    skipped: dict[str, str] = {}
    for line in lines:
        outcome, test, reason = line.split("\t")
        if outcome == "passed":
            passed |= {test, test.partition("::")[0]}
        else:
            skipped[test] = reason
    return {test: reason for test, reason in sorted(skipped.items()) if test not in passed}


def main(path: str) -> int:
    """Prints the tests; returns 1 if one should have run."""
    left = never_ran(Path(path).read_text(encoding="utf-8").splitlines())
    for test, reason in left.items():
        print(f"{'' if is_hardware(reason) else 'WRONG '}{test}: {reason}")
    wrong = sum(not is_hardware(reason) for reason in left.values())
    print(f"{len(left)} tests were skipped in every step, {wrong} of them for another reason than hardware")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
