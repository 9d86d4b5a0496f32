"""Darknet's golden networks, and those of cfg/, as kernels: NVIDIA's compiler takes them, and they compute what the
reference does, which other tests hold to Darknet's numbers.

Some are tried here. With DNC_EVERY_NETWORK=1 in the environment all are, which takes hours on two cores.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from dnc.darknet.reference import run
from dnc.targets.cuda.process import cuda_runtime
from dnc.targets.cuda.toolkit import _nvcc_path
from tests.targets.cuda.compiling import ARCHS, gathered, goldens, network_of, prepared, zoo
from tests.targets.cuda.test_schedules import _compute

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(cuda_runtime() is None, reason="needs apache-tvm"),
]

_ALL = os.environ.get("DNC_EVERY_NETWORK") == "1"
_SOME = ("act_elu", "dropout", "route_concat_abs", "scale_channels_wh", "xnor", "yolo_plain")
"""Of each kind of fault that was seen on a device, or by the compiler."""
_TOLERANCES = {"fp32": 1e-5, "fp16": 5e-3}
"""Of the largest number: sums in another order, and float16's 5e-4 for each of some layers."""


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.skipif(_nvcc_path() is None, reason="needs nvcc")
def test_nvcc_takes_them(arch: str) -> None:
    """In float16, of which vectors have more lanes than of any other type."""
    names = [*goldens(), *zoo()] if _ALL else _SOME
    kernels, wrong = gathered(names, arch, "fp16", 2 if _ALL else 1)
    assert not wrong
    assert not kernels.refused(arch, "cubin" if _ALL else "ptx")
    # Some are the same.
    assert len(kernels.users) < sum(map(len, kernels.users.values()))


@pytest.mark.parametrize("precision", _TOLERANCES)
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_they_compute(precision: str, tmp_path: Path) -> None:
    """On the emulated GPU."""
    networks = {name: network_of(name) for name in (goldens() if _ALL else _SOME)}
    found = {name: prepared(network, "sm_90", precision) for name, network in networks.items()}
    models = {name: model for name, model in found.items() if model is not None}
    rng = np.random.default_rng(0)
    feeds, expected = {}, {}
    for name, model in models.items():
        shapes = {value.name or "": [int(side) for side in value.shape or ()] for value in model.graph.inputs}  # type: ignore[arg-type]
        given = {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}
        image = next(iter(given))
        given[image] = rng.random(shapes[image], np.float32)
        feeds[name], expected[name] = given, run(networks[name], given[image])
    for name, (outputs, _) in _compute(tmp_path, models, feeds).items():
        for output, wanted in zip(outputs, expected[name], strict=False):
            bound = _TOLERANCES[precision] * float(np.abs(wanted).max())
            shaped = output.astype(np.float32).reshape(wanted.shape)
            np.testing.assert_allclose(shaped, wanted, rtol=0, atol=bound, err_msg=name)
