"""Targets: a file or a folder for each engine, found by its name.

To add one: a file here with a registered class that derives from `Target`, and a test beside the others in
tests/targets/. What opens and runs its engines is a `Runner` of dnc.runtime.runners. Engines' libraries are imported
inside methods.
"""

from __future__ import annotations

from collections.abc import Mapping

from dnc.errors import TargetError
from dnc.registry import Registry
from dnc.targets.base import Selectable, Target

__all__ = ["Selectable", "Target", "find", "maker_of", "targets"]

_MEANT = {
    **dict.fromkeys(("gpu", "nvidia", "tensorrt", "trt"), "cuda"),
    **dict.fromkeys(("vpu", "ncs2", "oak", "movidius", "myriadx"), "myriad"),
    **dict.fromkeys(("ort", "onnxruntime"), "onnx"),
    **dict.fromkeys(("intel", "npu"), "openvino"),
    **dict.fromkeys(("llvm", "arm"), "tvm"),
    "arm64": "--target aarch64",
    "tpu": "there is none for TPUs",
}
"""What people call a target besides."""

targets: Registry[type[Selectable]] = Registry("dnc.targets", "target", TargetError, meant=_MEANT)
find = targets.find


def maker_of(name: str, given: Mapping[str, str]) -> Target:
    """The target that made an engine, by what engine.json says of it."""
    return find(name)(given).candidates()[0]
