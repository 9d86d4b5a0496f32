"""[Gaussian_yolo]: YOLOv3 whose boxes carry their own uncertainty (gaussian_yolo_layer.c, arXiv 1904.04620).

Each anchor has x, its uncertainty, y, its, w, its, h, its, objectness, classes. All but w and h go through the logistic
function; x and y are then scaled by scale_x_y. The scores are objectness * class * (1 - mean uncertainty); yolo_point
says whether x and y are the centre of the box, its left top or its right bottom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dnc.darknet.cfg import Section
from dnc.darknet.layers import layers
from dnc.darknet.layers.activations import sigmoid
from dnc.darknet.layers.base import Array, Arrays, Builder, States, Value
from dnc.darknet.layers.yolo import Yolo, emit_spread
from dnc.runtime.decoding import YOLO_POINTS, GaussianYoloHead, Head


@layers.register
class GaussianYolo(Yolo):
    """The head with eight box channels an anchor.

    Keys:
        `Yolo` without new_coords
        yolo_point: what x and y are of a box.
    """

    name = "Gaussian_yolo"

    yolo_point: str

    box_channels = 8

    @classmethod
    def _own(cls, section: Section) -> dict[str, Any]:
        return {"yolo_point": section.choice("yolo_point", "center", YOLO_POINTS)}

    def emit(self, b: Builder, inputs: Sequence[Value], arrays: Arrays) -> Value:
        x = b.reshape(inputs[0], self._split())
        logistic = b.op("Sigmoid", x)
        parts = [
            emit_spread(b, b.slice(logistic, 2, 0, 1), self.scale_x_y),
            b.slice(logistic, 2, 1, 2),
            emit_spread(b, b.slice(logistic, 2, 2, 3), self.scale_x_y),
            b.slice(logistic, 2, 3, 4),
            b.slice(x, 2, 4, 5),
            b.slice(logistic, 2, 5, 6),
            b.slice(x, 2, 6, 7),
            b.slice(logistic, 2, 7, 9 + self.classes),
        ]
        return b.reshape(b.op("Concat", *parts, axis=2), self.shape)

    def reference(self, inputs: Sequence[Array], arrays: Arrays, states: States) -> Array:
        x = inputs[0].reshape(len(inputs[0]), *self._split())
        y = sigmoid(x)
        y[:, :, 0:3:2] = y[:, :, 0:3:2] * np.float32(self.scale_x_y) - np.float32(0.5 * (self.scale_x_y - 1))
        y[:, :, 4:7:2] = x[:, :, 4:7:2]
        return y.reshape(len(y), *self.shape)

    def head(self) -> Head:
        return GaussianYoloHead(**self._head_fields(), yolo_point=self.yolo_point)
