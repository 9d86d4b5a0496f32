"""Nothing phones home: in a fresh home a compilation and its engine ask for no name, connect to nothing, and leave
no file but dnc's cache. Children are watched as well."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import ROOT

Write = Callable[..., Path]

WATCH = """
import os, sys
def watch(event, arguments):
    # A socket of the system's own, as multiprocessing has them, is none that leads elsewhere.
    asks = event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request")
    connects = event == "socket.connect" and not isinstance(arguments[1], (str, bytes))
    if asks or connects:
        with open(os.environ["WATCHED"], "a") as file:
            print(event, arguments, file=file)
sys.addaudithook(watch)
"""
"""sitecustomize.py: every Python that starts imports it."""

USE = """
import sys
import numpy as np
import dnc
target, cfg = sys.argv[1:]
with dnc.compile(cfg, target=target, out=cfg + ".engine") as engine:
    engine(np.zeros((16, 16, 3), np.uint8))
"""


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[set[str], str]]:
    """Runs Python code in a fresh home; returns the files there, and what was asked of the network."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WATCH, encoding="utf-8")
    home, watched = tmp_path / "home", tmp_path / "watched"
    home.mkdir()
    watched.touch()

    def run_code(code: str, *arguments: object, **variables: str) -> tuple[set[str], str]:
        told = ("ORT_DISABLE_TELEMETRY", "DNC_CACHE", "MPLCONFIGDIR", "CI", "TF_BUILD", "JENKINS_URL")
        environment = {name: value for name, value in os.environ.items() if name not in told}
        environment |= {"HOME": str(home), "WATCHED": str(watched), "XDG_CACHE_HOME": str(home / ".cache")}
        path = os.pathsep.join((str(tmp_path / "site"), str(ROOT)))
        command = [sys.executable, "-c", code, *map(str, arguments)]
        result = subprocess.run(
            command, env={**environment, "PYTHONPATH": path, **variables}, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        return {str(file.relative_to(home)) for file in home.rglob("*") if file.is_file()}, watched.read_text()

    return run_code


@pytest.mark.parametrize(("target", "library"), [("onnx", "onnxruntime"), ("openvino", "openvino"), ("tvm", "tvm")])
def test_no_target_phones_home(
    target: str, library: str, write: Write, run: Callable[..., tuple[set[str], str]]
) -> None:
    pytest.importorskip(library)
    files, asked = run(USE, target, write("tiny"))
    assert not asked
    assert not {file for file in files if not file.startswith(".cache/dnc/")}


def test_matplotlib_keeps_its_fonts_in_our_cache(run: Callable[..., tuple[set[str], str]]) -> None:
    pytest.importorskip("matplotlib")
    files, asked = run("from dnc.bench.plot import *\nfrom pathlib import Path\nimport_matplotlib(Path('a.png'))")
    assert not asked
    assert {file.split("/")[2] for file in files} == {"matplotlib"}


def test_the_watch_sees_what_it_should(run: Callable[..., tuple[set[str], str]]) -> None:
    _, asked = run("import socket\ntry: socket.getaddrinfo('localhost', 80)\nexcept OSError: pass")
    assert "getaddrinfo" in asked


def test_who_turned_it_on_keeps_it(tmp_path: Path, run: Callable[..., tuple[set[str], str]]) -> None:
    onnx = "from dnc.runtime.runners.onnx import import_onnxruntime as f\nimport os\nf()\n"
    run(onnx + "assert os.environ['ORT_DISABLE_TELEMETRY'] == '0'", ORT_DISABLE_TELEMETRY="0")
    openvino = "from dnc.runtime.runners.openvino import _without_telemetry as f\nimport sys\n"
    agreed = tmp_path / "home" / "intel" / "openvino_telemetry"
    agreed.parent.mkdir()
    run(
        openvino
        + f"""
for text, kept in (("1", False), ("0", True), ("", True)):
    with open({str(agreed)!r}, "w") as file: file.write(text)
    with f(): assert ("openvino_telemetry" in sys.modules) is kept, text
    assert "openvino_telemetry" not in sys.modules
# What an application imported stays its own.
sys.modules["openvino_telemetry"] = sys
with f(): pass
assert sys.modules["openvino_telemetry"] is sys
"""
    )
