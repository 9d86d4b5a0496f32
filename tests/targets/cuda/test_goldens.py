"""Darknet's golden networks, and those of cfg/, as kernels: NVIDIA's compiler takes them, and they compute what the
reference does, which other tests hold to Darknet's numbers.

Some are tried here. With DNC_EVERY_NETWORK=1 in the environment all are, which takes hours on two cores.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from dnc.darknet.lower import lower
from dnc.darknet.reference import run
from dnc.targets.base import UnsupportedError
from dnc.targets.cuda.kernels import CudaKernels
from dnc.targets.cuda.process import cuda_runtime
from dnc.targets.cuda.toolkit import _nvcc_path
from dnc.targets.tvm.target import Tvm
from dnc.typing import Array
from tests import ROOT
from tests.targets.cuda.compiling import ARCHS, complaints, gathered, goldens, network_of, prepared, zoo
from tests.targets.cuda.test_integers import _ranges, _ready
from tests.targets.cuda.test_schedules import _compute
from tests.targets.tvm.emit.test_integers import compute

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(cuda_runtime() is None, reason="needs apache-tvm"),
]

_ALL = os.environ.get("DNC_EVERY_NETWORK") == "1"
_SOME = ("act_elu", "dropout", "route_concat_abs", "scale_channels_wh", "xnor", "yolo_plain")
"""Of each kind of fault that was seen on a device, or by the compiler."""
_FEW = ("dropout", "scale_channels_wh", "xnor")
"""The same, of those that new kinds of kernels are for."""
_TOLERANCES = {"fp32": 1e-5, "fp16": 5e-3}
"""Of the largest number: sums in another order, and float16's 5e-4 for each of some layers."""
_ROUNDED = 1.5e-2
"""Of the largest number, what one of 8 bits that is rounded to the other side makes of it: on a GPU what is beside them
is in float16."""
_EIGHTS = ("dropout", "route_concat_abs", "yolo_plain")


@pytest.mark.parametrize(
    ("arch", "new"), [*((arch, False) for arch in ARCHS), ("sm_80", True), ("sm_90", True)], ids=lambda each: f"{each}"
)
@pytest.mark.skipif(_nvcc_path() is None, reason="needs nvcc")
def test_nvcc_takes_them(arch: str, new: bool) -> None:
    """In float16, of which vectors have more lanes than of any other type; with kinds of kernels that no GPU has run,
    too."""
    names = [*goldens(), *zoo()] if _ALL else _FEW if new else _SOME
    kernels, wrong = gathered(names, arch, "fp16", 2 if _ALL else 1, new=new)
    assert not wrong
    assert not kernels.refused(arch, "cubin" if _ALL else "ptx")
    # Some are the same.
    assert len(kernels.users) < sum(map(len, kernels.users.values()))


@pytest.mark.skipif(_nvcc_path() is None, reason="needs nvcc")
def test_nvcc_takes_scales_of_floats(tmp_path: Path) -> None:
    """In a network that has no halves, for which TVM includes nothing of them."""
    folder = ROOT / "targets" / "cuda" / "schedules"
    text = "".join((folder / f"{name}.cuh").read_text() for name in ("copy", "scale"))
    text += 'extern "C" __global__ void scale(float *x) { dnc_scale<float, 4>(x, x + 4); }'
    assert not complaints(tmp_path / "scale.cu", text, "sm_80", "ptx")


@pytest.mark.parametrize("new", [False, True], ids=["measured", "new"])
@pytest.mark.parametrize("precision", _TOLERANCES)
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_they_compute(precision: str, new: bool, tmp_path: Path) -> None:
    """On the emulated GPU, with kinds of kernels that no GPU has run and without."""
    networks = {name: network_of(name) for name in (goldens() if _ALL else _FEW if new else _SOME)}
    found = {name: prepared(network, "sm_90", precision, new) for name, network in networks.items()}
    models = {name: model for name, model in found.items() if model is not None}
    feeds = {name: _feeds(model) for name, model in models.items()}
    for name in models if new else ():
        (tmp_path / f"{name}.arch").write_text("sm_90 new")
    for name, (outputs, _) in _compute(tmp_path, models, feeds).items():
        expected = run(networks[name], next(iter(feeds[name].values())))
        for output, wanted in zip(outputs, expected, strict=False):
            bound = _TOLERANCES[precision] * float(np.abs(wanted).max())
            shaped = output.astype(np.float32).reshape(wanted.shape)
            np.testing.assert_allclose(shaped, wanted, rtol=0, atol=bound, err_msg=name)


@pytest.mark.filterwarnings("ignore::dnc.errors.DncWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_they_compute_with_8_bits(tmp_path: Path) -> None:
    """As engines have it, what target tvm's machine code gives, of all networks that 8 bits are for."""
    targets = [CudaKernels({"arch": "sm_90", "precision": "int8"}), Tvm({"precision": "int8"})]
    models, plain, feeds = {}, {}, {}
    for name in goldens() if _ALL else _EIGHTS:
        lowered = lower(network_of(name), batch=1)
        given = _feeds(lowered)
        try:
            ready, other = (_ready(lowered, target, _ranges(lowered, given)) for target in targets)
        except UnsupportedError:
            continue
        if any(node.op_type == "QuantizeLinear" for node in ready.graph):
            models[name], plain[name], feeds[name] = ready, other, given
    assert len(models) >= len(_EIGHTS)
    for name, (outputs, rules) in _compute(tmp_path, models, feeds).items():
        here, _ = compute(plain[name], *feeds[name].values(), eights="int8")
        for output, own in zip(outputs, here, strict=True):
            np.testing.assert_allclose(output, own, rtol=0, atol=_ROUNDED * float(np.abs(own).max()), err_msg=name)
        assert any("int8" in rule for rule in rules.values()), name


def _feeds(model: ir.Model) -> dict[str, Array]:
    """An image of noise, and zeros for what the network remembers."""
    shapes = {value.name or "": [int(str(side)) for side in value.shape or ()] for value in model.graph.inputs}
    given = {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}
    image = next(iter(given))
    given[image] = np.random.default_rng(0).random(shapes[image], np.float32)
    return given
