"""The base install: every module imports and every command prints its help without onnxruntime, and what is light
stays light.
"""

from __future__ import annotations

import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dnc
import dnc.passes
import dnc.targets
from tests import ROOT

EXTRAS = ("onnxruntime", "openvino", "tvm", "libusb_package", "tensorrt", "torch", "cv2", "scipy", "onnxscript")
"""What is in no dependency of the base install."""

IN_TVM = (
    *("dnc.targets.tvm.schedules", "dnc.targets.tvm.cpu_tuning", "dnc.targets.tvm.joining"),
    *("dnc.targets.tvm.calls", "dnc.targets.tvm.provenance", "dnc.targets.tvm.emit.suppression"),
    *("dnc.targets.cuda.schedules", "dnc.targets.cuda.graphs", "dnc.targets.cuda.lowering", "dnc.targets.cuda.emit"),
    *("dnc.targets.cuda.excitation", "dnc.targets.cuda.places"),
)
"""What writes TVM's own representation, expression by expression: only a compilation for TVM imports it."""

BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
"""


def modules() -> list[str]:
    """Every module of dnc, passes and targets included."""
    found = {module.name for module in pkgutil.walk_packages(dnc.__path__, "dnc.")}
    # In a checkout they stand beside dnc/.
    for package in (dnc.passes, dnc.targets):
        found |= {module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")}
    return sorted(found - {"dnc.__main__"})


def run(code: str, *arguments: str, blocked: tuple[str, ...] = EXTRAS) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    text = BLOCK.replace("BLOCKED", repr(blocked)) + code
    return subprocess.run([sys.executable, "-c", text, *arguments], env=environment, capture_output=True, text=True)


def test_all_modules_are_found() -> None:
    found = modules()
    assert {"dnc.passes.fold_batchnorm", "dnc.targets.onnx", "dnc.darknet.layers.yolo", "dnc.cli.compile"} <= set(found)


def test_every_module_imports_without_extras() -> None:
    code = "import importlib\nfor name in sys.argv[1:]: importlib.import_module(name)\nprint('all')"
    result = run(code, *(name for name in modules() if not name.startswith(IN_TVM)))
    assert (result.stdout, result.stderr) == ("all\n", "")


def test_every_command_prints_its_help_without_extras() -> None:
    code = """
from dnc.cli import cli
import click
commands = cli.list_commands(click.Context(cli))
assert "compile" in commands
for arguments in [["--help"], ["--version"], *([name, "--help"] for name in commands)]:
    cli.main(arguments, standalone_mode=False, prog_name="dnc")
print(len(commands))
"""
    result = run(code)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert result.stdout.count("Usage: dnc") == 1 + int(result.stdout.split()[-1])


def test_using_an_engine_says_what_is_missing(tmp_path: Path) -> None:
    from tests.networks import TINY, write_network

    cfg = write_network(tmp_path, "tiny", TINY)
    dnc.compile(cfg, out=tmp_path / "e", target="onnx")
    code = "import dnc.cli; sys.argv[0] = 'dnc'; dnc.cli.main()"
    # find_spec is what the targets ask, so the library must be hidden from it as well.
    hide = "import importlib.util; find = importlib.util.find_spec\n"
    hide += "importlib.util.find_spec = lambda name, *more: None if name == 'onnxruntime' else find(name, *more)\n"
    for arguments in (["compile", str(cfg), "-o", str(tmp_path / "f"), "-t", "onnx"],):
        result = run(hide + code, *arguments)
        assert result.returncode == 1, result.stderr
        assert "needs onnxruntime, which is not installed" in result.stderr
        assert 'hint: pip install "darknet-compiler[onnx]"' in result.stderr
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("dnc", ("numpy", "onnx", "onnx_ir", "PIL", "click", "rich", "onnxruntime", "sympy")),
        ("dnc.cli", ("numpy", "onnx", "onnx_ir", "PIL", "rich", "onnxruntime", "sympy")),
        ("dnc.runtime.engine", ("onnx", "onnx_ir", "PIL", "click", "rich", "onnxruntime", "sympy")),
        ("dnc.darknet.network", ("onnx", "onnx_ir", "PIL", "click", "rich", "onnxruntime", "sympy")),
        ("dnc.targets", ("PIL", "click", "rich", "onnxruntime", "openvino", "tvm")),
    ],
)
def test_light(module: str, heavy: tuple[str, ...]) -> None:
    """Finding the plug-ins included: `list` looks into every file of the folders."""
    more = "\nfrom dnc.targets import targets; list(targets)" if module == "dnc.targets" else ""
    more += "\nfrom dnc.darknet.layers import layers; list(layers)" if module == "dnc.darknet.network" else ""
    more += "\nfrom dnc.runtime.runners import runners; list(runners)" if module == "dnc.runtime.engine" else ""
    result = run(f"import {module}{more}\nprint([name for name in {heavy!r} if name in sys.modules])", blocked=())
    assert (result.stdout, result.stderr) == ("[]\n", "")


def test_help_is_instant() -> None:
    """Half a second of the processor, with Python's own start."""
    code = "import resource, subprocess; subprocess.run([sys.executable, '-m', 'dnc', '--help'], capture_output=True)"
    code += "\nused = resource.getrusage(resource.RUSAGE_CHILDREN); print(used.ru_utime + used.ru_stime)"
    result = run(code)
    assert float(result.stdout) < 0.5


COMPILER = ("click", "onnx", "onnx_ir", "PIL", "rich", "cv2")


@pytest.mark.parametrize("what", ["import dnc.opencv", "import dnc; dnc.compile", "import dnc; dnc.export"])
def test_the_runtime_alone_says_what_to_install(what: str) -> None:
    result = run(what, blocked=COMPILER)
    *_, said = result.stderr.splitlines()
    name = what.removeprefix("import dnc; ").removeprefix("import ")
    assert re.match(rf"ModuleNotFoundError: {name} needs onnx\w*, which is not installed: only the runtime is; ", said)
    assert said.endswith('pip install "darknet-compiler[compiler]"')


def test_dir_shows_the_api() -> None:
    assert set(dnc.__all__) < set(dir(dnc))
    assert not {"Any", "TYPE_CHECKING", "annotations", "_HOMES"} & set(dir(dnc))
    assert "__version__" in dir(dnc)
