"""Hopper's own instructions: the emulated GPU notices each way to use them wrongly, and nvcc lets them go on.

The faults are put into the very source of the kernels (warpgroups.cuh), one in each copy of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import pytest

from dnc.errors import TargetError
from dnc.targets.cuda import toolkit
from dnc.targets.cuda.process import cuda_runtime
from dnc.targets.cuda.toolkit import find_toolkit
from tests import ROOT
from tests.targets.cuda.emulation import environment, make_driver, make_kernels
from tests.targets.cuda.test_emulator import Gpu

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")]

_SCHEDULES = ROOT / "targets" / "cuda" / "schedules"
_STEPS, _STAGES = 6, 3
_SHARED = _STAGES * (128 + 64) * 64 * 2
_FAULTS = {
    # By name: what is in place of what, and what is said of it.
    "right": ("", "", ""),
    "no_fence": (
        "    dnc_fence();\n    __syncthreads();\n    dnc_await",
        "    __syncthreads();\n    dnc_await",
        "what a thread wrote and did not fence",
    ),
    "fence_too_early": (
        "    dnc_wait<Ahead - 1>();\n    dnc_fence();\n",
        "    dnc_fence();\n    dnc_wait<Ahead - 1>();\n",
        "what a thread wrote and did not fence",
    ),
    "copies_not_there": ("    dnc_wait<Ahead - 1>();\n", "", "what is not there yet"),
    "weights_not_there": ("    dnc_await(arrived + stage, odd);\n", "", "what is not there yet"),
    "one_waits": (
        "    dnc_await(arrived + stage, odd);\n",
        "    if (threadIdx.x % 128 == 0) dnc_await(arrived + stage, odd);\n",
        "what a thread has not waited for",
    ),
    "wrong_turn": ("odd ^= 1;", "odd ^= 0;", "what is not there yet"),
    "no_barrier": ("    __syncthreads();\n    dnc_await", "    dnc_await", "that nobody has written"),
    "not_multiplied": ("    dnc_products_wait<1>();\n", "", "it is written while tensor cores read it"),
    "too_soon": ("Ahead = Stages - 2", "Ahead = Stages - 1", "it is written while tensor cores read it"),
    "no_end": ("  dnc_products_wait<0>();\n}", "}", "ended without waiting for its products"),
    "no_order": ("    dnc_products();\n", "", "a product without a fence before it"),
    "outside": ("dnc_warpgroup() * (Tile::Tall * 8192)", "dnc_warpgroup() * 99999", "outside of shared memory"),
    "not_swizzled": ("return 1ull << 62", "return 2ull << 62", "not swizzled by 128 bytes"),
    "different": (
        "unsigned long long right = dnc_matrix(start",
        "unsigned long long right = dnc_matrix(threadIdx.x % 2 * 1024 + start",
        "different products",
    ),
    "no_place": ("stage < Stages; ++stage) dnc_expect", "stage < 1; ++stage) dnc_expect", "nobody has written"),
}
_RUN = """
import sys
from tests.targets.cuda import test_warpgroups
getattr(test_warpgroups, sys.argv[1])(*sys.argv[2:])
"""


def _has_nvcc() -> bool:
    try:
        return find_toolkit("nvcc").is_nvcc
    except TargetError:
        return False


def _part(name: str) -> str:
    text = (_SCHEDULES / f"{name}.cuh").read_text()
    return re.sub(r"^#(ifndef|define) DNC_(STRIPS|WARPGROUPS)\n|#endif\n\Z", "", text, flags=re.MULTILINE)


def _source() -> str:
    copies = []
    for name, (right, wrong, _) in _FAULTS.items():
        text = _part("lanes") + _part("warpgroups")
        assert not right or text.count(right) == 1, name
        kernel = (
            f'extern "C" __global__ void __launch_bounds__(256) {name}'
            "(half* __restrict__ x_ptr, half* __restrict__ y_ptr) {\n"
            "  extern __shared__ __align__(1024) half s_ptr[];\n  float sums[32];\n"
            f"  copy_{name}::dnc_grouped_product<copy_{name}::dnc_grouped<2, 1, 64, {_STAGES}, dnc_f16>, "
            f"copy_{name}::dnc_window<1, 128, {_STEPS * 64}, {_STEPS * 64}, 1, 1, 1, 1, 8>, "
            f"copy_{name}::dnc_pixels<128, 1, 128, 1, 1, 0, 0, 1>, {_STEPS}>(sums, (&(s_ptr[0])), (&(x_ptr[0])), "
            "(&(y_ptr[0])), 0, 0);\n}\n"
        )
        copies.append(f"namespace copy_{name} {{\n{text.replace(right, wrong) if right else text}}}\n{kernel}")
    return "".join(copies)


def main(code: str) -> None:
    """Prints what became of each case: the status of its process, and what that said."""
    found = {}
    for name in _FAULTS:
        with tempfile.TemporaryFile("w+") as said:
            child = os.fork()
            if not child:
                os.dup2(said.fileno(), 2)
                gpu = Gpu(code)
                data, weights = gpu.memory(128 * _STEPS * 32), gpu.memory(64 * _STEPS * 32)
                # What a block leaves undone, the next one finds.
                refused = gpu.launch(name, data, weights, threads=256, shared=_SHARED)
                gpu.wait()
                os._exit(1 if refused else 0)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            said.seek(0)
            found[name] = (status, said.read())
    print(json.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """What became of each."""
    folder = make_driver(tmp_path_factory.mktemp("emulator"))
    code = folder / "code"
    code.write_bytes(make_kernels(_source(), folder / "code.so", folder))
    command = [sys.executable, "-c", _RUN, "main", str(code)]
    done = subprocess.run(command, cwd=ROOT, env=environment(folder), stdout=subprocess.PIPE, check=True, text=True)
    return {name: (status, said) for name, (status, said) in json.loads(done.stdout).items()}


@pytest.mark.parametrize("name", _FAULTS)
def test_faults(name: str, found: dict[str, tuple[int, str]]) -> None:
    """Of what is right nothing is said."""
    status, said = found[name]
    wanted = _FAULTS[name][2]
    assert (status == 0) is (not wanted), said
    assert wanted in said


def _keep(file: Path, source: str) -> bytes:
    file.write_text(source)
    return b"code"


def write_sources(folder: str) -> None:
    """Writes CUDA C++ of a convolution with every tile."""
    import tvm

    from dnc.passes import passes
    from dnc.targets.cuda.lowering import Network
    from dnc.targets.cuda.schedules import tensors, warpgroups
    from dnc.targets.cuda.schedules.forms import Form
    from dnc.targets.tvm.emit import emit
    from tests.targets.cuda.test_schedules import _convolution

    built = _convolution(128, 200, size=3, pad=1, side=26, images=2)
    for each in ("to-float16", "eliminate-dead-code"):
        passes[each]().rewrite(built)
    for number, tile in enumerate(warpgroups.WGMMA_TILES):
        form = Form(tile, 1 + number % 2)
        tensors.forms_of = lambda _, tiles, *__, form=form: [(0.0, form)] if form.tile in tiles else []  # type: ignore
        compiled = partial(_keep, Path(folder) / f"{number}.cu")
        network = Network(emit(built, gpu=True), ["sm_90"], tvm.target.Target({"kind": "llvm"}), compiled)
        assert "wgmma-product" in network.lowered().rules.values()


@pytest.mark.skipif(cuda_runtime() is None or not _has_nvcc(), reason="needs apache-tvm and nvcc")
def test_products_go_on(tmp_path: Path) -> None:
    """No tile has more sums than registers, or makes ptxas wait for each product (its warning C7510)."""
    command = [sys.executable, "-c", _RUN, "write_sources", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env=environment(make_driver(tmp_path)), check=True)
    nvcc = find_toolkit("nvcc")
    sources = sorted(tmp_path.glob("*.cu"))
    assert sources
    for file in sources:
        source = file.read_text()
        archs = nvcc.compiled_for(source, ["sm_90"])
        assert archs == ["sm_90a"]
        _, log = nvcc._nvcc(source, archs, tmp_path)
        assert "C75" not in log
        assert "warning" not in log
        taken = [taken for name, taken in toolkit._resources(log).items() if "conv2d" in name]
        assert taken
        assert all(not each.spilled and each.registers < 255 for each in taken)
