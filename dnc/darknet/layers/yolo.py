"""[yolo]: the head of YOLOv3 to v7 (yolo_layer.c).

Of each anchor (n * (5 + classes) channels in all) x, y, objectness and classes go through the logistic function, unless
new_coords=1 (the convolution before has done it); then x, y become x * scale_x_y - (scale_x_y - 1) / 2. That is the map
that `Engine.forward` gives. The box of a cell, as shares of the image, with the anchor in pixels of the input:

    center     (column + x) / columns,  (row + y) / rows
    size       anchor * e^w / input;  with new_coords=1 anchor * (2 w)^2 / input
    score      objectness * class, of each class
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from dnc.darknet.cfg import Section
from dnc.darknet.layers import layers
from dnc.darknet.layers.activations import sigmoid
from dnc.darknet.layers.base import Array, Arrays, Builder, Context, Layer, Shape, States, Value, common, layer_value
from dnc.errors import CfgError, warn
from dnc.runtime.decoding import NMS_KINDS, Head, YoloHead


def parse_anchors(section: Section, total: int, mask: Sequence[int]) -> tuple[tuple[float, float], ...]:
    """The anchors that `mask` selects of `total`, in two stock cfgs in spite of Darknet's own reading.

    1. cspx-p7-mish lists 20 anchors with num=16, and masks the last four; Darknet reads past its memory there. The
       listed ones are taken, with a warning.
    2. cspx-p7-mish_hp lacks a comma, so that two numbers with a blank between them become one; Darknet takes 0.5 for
       the one that is missing at the end. So does this, with a warning. Any other lack of anchors is an error.
    """
    numbers = section.numbers("anchors")
    if numbers is None:
        section.fail(f"[{section.name}] must say anchors=", hint="width,height of each anchor, separated by commas")
    listed, last = len(numbers) // 2, max(mask, default=0)
    for index in mask:
        if not 0 <= index < max(total, listed):
            section.fail(f"mask names anchor {index}, but num={total}", "mask", f"anchors count from 0 to {total - 1}")
    if last >= total:
        message = f"mask names anchor {last}, but num={total}; anchors= has {listed}, which are taken"
        warn(CfgError(message, section.at("num"), "Darknet reads past its memory here: raise num"))
    elif len(numbers) > 2 * total:
        warn(CfgError(f"anchors= has {len(numbers)} numbers, num={total} uses {2 * total}", section.at("anchors")))
    if len(numbers) < 2 * max(total, last + 1):
        message = f"anchors= has {len(numbers)} numbers, num={total} wants {2 * total}"
        hint = "Darknet takes 0.5 for the missing ones"
        if re.search(r"\d\s+\d", section.options["anchors"].text):
            warn(CfgError(message, section.at("anchors"), "a comma is missing; " + hint))
        else:
            section.guess(message, "anchors", "two numbers, width and height, for each anchor; " + hint)
    width, height = (dict(enumerate(numbers[axis::2])) for axis in (0, 1))
    return tuple((width.get(index, 0.5), height.get(index, 0.5)) for index in mask)


def parse_mask(section: Section, total: int) -> Sequence[int]:
    """The anchors of this head: all of them where no mask is given."""
    mask = section.integers("mask")
    return range(total) if mask is None else mask


def check_channels(section: Section, context: Context, count: int, entries: int, classes: int) -> tuple[int, int, int]:
    """The map (C, h, w), whose channels must be count * (entries + classes)."""
    channels, height, width = context.image()
    per_anchor = entries + classes
    if channels != count * per_anchor:
        section.fail(
            f"the layer before has {channels} filters, {count} anchors x {per_anchor} values want {count * per_anchor}",
            "classes" if "classes" in section.options else None,
            f"make filters= in the [convolutional] before equal to anchors * (classes + {entries})",
        )
    return channels, height, width


def emit_spread(b: Builder, x: Value, scale_x_y: float) -> Value:
    """x * scale_x_y - (scale_x_y - 1) / 2."""
    if scale_x_y == 1:
        return x
    return b.op("Sub", b.op("Mul", x, b.constant(scale_x_y)), b.constant(0.5 * (scale_x_y - 1)))


@layers.register
class Yolo(Layer):
    """The head, one anchor after the other along the channels.

    Keys:
        classes: how many.
        num: how many anchors `anchors` lists.
        anchors: width and height of each, in pixels of the input, separated by commas.
        mask: the anchors that this head uses, by their numbers from 0; else all.
        scale_x_y: how far x and y reach out of their cell.
        new_coords: 1: the convolution before has the logistic function, and width and height are (2 x)^2 times the
            anchor's.
        nms_kind: how boxes are suppressed; the last head's counts.
        beta_nms: of diounms, the exponent.
        map: nothing; the classes' numbers in Darknet's own reports.
    """

    name = "yolo"

    classes: int
    anchors: tuple[tuple[float, float], ...]
    """(width, height) in pixels of the input."""
    input_size: tuple[int, int]
    """(width, height) of the network."""
    scale_x_y: float
    new_coords: bool
    nms_kind: str
    beta_nms: float

    box_channels = 4

    @classmethod
    def parse(cls, section: Section, context: Context) -> Self:
        classes = section.integer("classes", 20, low=1)
        total = section.integer("num", 1, low=1)
        mask = parse_mask(section, total)
        shape = check_channels(section, context, len(mask), cls.box_channels + 1, classes)
        section.text("map")
        return cls(
            **common(context, shape),
            classes=classes,
            anchors=parse_anchors(section, total, mask),
            input_size=(context.net.integer("width", 0), context.net.integer("height", 0)),
            scale_x_y=section.number("scale_x_y", 1.0),
            new_coords=section.boolean("new_coords") if cls is Yolo else False,
            nms_kind=section.choice("nms_kind", "default", NMS_KINDS if cls is not Yolo else NMS_KINDS[:3]),
            beta_nms=section.number("beta_nms", 0.6),
            **cls._own(section),
        )

    @classmethod
    def _own(cls, section: Section) -> dict[str, Any]:
        return {}

    def _split(self) -> Shape:
        return len(self.anchors), self.box_channels + 1 + self.classes, *self.shape[1:]

    def emit(self, b: Builder, inputs: Sequence[Value], arrays: Arrays) -> Value:
        if self.new_coords and self.scale_x_y == 1:
            return b.op("Identity", inputs[0])
        x = b.reshape(inputs[0], self._split())
        xy, wh, rest = b.slice(x, 2, 0, 2), b.slice(x, 2, 2, 4), b.slice(x, 2, 4, 5 + self.classes)
        if not self.new_coords:
            xy, rest = b.op("Sigmoid", xy), b.op("Sigmoid", rest)
        return b.reshape(b.op("Concat", emit_spread(b, xy, self.scale_x_y), wh, rest, axis=2), self.shape)

    def reference(self, inputs: Sequence[Array], arrays: Arrays, states: States) -> Array:
        y = inputs[0].reshape(len(inputs[0]), *self._split()).copy()
        if not self.new_coords:
            y[:, :, :2], y[:, :, 4:] = sigmoid(y[:, :, :2]), sigmoid(y[:, :, 4:])
        y[:, :, :2] = y[:, :, :2] * np.float32(self.scale_x_y) - np.float32(0.5 * (self.scale_x_y - 1))
        return y.reshape(len(y), *self.shape)

    def _head_fields(self) -> dict[str, Any]:
        own = ("classes", "anchors", "input_size", "scale_x_y", "nms_kind", "beta_nms")
        fields = {name: getattr(self, name) for name in own}
        return {"output": layer_value(self.index), "where": self.where.short, **fields}

    def head(self) -> Head:
        return YoloHead(**self._head_fields(), new_coords=self.new_coords)

    def describe(self) -> str:
        extra = f"  scale_x_y {self.scale_x_y:g}" if self.scale_x_y != 1 else ""
        extra += "  new_coords" if self.new_coords else ""
        extra += f"  {self.nms_kind}" if self.nms_kind != "default" else ""
        return f"{len(self.anchors)} anchors, {self.classes} classes{extra}"
