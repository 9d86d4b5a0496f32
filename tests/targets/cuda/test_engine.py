"""Engines of target cuda's back end tvm: compiled without a GPU, and run on the one of emulator/driver.cpp."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import dnc
from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.darknet.reference import run
from dnc.errors import TargetError
from dnc.runtime.gpus import Gpu
from dnc.runtime.runners.cuda import KernelsRunner
from dnc.runtime.runners.tvm.session import MODEL
from dnc.targets.cuda.process import Compiler, Job, cuda_runtime
from dnc.targets.cuda.target import Cuda
from dnc.targets.cuda.toolkit import find_toolkit
from tests import ROOT
from tests.targets.cuda.emulation import environment, make_driver, make_nvcc

Write = Callable[..., Path]
_ROOT = ROOT
_HAS_TVM = cuda_runtime() is not None and shutil.which("g++") is not None
needs_tvm = pytest.mark.skipif(not _HAS_TVM, reason="needs apache-tvm and g++")

_RUN = """
import json
import sys
import threading
import numpy as np
from dnc.errors import TargetError
import dnc
folder, image, outputs, options, task = sys.argv[1:]
image = np.load(image)
try:
    engine = dnc.load(folder, **json.loads(options))
    first = engine.forward(image)
    engine.forward(image[..., ::-1].copy())
    second = engine.forward(image)
    assert all(np.array_equal(a, b) for a, b in zip(first, second))
    assert "tvm" not in sys.modules
    np.savez(outputs, *first)
    print(engine.device)
    if task == "profile":
        print([name for name, _ in engine.session.profile({"input": image[None]}, 2)])
    if task == "seconds":
        feeds = {"input": image[None]}
        print(all(0 < engine.session.device_seconds(feeds, runs) < 60 for runs in (1, 3)))
        assert all(np.array_equal(a, b[0]) for a, b in zip(first, engine.session.run(feeds)))
    if task == "devices":
        import ctypes
        cuda = ctypes.CDLL("libcudart.so.13")
        def used(number):
            before, have, every = ctypes.c_int(), ctypes.c_size_t(), ctypes.c_size_t()
            cuda.cudaGetDevice(ctypes.byref(before))
            cuda.cudaSetDevice(number)
            cuda.cudaMemGetInfo(ctypes.byref(have), ctypes.byref(every))
            cuda.cudaSetDevice(before)
            return every.value - have.value
        alone = used(0)
        left = []
        for _ in range(3):
            other = dnc.load(folder, **json.loads(options), device="1")
            for _ in range(3):
                assert all(np.array_equal(a, b) for a, b in zip(first, other.forward(image)))
                assert all(np.array_equal(a, b) for a, b in zip(first, engine.forward(image)))
            assert used(0) == alone > 0 and used(1) == alone, (used(0), used(1), alone)
            other.close()
            del other
            left.append(used(1))
        # What kernels have for themselves waits for the next engine.
        assert len(set(left)) == 1 and left[0] < alone / 10, (left, alone)
        engine.close()
        del engine
        assert used(0) == left[0]
        print("all given back")
    if task == "threads":
        wrong = []
        def work(seed):
            for turn in range(3):
                other = dnc.load(folder, **json.loads(options))
                for _ in range(3):
                    found = other.forward(image)
                    wrong.extend(not np.array_equal(a, b) for a, b in zip(first, found))
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print(len(wrong), any(wrong))
except TargetError as error:
    print(error)
