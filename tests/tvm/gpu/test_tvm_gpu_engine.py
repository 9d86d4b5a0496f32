"""Engines of target cuda's back end tvm: compiled without a GPU, and run on the one of emulator/driver.cpp."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import dnc
from dnc.errors import TargetError
from dnc.gpu import Gpu
from dnc.lower import lower
from dnc.network import Network
from dnc.reference import run
from dnc.targets.cuda import Cuda
from dnc.tvm.gpu.process import Job, cuda_runtime, make_library
from dnc.tvm.gpu.toolkit import find_toolkit
from dnc.tvm.session import MODEL
from tests.conftest import _write
from tests.networks import NETWORKS
from tests.tvm.gpu.emulation import make_driver, make_kernels

Write = Callable[..., Path]
_ROOT = Path(__file__).parents[3]
_HAS_TVM = cuda_runtime() is not None and shutil.which("g++") is not None
needs_tvm = pytest.mark.skipif(not _HAS_TVM, reason="needs apache-tvm and g++")

_RUN = """
import sys
from pathlib import Path
import numpy as np
from dnc.errors import TargetError
import dnc
try:
    engine = dnc.load(sys.argv[1])
    image = np.load(sys.argv[2])
    first = engine.forward(image)
    second = engine.forward(image)
    assert all(np.array_equal(a, b) for a, b in zip(first, second))
    assert "tvm" not in sys.modules
    np.savez(sys.argv[3], *first)
    print(engine.device)
except TargetError as error:
    print(error)
"""


def _fake_nvcc(folder: Path) -> Path:
    """A compiler that keeps the source, and says that all is well."""
    path = folder / "nvcc"
    path.write_text(
        "#!/bin/sh\n"
        "for last; do :; done\n"
        'case "$*" in --version) echo "release 13.0"; exit;; esac\n'
        'while [ "$1" != -o ]; do shift; done\n'
        f'cp "$last" {folder}/kernels.cu && echo emulated > "$2"\n'
    )
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an engine for sm_75 and sm_87, an image, and the emulated GPU with its kernels."""
    folder = tmp_path_factory.mktemp("gpu")
    cfg = _write(folder, "yolo", NETWORKS["yolo"])
    options = {"backend": "tvm", "arch": "sm_87,sm_75", "compiler": str(_fake_nvcc(folder))}
    dnc.compile(cfg, out=folder / "e", target="cuda", options=options)
    make_driver(folder)
    make_kernels((folder / "kernels.cu").read_text(), folder / "kernels.so", folder)
    shape = Network.load(cfg).input_shape
    np.save(folder / "image.npy", np.random.default_rng(0).random(shape, dtype=np.float32))
    return folder


