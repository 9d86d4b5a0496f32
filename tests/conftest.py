"""What the tests share: the command line in this process, networks as files, and their engines."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, settings

from tests.networks import NETWORKS, write_network

# A machine that is slow or busy fails no test, and every run tries the same: what is random is `make fuzz`. A test with
# @settings of its own inherits what it does not name.
settings.register_profile(
    "dnc",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("dnc")


pytest_plugins = ["tests.skips"]


class Result(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str
    """But for the line that says which cfg and weights were taken."""


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs `dnc ARGUMENTS` in this process; a traceback is in `err`, with code 70."""

    def run(*arguments: object) -> Result:
        from dnc.cli import main

        monkeypatch.setattr(sys, "argv", ["dnc", *map(str, arguments)])
        monkeypatch.setattr("signal.signal", lambda *_: None)
        capfd.readouterr()
        with warnings.catch_warnings(), pytest.raises(SystemExit) as caught:
            main()
        code = caught.value.code
        out, err = capfd.readouterr()
        err = re.sub(r"^dnc: (?!error|warning).* (?:with .*|without weights)\n", "", err, flags=re.MULTILINE)
        return Result(code if isinstance(code, int) else 0 if code is None else 1, out, err)

    return run


@pytest.fixture(autouse=True)
def _quick_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Target cpu times its candidates as shortly as it can, OpenVINO keeps nothing in the user's cache, and nobody
    waits for the disk: what a test has written it needs not after a power failure."""
    monkeypatch.setattr("dnc.compiler.choosing.SECONDS", 0.01)
    monkeypatch.setattr("dnc.compiler.choosing._SETTLE", 0.0)
    monkeypatch.setattr("dnc.runtime.runners.openvino._cache", lambda folder: None)
    monkeypatch.setattr("os.fsync", lambda file: None)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a network of networks.py, or cfg text, with random weights; returns the cfg's path."""

    def write_named(name: str, cfg: str | None = None, *, seed: int = 0, lenient: bool = False) -> Path:
        return write_network(tmp_path, name, NETWORKS[name] if cfg is None else cfg, seed=seed, lenient=lenient)

    return write_named
