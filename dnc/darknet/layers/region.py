"""[region]: the head of YOLOv2 and YOLO9000 (region_layer.c).

Darknet turns the map from (n, 5 + classes, h, w) into (h, w, n, 5 + classes), takes the logistic of objectness and the
softmax of the classes (softmax=1), or one softmax per group of a tree. x and y stay raw. The result keeps the shape
(C, h, w) that the next layer would see, though its memory is ordered by cell. Anchors are in cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from dnc.darknet.cfg import Section
from dnc.darknet.layers import layers
from dnc.darknet.layers.activations import sigmoid
from dnc.darknet.layers.base import Array, Arrays, Builder, Context, Layer, States, Value, common, layer_value
from dnc.darknet.layers.tree import emit_tree_softmax, parse_map, parse_tree, softmax, tree_softmax
from dnc.darknet.layers.yolo import check_channels, parse_anchors
from dnc.runtime.decoding import Head, RegionHead


@layers.register
class Region(Layer):
    """The head of YOLOv2.

    Keys:
        classes: how many.
        num: the anchors.
        anchors: width and height of each, in cells, separated by commas.
        coords: the numbers of a box, 4.
        softmax: 1 takes the softmax of the classes of each box.
        tree: a file with a class tree: one softmax for each group of it.
        map: a file with the tree's node of each class that is reported.
        classfix: -1: an objectness under 0.5 counts as 0.
        thresh: nothing but in the file that `dnc export --for opencv` writes: scores up to it are 0, as in OpenCV 4.
        log, sqrt: nothing; Darknet reads them, and does nothing with them.
    """

    name = "region"

    classes: int
    coords: int
    anchors: tuple[tuple[float, float], ...]
    """(width, height) in cells."""
    softmax: bool
    tree: tuple[int, ...]
    map: tuple[int, ...]
    classfix: int
    thresh: float | None

    @classmethod
    def parse(cls, section: Section, context: Context) -> Self:
        classes = section.integer("classes", 20, low=1)
        coords = section.integer("coords", 4)
        if coords != 4:
            # Darknet activates channel 4 and reads four coordinates whatever coords says.
            section.fail(f"coords={coords} is not decoded by Darknet", "coords", "4 is possible")
        count = section.integer("num", 1, low=1)
        shape = check_channels(section, context, count, coords + 1, classes)
        section.boolean("log")
        section.boolean("sqrt")
        return cls(
            **common(context, shape),
            classes=classes,
            coords=coords,
            anchors=parse_anchors(section, count, range(count)),
            softmax=section.boolean("softmax"),
            tree=parse_tree(section, classes),
            map=parse_map(section, classes),
            classfix=section.integer("classfix", 0),
            thresh=section.number("thresh", 0.0) if "thresh" in section.options else None,
        )

    def emit(self, b: Builder, inputs: Sequence[Value], arrays: Arrays) -> Value:
        _, height, width = self.shape
        x = b.reshape(inputs[0], [len(self.anchors), 5 + self.classes, height, width])
        x = b.op("Transpose", x, perm=[0, 3, 4, 1, 2])
        box, objectness, classes = b.slice(x, 4, 0, 4), b.slice(x, 4, 4, 5), b.slice(x, 4, 5, 5 + self.classes)
        if self.tree:
            classes = emit_tree_softmax(b, classes, self.tree, axis=4)
        elif self.softmax:
            classes = b.op("Softmax", classes, axis=4)
        return b.reshape(b.op("Concat", box, b.op("Sigmoid", objectness), classes, axis=4), self.shape)

    def reference(self, inputs: Sequence[Array], arrays: Arrays, states: States) -> Array:
        _, height, width = self.shape
        x = inputs[0].reshape(len(inputs[0]), len(self.anchors), 5 + self.classes, height, width)
        y = x.transpose(0, 3, 4, 1, 2).copy()
        y[..., 4] = sigmoid(y[..., 4])
        if self.tree:
            y[..., 5:] = tree_softmax(y[..., 5:], self.tree)
        elif self.softmax:
            y[..., 5:] = softmax(y[..., 5:], -1)
        return y.reshape(len(y), *self.shape)

    def head(self) -> Head:
        """Decoder of the map; `map` is for `detector valid` alone, as in Darknet."""
        return RegionHead(
            output=layer_value(self.index),
            where=self.where.short,
            classes=self.classes,
            anchors=self.anchors,
            tree=self.tree,
            classfix=self.classfix,
            thresh=self.thresh,
        )

    def describe(self) -> str:
        return f"{len(self.anchors)} anchors, {self.classes} classes"
