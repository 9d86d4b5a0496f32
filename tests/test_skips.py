"""The plug-in that makes skipped tests fail, and the record of what never ran."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.skips import main, never_ran

TESTS = """
import pytest
def test_runs(): pass
def test_library(): pytest.importorskip("no_such_library")
def test_hardware(): pytest.skip("this CPU has no bfloat16")
@pytest.mark.xfail(reason="known")
def test_known(): assert False
"""
MODULE = """
import pytest
pytest.importorskip("no_such_library")
def test_never(): pass
"""

pytest_plugins = ["pytester"]


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest('pytest_plugins = ["tests.skips"]')
    pytester.makepyfile(test_a=TESTS, test_b=MODULE)
    return pytester


def test_skips_fail(suite: pytest.Pytester) -> None:
    assert suite.runpytest("-p", "no:cacheprovider").parseoutcomes() == {"passed": 1, "skipped": 3, "xfailed": 1}
    result = suite.runpytest("-p", "no:cacheprovider", "--no-skips", "test_a.py")
    assert result.parseoutcomes() == {"passed": 1, "failed": 1, "skipped": 1, "xfailed": 1}
    result = suite.runpytest("-p", "no:cacheprovider", "--no-skips", "test_b.py")
    assert result.ret != 0
    result.stdout.fnmatch_lines(["*skipped, though this step is for it: could not import 'no_such_library'*"])


def test_what_never_ran(suite: pytest.Pytester, capsys: pytest.CaptureFixture[str]) -> None:
    suite.runpytest("-p", "no:cacheprovider", "--outcomes", "record")
    record = Path("record")
    capsys.readouterr()
    assert main("record") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "3 tests were skipped in every step, 2 of them for another reason than hardware"
    assert "test_a.py::test_hardware: this CPU has no bfloat16" in lines
    with record.open("a") as file:
        file.write("passed\ttest_a.py::test_library\t\npassed\ttest_b.py::test_never\t\n")
    assert main("record") == 0
    assert list(never_ran(record.read_text().splitlines())) == ["test_a.py::test_hardware"]


def test_what_is_left(suite: pytest.Pytester) -> None:
    """What has passed does not run again."""
    for selected in ("runs or hardware", ""):
        suite.runpytest("-p", "no:cacheprovider", "--outcomes", "record", "-k", selected)
        left = suite.runpytest("-p", "no:cacheprovider", "--left", "record").parseoutcomes()
        assert left == {"skipped": 3, "deselected": 1, "xfailed": 1}


def test_where_nothing_is_left(suite: pytest.Pytester) -> None:
    """A step of which everything has passed is no failure."""
    suite.runpytest("-p", "no:cacheprovider", "--outcomes", "record", "-k", "runs")
    assert suite.runpytest("-p", "no:cacheprovider", "-k", "runs").ret == pytest.ExitCode.OK
    assert suite.runpytest("-p", "no:cacheprovider", "-k", "runs", "--left", "record").ret == pytest.ExitCode.OK
    assert suite.runpytest("-p", "no:cacheprovider", "-k", "nothing").ret == pytest.ExitCode.NO_TESTS_COLLECTED
