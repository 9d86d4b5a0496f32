"""Architectures of GPUs: how they are named, and which code runs on which."""

from __future__ import annotations

import pytest

from dnc.errors import TargetError
from dnc.runtime.runners.cuda.device import ARCHITECTURES, Device, architectures, runs_on
from dnc.targets.cuda.target import Cuda


def test_names() -> None:
    """In order of the capability, each once."""
    assert architectures("sm_90,sm_75, sm_120,sm_90") == ("sm_75", "sm_90", "sm_120")
    for wrong in ("", ",", "sm_74", "sm_75,volta"):
        with pytest.raises(ValueError, match=r"one or more of sm_75, .*sm_121"):
            architectures(wrong)


@pytest.mark.parametrize(
    ("archs", "ptx", "capability", "runs"),
    [
        (["sm_75"], "", "7.5", True),
        (["sm_80"], "", "8.7", True),
        (["sm_87"], "", "8.6", False),
        (["sm_87"], "", "9.0", False),
        (["sm_87"], "sm_87", "9.0", True),
        (["sm_75", "sm_90"], "sm_90", "8.7", False),
        (["sm_75", "sm_90"], "sm_90", "10.3", True),
        ([], "sm_75", "8.7", True),
        ([], "sm_75", "7.2", False),
        (["sm_90a"], "", "9.0", True),
        (["sm_90a"], "", "10.0", False),
        (["sm_90a"], "", "8.9", False),
    ],
)
def test_where_code_runs(archs: list[str], ptx: str, capability: str, runs: bool) -> None:
    """Machine code on the same major version from its minor one on, that of sm_90a on 9.0; PTX from its version on."""
    assert runs_on(archs, ptx, capability) is runs


def test_shared_memory_counts() -> None:
    """Code for an A100 runs on an RTX 30 unless its blocks ask for more shared memory than that has; all archs have
    what is used."""
    assert runs_on(["sm_80"], "", "8.6", 99 << 10)
    assert not runs_on(["sm_80"], "", "8.6", 100 << 10)
    assert not runs_on(["sm_90"], "sm_90", "12.0", 163 << 10)
    assert runs_on(["sm_90"], "sm_90", "19.0", 163 << 10)
    assert Device.of(["sm_80", "sm_86"]).large == 99 << 10


def test_the_largest_gpu_counts() -> None:
    """Blocks for a small GPU alone would leave a large one idle; but all must have what is used."""
    assert Device.of(["sm_87", "sm_90"]).processors == ARCHITECTURES["sm_90"][1]
    assert Device.of(["sm_80", "sm_120"]).copies
    assert not Device.of(["sm_75", "sm_90"]).copies
    assert Device.of(["sm_90"]).warpgroups
    assert not Device.of(["sm_90", "sm_100"]).warpgroups


@pytest.mark.parametrize(("precision", "named"), [("tf32", "TF32"), ("bf16", "bfloat16")])
def test_short_numbers_want_a_gpu_that_has_them(precision: str, named: str) -> None:
    """Every one of those that are named."""
    (target,) = Cuda({"backend": "tvm", "precision": precision, "arch": "sm_75,sm_90"}).candidates()
    with pytest.raises(TargetError, match=f"sm_75 has no {named}"):
        target.build(None, None)  # type: ignore[arg-type]


def test_bfloat16_is_one_back_ends() -> None:
    """ONNX Runtime has few kernels for it."""
    with pytest.raises(TargetError, match="onnxruntime has no precision bf16"):
        Cuda({"backend": "onnxruntime", "precision": "bf16"}).candidates()