def _run(folder: Path, **environment: str) -> str:
    given = [str(folder / name) for name in ("e", "image.npy", "outputs.npz")]
    done = subprocess.run(
        [sys.executable, "-c", _RUN, *given],
        cwd=_ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@needs_tvm
def test_numbers(engine: Path) -> None:
    """model.so, TVM's runtime and the kernels together give the reference's numbers; TVM's compiler is not loaded."""
    said = _run(engine, LD_LIBRARY_PATH=str(engine), EMULATED_KERNELS=str(engine / "kernels.so"))
    assert said.strip() == "emulated (CUDA, TVM)"
    cfg = engine / "yolo.cfg"
    expected = run(Network.load(cfg, cfg.with_suffix(".weights")), np.load(engine / "image.npy")[None])
    found = np.load(engine / "outputs.npz")
    assert len(found) == len(expected)
    for place, wanted in enumerate(expected):
        # Sums of up to 72 products in float32, in another order.
        np.testing.assert_allclose(found[f"arr_{place}"], wanted[0], rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.slow
@needs_tvm
def test_what_is_missing(engine: Path) -> None:
    """A GPU that is too old, one whose number does not exist, and no driver."""
    emulated = {"LD_LIBRARY_PATH": str(engine), "EMULATED_KERNELS": str(engine / "kernels.so")}
    said = _run(engine, EMULATED_CAPABILITY="7.0", **emulated)
    assert "the engine is for sm_75, sm_87, and this GPU, emulated, is sm_70" in said
    assert "--option arch=sm_70" in said
    said = _run(engine, EMULATED_GPUS="0", **emulated)
    assert "there is no GPU 0 that CUDA can use" in said
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        assert "there is no NVIDIA driver" in _run(engine) or "libcudart" in _run(engine)


@pytest.mark.slow
@needs_tvm
def test_record(engine: Path) -> None:
    """What the engine says of itself."""
    record = json.loads((engine / "e" / "model.json").read_text())
    assert (record["archs"], record["ptx"]) == (["sm_75", "sm_87"], "sm_87")
    report = dnc.load(engine / "e").bundle.report
    assert report["device"].startswith("sm_75, sm_87 and PTX of sm_87 for later ones, by nvcc 13.0; nothing was timed")
    assert "none" not in report["kernels"]
    assert (engine / "e" / "libtvm_runtime_cuda.so").is_file()


@pytest.mark.slow
@needs_tvm
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_nvidias_compiler(precision: str, write: Write, tmp_path: Path) -> None:
    """It takes the kernels for GPUs of three generations, and none needs more than a GPU has."""
    try:
        find_toolkit()
    except TargetError:
        pytest.skip("needs nvcc or NVRTC with CUDA's headers")
    cfg = write("yolo")
    built = lower(Network.load(cfg, cfg.with_suffix(".weights")), batch=1)
    target = Cuda({"backend": "tvm", "arch": "sm_75", "precision": precision})
    for each in (*target.passes(), *target.final_passes()):
        each.rewrite(built)
    stages: list[str] = []
    reply = make_library(built, None, Job(("sm_75", "sm_87", "sm_90")), tmp_path / MODEL, stages.append)
    assert stages[0] == "scheduling"
    assert (tmp_path / MODEL).stat().st_size > 10_000
    assert reply["resources"]
    for taken in reply["resources"].values():
        assert 0 < taken["registers"] <= 255
        assert taken["shared"] <= 48 * 1024
        assert taken["spilled"] == 0
    assert not [rules for rules in reply["rules"].values() if "none" in rules]


def test_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused before anything is compiled."""
    monkeypatch.setattr("dnc.tvm.gpu.target.gpus", lambda: ())
    with pytest.raises(TargetError, match="precision int8 is none of back end tvm's: fp32, fp16"):
        Cuda({"backend": "tvm", "precision": "int8"})
    with pytest.raises(TargetError, match="back end tvm has no graphs, fallback"):
        Cuda({"backend": "tvm", "graphs": "on", "fallback": "on", "cache": "off"})
    with pytest.raises(TargetError, match="back end onnxruntime has no triple"):
        Cuda({"triple": "aarch64-linux-gnu"})
    with pytest.raises(TargetError, match="no use for more than one arch"):
        Cuda({"arch": "sm_75,sm_87"})
    back_end = Cuda({"backend": "tvm"})._backend
    with pytest.raises(TargetError, match="this machine has none") as caught:
        back_end.architectures()  # type: ignore[attr-defined]
    assert "arch=sm_87" in caught.value.hint
    monkeypatch.setattr("dnc.tvm.gpu.target.gpus", lambda: (Gpu("Orin", "sm_87", "540"),))
    assert back_end.architectures() == ("sm_87",)  # type: ignore[attr-defined]
    with pytest.raises(TargetError, match="arch=sm_62 of target cuda is not one or more of sm_75"):
        Cuda({"backend": "tvm", "arch": "sm_62"})._backend.architectures()  # type: ignore[attr-defined]
    assert Cuda({"backend": "tvm"}).batch == 1
    assert Cuda().batch is None