"""


def _run(folder: Path, task: str = "", *, graphs: str = "off", **more: str) -> str:
    """What a program says that runs the engine on the emulated GPU."""
    given = [*(str(folder / name) for name in ("e", "image.npy", "outputs.npz")), json.dumps({"graphs": graphs}), task]
    done = subprocess.run(
        [sys.executable, "-c", _RUN, *given],
        cwd=_ROOT,
        env=environment(folder, **more),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _check(folder: Path) -> None:
    """The outputs that were written are the reference's."""
    cfg = folder / "yolo.cfg"
    expected = run(Network.load(cfg, cfg.with_suffix(".weights")), np.load(folder / "image.npy")[None])
    found = np.load(folder / "outputs.npz")
    assert len(found) == len(expected)
    for place, wanted in enumerate(expected):
        # Sums of up to 72 products in float32, in another order.
        np.testing.assert_allclose(found[f"arr_{place}"], wanted[0], rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.slow
@needs_tvm
def test_numbers(engine: Path) -> None:
    """model.so, TVM's runtime and the kernels together give the reference's numbers; TVM's compiler is not loaded."""
    assert _run(engine) == "emulated (CUDA, TVM)"
    _check(engine)


@pytest.mark.slow
@needs_tvm
def test_graphs(engine: Path, tmp_path: Path) -> None:
    """What is launched as graphs gives the same, and is little less than all kernels."""
    log = tmp_path / "log"
    assert _run(engine, graphs="on", EMULATED_LOG=str(log)) == "emulated (CUDA graphs, TVM)"
    _check(engine)
    lines = log.read_text().splitlines()
    # After the one that records: one run to compare, and three.
    assert len(lines) == 4 * len(set(lines))
    kernels = len(json.loads((engine / "e" / "model.json").read_text())["kernels"])
    assert sum(int(line.split()[1]) for line in set(lines)) > kernels / 2


@pytest.mark.slow
@needs_tvm
@pytest.mark.parametrize(("launch", "chosen"), [("0.02", "CUDA graphs"), ("0", "CUDA")])
def test_graphs_if_the_device_is_faster(engine: Path, launch: str, chosen: str) -> None:
    """By the time of the device, of which a launch is 2 % of a kernel; copies, of 9 ms, would hide that."""
    times = f"launch={launch},copy=9000,=1"
    assert _run(engine, graphs="auto", EMULATED_TIMES=times) == f"emulated ({chosen}, TVM)"
    _check(engine)


_BOTH = """
import sys
from pathlib import Path
import numpy as np
from dnc.runtime.runners.cuda.kernels import GpuSession
for folder in sys.argv[1:]:
    sessions = [GpuSession(Path(folder), 0, graphs) for graphs in ("off", "on")]
    rng = np.random.default_rng(0)
    for turn in range(3):
        feeds = {}
        for name, dtype in sessions[0]._inputs.items():
            numbers = rng.random([side or 20 + turn for side in sessions[0]._shapes[name]])
            feeds[name] = (numbers * (255 if dtype.kind == "u" else 1)).astype(dtype)
        plain, graphs = (session.run(feeds) for session in sessions)
        assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(plain, graphs)), folder
    print(sessions[1].device)
"""


@pytest.mark.slow
@needs_tvm
@pytest.mark.filterwarnings("ignore::dnc.errors.DncWarning")
def test_networks_as_graphs(write: Write, tmp_path: Path) -> None:
    """Bit for bit what the same kernels give one by one; other inputs each time."""
    options = {"backend": "tvm", "arch": "sm_75", "compiler": str(make_nvcc(tmp_path, make_driver(tmp_path)))}
    folders = []
    for name in ("attention", "classifier", "yolo2", "crnn"):
        cfg, folder = write(name, lenient=True), tmp_path / f"{name}.engine"
        dnc.compile(cfg, out=folder, target="cuda", options=options, verify=False, lenient=True)
        folders.append(str(folder))
    run_both = [sys.executable, "-c", _BOTH, *folders]
    done = subprocess.run(run_both, cwd=_ROOT, env=environment(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["emulated (CUDA graphs, TVM)"] * len(folders)


@pytest.mark.slow
@needs_tvm
def test_graphs_that_cuda_refuses(engine: Path) -> None:
    """Single kernels take their place, unless graphs are asked for."""
    assert _run(engine, graphs="auto", EMULATED_NO_GRAPHS="1") == "emulated (CUDA, TVM)"
    said = _run(engine, graphs="on", EMULATED_NO_GRAPHS="1")
    assert "the network cannot be launched as CUDA graphs" in said
    assert "graphs=off" in said


@pytest.mark.slow
@needs_tvm
def test_sessions_side_by_side(engine: Path) -> None:
    """Four threads open engines, record graphs, run them and let them go, while the others do as well."""
    assert _run(engine, "threads", graphs="on", EMULATED_DELAY="500").splitlines()[-1] == "72 False"


@pytest.mark.slow
@needs_tvm
@pytest.mark.parametrize("graphs", ["off", "on"])
def test_several_gpus(engine: Path, graphs: str) -> None:
    """One after the other on two of them, each with memory of its own, of which nothing stays behind."""
    assert _run(engine, "devices", graphs=graphs, EMULATED_GPUS="2").splitlines()[-1] == "all given back"


@pytest.mark.slow
@needs_tvm
def test_profile(engine: Path) -> None:
    """Every section that computes is named by a kernel."""
    said = _run(engine, "profile", graphs="on").splitlines()[-1]
    for number in (0, 1, 2, 4, 5, 6, 7, 9, 11, 12):
        assert f"{number:03d}_" in said


@pytest.mark.slow
@needs_tvm
@pytest.mark.parametrize("graphs", ["off", "on"])
def test_seconds_of_the_device(engine: Path, graphs: str) -> None:
    """What copies take is no part of them."""
    assert _run(engine, "seconds", graphs=graphs).splitlines()[-1] == "True"


@pytest.mark.slow
@needs_tvm
def test_what_is_missing(engine: Path) -> None:
    """A GPU that is too old, one whose number does not exist, a driver that is too old, and no driver."""
    said = _run(engine, EMULATED_CAPABILITY="7.0")
    assert "the engine is for sm_75, sm_87, and this GPU, emulated, is sm_70" in said
    assert "--option arch=sm_70" in said
    said = _run(engine, EMULATED_GPUS="0")
    assert "there is no GPU 0 that CUDA can use" in said
    said = _run(engine, EMULATED_GPUS="0", EMULATED_DRIVER="12040")
    assert "NVIDIA's driver is for CUDA 12.4, and TVM's runtime is for CUDA 13" in said
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        said = _run(engine, LD_LIBRARY_PATH="")
        assert "there is no NVIDIA driver" in said or "libcudart" in said


@pytest.mark.slow
@needs_tvm
def test_record(engine: Path) -> None:
    """What the engine says of itself."""
    record = json.loads((engine / "e" / "model.json").read_text())
    assert (record["archs"], record["ptx"]) == (["sm_75", "sm_87"], "sm_87")
    report = dnc.load(engine / "e").manifest.report
    assert report["device"].startswith("sm_75, sm_87 and PTX of sm_87 for later ones, by nvcc 13.0; nothing was timed")
    assert "none" not in report["kernels"]
    assert (engine / "e" / "libtvm_runtime_cuda.so").is_file()


@pytest.mark.slow
@needs_tvm
@pytest.mark.parametrize(
    ("precision", "archs"),
    [("fp32", ("sm_75", "sm_87", "sm_90")), ("fp16", ("sm_75", "sm_87", "sm_90")), ("fp16", ("sm_86", "sm_90"))],
)
def test_nvidias_compiler(precision: str, archs: tuple[str, ...], write: Write, tmp_path: Path) -> None:
    """It takes the kernels for GPUs of three generations, and none needs more than a GPU has; new kinds too."""
    try:
        find_toolkit()
    except TargetError:
        pytest.skip("needs nvcc or NVRTC with CUDA's headers")
    cfg = write("yolo")
    built = lower(Network.load(cfg, cfg.with_suffix(".weights")), batch=1)
    target = Cuda({"backend": "tvm", "arch": "sm_75", "precision": precision}).candidates()[0]
    for each in (*target.optimizations(), *target.storage()):
        each.rewriting.rewrite(built)
    stages: list[str] = []
    with Compiler(built, Job(archs, new=True), stages.append) as compiler:
        reply = compiler.network(tmp_path / MODEL).result()
    assert stages[:2] == ["reading the graph", "scheduling"]
    assert (tmp_path / MODEL).stat().st_size > 10_000
    assert reply["resources"]
    mma = any("mma" in rules for rules in reply["rules"].values())
    assert mma == (archs[0] == "sm_86")
    assert (0 < reply["large"] <= 99 << 10) if mma else reply["large"] == 0
    for taken in reply["resources"].values():
        assert 0 < taken["registers"] <= 255
        assert taken["shared"] <= 48 * 1024
        assert taken["spilled"] == 0
    assert not [rules for rules in reply["rules"].values() if "none" in rules]


def test_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused before anything is compiled."""
    for module in ("kernels", "target"):
        monkeypatch.setattr(f"dnc.targets.cuda.{module}.gpus", lambda: ())
    with pytest.raises(TargetError, match="back end tvm has no layout, fallback"):
        Cuda({"backend": "tvm", "layout": "nhwc", "fallback": "on", "cache": "off"}).candidates()
    with pytest.raises(TargetError, match="back end tvm has no fallback"):
        KernelsRunner({"backend": "tvm", "fallback": "on"})
    with pytest.raises(TargetError, match="back end onnxruntime has no triple"):
        Cuda({"triple": "aarch64-linux-gnu"}).candidates()
    with pytest.raises(TargetError, match="back end onnxruntime has no use for arch"):
        Cuda({"backend": "onnxruntime", "arch": "sm_75"}).candidates()
    back_end = Cuda({"backend": "tvm"}).candidates()[0]
    with pytest.raises(TargetError, match="this machine has none") as caught:
        back_end.architectures()  # type: ignore[attr-defined]
    assert "arch=sm_87" in caught.value.hint
    monkeypatch.setattr("dnc.targets.cuda.kernels.gpus", lambda: (Gpu("Orin", "sm_87", "540"),))
    assert back_end.architectures() == ("sm_87",)  # type: ignore[attr-defined]
    with pytest.raises(TargetError, match="arch=sm_62 of target cuda is not one or more of sm_75"):
        Cuda({"backend": "tvm", "arch": "sm_62"}).candidates()[0].architectures()  # type: ignore[attr-defined]
    assert Cuda({"backend": "tvm"}).candidates()[0].batch == 1
    assert Cuda().candidates()[0].batch is None
