"""Destinations: a file for each program that engines are exported for, found by its name.

To add one: a file here with a registered class that derives from `Destination`, and a test beside the others in
tests/destinations/.
"""

from __future__ import annotations

from dnc.destinations.base import Destination
from dnc.errors import DestinationError
from dnc.registry import Registry

__all__ = ["destinations", "find"]

_MEANT = {
    **dict.fromkeys(("yolov8", "yolo8", "yolo11", "yolov11", "yolo"), "ultralytics"),
    **dict.fromkeys(("tensorrt", "trt", "nvinfer", "nvidia"), "deepstream"),
    **dict.fromkeys(("tritonserver", "tritoninferenceserver"), "triton"),
    **dict.fromkeys(("openvino", "openvinomodelserver", "modelserver"), "ovms"),
    **dict.fromkeys(("luxonis", "oak", "depthai", "archive"), "nnarchive"),
    **dict.fromkeys(("cv2", "cv", "opencv5"), "opencv"),
    "onnx": "`dnc compile --target onnx` writes a model.onnx with Darknet's own outputs",
}
"""What people call a destination besides."""

destinations: Registry[type[Destination]] = Registry("dnc.destinations", "destination", DestinationError, meant=_MEANT)
find = destinations.find
