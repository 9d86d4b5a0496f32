"""Lowering: random networks of many sections against the reference, layer by layer; names, shapes, order and errors."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from dnc.darknet.layers import layers
from dnc.darknet.layers.base import Array, Shape
from dnc.darknet.lower import lower, needs_window
from dnc.darknet.network import Network
from dnc.darknet.reference import run_all
from dnc.errors import DncError, WeightsError
from dnc.graph.builder import WHERE
from dnc.graph.pipeline import Pipeline
from dnc.graph.running import Running, run
from dnc.runtime.preprocessing import Preprocessing
from dnc.targets.onnx import Onnx
from tests import ROOT
from tests.thinning import thinned

BOUND = 2e-5
"""Two ways to sum some hundred terms in float32, over 40 layers; see `near`."""

SMOOTH = ("linear", "leaky", "relu", "relu6", "logistic", "tanh", "elu", "selu", "gelu", "swish", "mish", "hard_mish")
"""Without steps, on which two values that differ in the last bit could part."""


class Draft:
    """A cfg that grows section by section, and the shapes that Darknet's documentation gives its layers."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        height, width = (int(self.pick("9", "12", "13", "16", "18", "20", "24")) for _ in range(2))
        self.text = f"[net]\nheight={height}\nwidth={width}\nchannels=3\n"
        self.shapes: list[tuple[int, int, int]] = []
        self.shape = (3, height, width)
        self.heads: list[int] = []
        self.kinds: set[str] = set()
        self.masters: list[tuple[int, int, str]] = []
        """Convolutions that may be shared: layer, input channels, and the options that must be equal."""

    def pick(self, *choices: str) -> str:
        return choices[int(self.random.integers(len(choices)))]

    def chance(self, probability: float) -> bool:
        return bool(self.random.random() < probability)

    def add(self, name: str, shape: tuple[int, int, int], *options: str) -> None:
        self.text += f"\n[{name}]\n" + "".join(f"{option}\n" for option in options if option)
        self.shapes.append(shape)
        self.shape = shape
        self.kinds.add(name)

    def source(self, index: int) -> str:
        """Absolute or relative."""
        return str(index if self.chance(0.5) else index - len(self.shapes))

    def like(self) -> list[int]:
        """Layers with the width and height of the last."""
        return [index for index, shape in enumerate(self.shapes) if shape[1:] == self.shape[1:]]

    def conv(self, filters: int | None = None, size: int | None = None, activation: str = "") -> None:
        channels, height, width = self.shape
        size = size or int(self.pick("1", "3", "3", "5"))
        filters = filters or int(self.pick("4", "6", "8", "12", "16"))
        strided = size > 1 and min(height, width) >= 6 and self.chance(0.25)
        groups = next((g for g in (channels, 3, 2) if self.chance(0.15) and channels % g == filters % g == 0), 1)
        dilation = 2 if size > 1 and self.chance(0.1) else 1
        antialiasing = int(strided and dilation == 1 and self.chance(0.3))
        own = [f"filters={filters}", f"size={size}", f"groups={groups}" if groups > 1 else ""]
        rest = [
            "pad=1",
            f"stride={2 if strided else 1}",
            f"dilation={dilation}" if dilation > 1 else "",
            "antialiasing=1" if antialiasing else "",
            self.pick("batch_normalize=1", ""),
            f"activation={activation or self.pick(*SMOOTH)}",
        ]
        step = 2 if strided else 1
        key = "\n".join(own)
        twins = [index for index, depth, other in self.masters if (depth, other) == (channels, key)]
        share = f"share_index={self.source(twins[0])}" if twins and self.chance(0.7) else ""
        self.masters.append((len(self.shapes), channels, key))
        self.add("convolutional", (filters, (height - 1) // step + 1, (width - 1) // step + 1), *own, *rest, share)

    def pool(self) -> None:
        (channels, height, width), name = self.shape, self.pick("maxpool", "maxpool", "local_avgpool")
        size, stride = int(self.pick("2", "3", "5")), 2 if min(self.shape[1:]) >= 6 and self.chance(0.5) else 1
        shape = channels, (height - 1) // stride + 1, (width - 1) // stride + 1
        self.add(name, shape, f"size={size}", f"stride={stride}")

    def depth(self) -> None:
        channels, height, width = self.shape
        out = int(self.random.integers(1, channels + 1))
        self.add("maxpool", (out, height, width), "maxpool_depth=1", f"out_channels={out}")

    def upsample(self) -> None:
        channels, height, width = self.shape
        if max(height, width) > 12:
            self.conv()
        else:
            shape = channels, 2 * height, 2 * width
            self.add("upsample", shape, "stride=2", self.pick("", "scale=0.5"))

    def route(self) -> None:
        if self.shape[0] % 2 == 0 and self.chance(0.3):
            channels, height, width = self.shape
            options = "groups=2", f"group_id={self.pick('0', '1')}"
            self.add("route", (channels // 2, height, width), f"layers={self.source(len(self.shapes) - 1)}", *options)
            return
        choices = self.random.permutation(self.like())[: int(self.random.integers(1, 4))].tolist()
        channels = sum(self.shapes[index][0] for index in choices)
        if choices and channels <= 64:
            layers = ",".join(self.source(index) for index in choices)
            self.add("route", (channels, *self.shape[1:]), f"layers={layers}")

    def shortcut(self) -> None:
        choices = self.random.permutation(self.like())[: int(self.random.integers(1, 3))].tolist()
        if not choices:
            return
        options = [f"from={','.join(self.source(index) for index in choices)}", f"activation={self.pick(*SMOOTH)}"]
        if self.chance(0.4):
            options += [self.pick("weights_type=per_feature", "weights_type=per_channel")]
            options += [self.pick("weights_normalization=relu", "weights_normalization=softmax")]
        self.add("shortcut", self.shape, *options)

    def squeeze(self) -> None:
        (channels, height, width), before = self.shape, len(self.shapes) - 1
        if before < 0:
            return
        self.add("avgpool", (channels, 1, 1))
        if self.chance(0.3):
            # YOLOR: a learned vector on top.
            pooled = len(self.shapes) - 1
            self.add("implicit", (channels, 1, 1), f"filters={channels}")
            self.add("shortcut", (channels, 1, 1), f"from={self.source(pooled)}")
        self.conv(max(1, channels // 2), 1, "swish")
        self.conv(channels, 1, "logistic")
        self.add("scale_channels", (channels, height, width), f"from={self.source(before)}")

    def attention(self) -> None:
        shape, before = self.shape, len(self.shapes) - 1
        if before < 0:
            return
        every = self.chance(0.5)
        filters = shape[0] if every else 1
        self.add("convolutional", (filters, *shape[1:]), f"filters={filters}")
        self.add(
            "sam" if every else "scale_channels", shape, f"from={self.source(before)}", "" if every else "scale_wh=1"
        )

    def pyramid(self) -> None:
        """Spatial pyramid pooling."""
        (channels, height, width), start = self.shape, len(self.shapes) - 1
        if start < 0 or channels > 16:
            return
        for size in (3, 5, 9):
            self.add("maxpool", (channels, height, width), f"size={size}", "stride=1")
            self.add("route", (channels, height, width), f"layers={self.source(start)}")
        pools = (len(self.shapes) - 2, len(self.shapes) - 4, len(self.shapes) - 6, start)
        layers = ",".join(self.source(index) for index in pools)
        self.add("route", (4 * channels, height, width), f"layers={layers}")

    def reorg(self) -> None:
        channels, height, width = self.shape
        name = self.pick("reorg", "reorg3d")
        if height % 2 or width % 2 or channels > 16 or (name == "reorg" and channels % 4):
            self.conv(4, 1)
        else:
            self.add(name, (4 * channels, height // 2, width // 2), "stride=2")

    def simple(self) -> None:
        name = self.pick("activation", "batchnorm", "dropout", "normalization", "empty")
        if name != "normalization" or self.shape[0] > 2:
            option = {"activation": f"activation={self.pick(*SMOOTH)}", "normalization": "size=4\nkappa=5\nalpha=0.01"}
            self.add(name, self.shape, option.get(name, ""))

    def head(self) -> None:
        name, classes = self.pick("yolo", "yolo", "Gaussian_yolo", "region"), int(self.random.integers(1, 4))
        entries = (9 if name == "Gaussian_yolo" else 5) + classes
        self.conv(2 * entries, 1, "linear")
        options = {"region": ["softmax=1"], "yolo": ["scale_x_y=1.1", f"new_coords={self.pick('0', '1')}"]}
        self.heads.append(len(self.shapes))
        self.add(name, self.shape, f"classes={classes}", "num=2", "anchors=4,5, 7,6", *options.get(name, []))
        # What comes after goes on from before the head.
        back = int(self.random.integers(0, len(self.shapes) - 2))
        self.add("route", self.shapes[back], f"layers={self.source(back)}")

    def finish(self) -> Draft:
        steps: list[Callable[[], None]] = [self.conv] * 6
        steps += [self.pool, self.depth, self.upsample, self.squeeze, self.attention, self.pyramid, self.reorg]
        steps += [self.route, self.route, self.shortcut, self.shortcut, self.shortcut, self.simple, self.simple]
        self.conv()
        length, heads = int(self.random.integers(20, 36)), [12, 24]
        while len(self.shapes) < length:
            if heads and len(self.shapes) >= heads[0]:
                heads.pop(0)
                self.head()
            elif self.shape[0] > 32:
                self.conv(8)
            else:
                steps[int(self.random.integers(len(steps)))]()
        self.head()
        return self


def near(got: Array, expected: Array, *read: Array) -> bool:
    """Within the bound, relative to the largest value of the layer or of what it reads: sums may cancel."""
    largest = max(float(np.abs(values).max()) for values in (expected, *read))
    return got.shape == expected.shape and float(np.abs(got - expected).max()) <= BOUND * largest


@pytest.mark.parametrize("seed", thinned(range(40)))
def test_random_network(seed: int) -> None:
    draft = Draft(seed).finish()
    network = Network.parse(draft.text).with_random_weights(seed)
    assert [layer.shape for layer in network.layers] == draft.shapes
    assert [layer.index for layer in network.outputs] == draft.heads
    assert len(network.layers) >= 20
    every_layer = range(len(network.layers))
    free = Running(lower(network, layers=every_layer), spin=False)
    # As an engine has it: the heads alone, all passes, ONNX Runtime's own fusions.
    model = lower(network)
    Pipeline(Onnx().optimizations()).run(model)
    engine = Running(model, optimize=True, spin=False)
    for batch in (1, 2):
        x = draft.random.normal(0, 1, (batch, *network.input_shape)).astype(np.float32)
        expected = {-1: x, **dict(run_all(network, x))}
        for opened in (Running(lower(network, batch=batch, layers=every_layer), spin=False), free):
            every = opened({"input": x})
            for layer in network.layers:
                got = every[f"layer{layer.index:03d}"]
                assert np.isfinite(expected[layer.index]).all()
                read = [expected[source] for source in layer.sources]
                assert near(got, expected[layer.index], *read), f"layer {layer.index} [{layer.name}] at {layer.where}"
        final = engine({"input": x})
        assert list(final) == [f"layer{index:03d}" for index in draft.heads]
        for index in draft.heads:
            assert near(final[f"layer{index:03d}"], expected[index]), f"head {index}"


def test_random_networks_have_every_section() -> None:
    """But the flat and the recurrent ones, and those that fix the size."""
    drawn = set().union(*(Draft(seed).finish().kinds for seed in range(40)))
    flat = {"connected", "cost", "contrastive", "detection", "softmax", "rnn", "gru", "lstm"}
    left = flat | {"crnn", "conv_lstm", "history", "local", "crop"}
    assert {kind.name for kind in layers.values()} - drawn == left, "a new section is drawn by Draft.simple, or left"


CFG = """[net]
width=6
height=4
channels=3
[convolutional]
filters=16
batch_normalize=1
[yolo]
classes=3
num=2
anchors=1,2,3,4
[route]
layers=0
[convolutional]
filters=16
activation=linear
[yolo]
classes=3
num=2
anchors=5,6,7,8
"""


def names(values: Collection[ir.Value]) -> list[str | None]:
    return [value.name for value in values]


def test_outputs_are_the_heads_then_the_layers_asked_for() -> None:
    network = Network.parse(CFG, "a/b.cfg").with_random_weights()
    assert names(lower(network).graph.outputs) == ["layer001", "layer004"]
    assert names(lower(network, layers=[3, 1, 0]).graph.outputs) == ["layer001", "layer004", "layer000", "layer003"]
    assert names(lower(network, layers=[3], decode="graph").graph.outputs) == ["boxes", "scores", "layer003"]
    assert names(lower(network, decode="graph+nms").graph.outputs) == ["detections"]


def test_inputs() -> None:
    network = Network.parse(CFG).with_random_weights()
    (value,) = lower(network, batch=5).graph.inputs
    assert (value.name, str(value.shape), value.dtype) == ("input", "[5,3,4,6]", ir.DataType.FLOAT)
    (value,) = lower(network).graph.inputs
    assert str(value.shape) == "[N,3,4,6]"
    box = Preprocessing(width=6, height=4, mode="letterbox")
    nms = lower(network, decode="graph+nms", preprocessing=box, pixels=True).graph.inputs
    assert names(nms) == ["input", "confidence", "iou", "window"]
    assert nms[0].dtype == ir.DataType.UINT8
    assert str(nms[0].shape) == "[N,height,width,3]"


def test_window_is_needed_where_the_image_does_not_fill_the_input() -> None:
    needed = {mode for mode in ("resize", "resize-half-pixel", "letterbox", "center-crop")
              if needs_window(Preprocessing(width=6, height=4, mode=mode))}  # fmt: skip
    assert needed == {"letterbox", "center-crop"}
    assert not needs_window(None)


def test_every_node_knows_its_section() -> None:
    model = lower(Network.parse(CFG, "/home/me/b.cfg").with_random_weights())
    places = {node.metadata_props.get(WHERE) for node in model.graph}
    assert places == {
        "b.cfg:5 [convolutional] #0",
        "b.cfg:8 [yolo] #1",
        "b.cfg:12 [route] #2",
        "b.cfg:14 [convolutional] #3",
        "b.cfg:17 [yolo] #4",
    }
    assert model.metadata_props["dnc.digest"] == Network.parse(CFG).with_random_weights().digest


def test_every_layer_has_a_value_of_its_own_name_and_shape() -> None:
    """Also where it does nothing, or shares its value with another."""
    text = "[net]\ninputs=4\n[dropout]\n[dropout]\n[route]\nlayers=0\n[activation]\n[softmax]\n[cost]\n"
    network = Network.parse(text).with_random_weights()
    model = lower(network, batch=2, layers=range(6))
    found = {value.name: value for node in model.graph for value in node.outputs}
    for index in range(6):
        value = found[f"layer{index:03d}"]
        assert value.shape is not None
        assert tuple(value.shape) == (2, 4)
        assert value.dtype == ir.DataType.FLOAT


def test_states_come_in_and_go_out() -> None:
    text = "[net]\ninputs=5\n[gru]\noutput=3\n[lstm]\noutput=2\n[connected]\noutput=4\n[softmax]\n"
    model = lower(Network.parse(text).with_random_weights())
    assert names(model.graph.inputs) == ["input", "state000.h", "state001.h", "state001.c"]
    assert names(model.graph.outputs) == ["layer003", "next000.h", "next001.h", "next001.c"]


def test_a_network_without_weights_is_refused() -> None:
    with pytest.raises(WeightsError) as caught:
        lower(Network.parse(CFG, "b.cfg"))
    assert str(caught.value) == "the network has no weights\n  at b.cfg\n  hint: give its .weights file"


def test_pixels_want_a_preprocessing() -> None:
    with pytest.raises(DncError, match="this network does not take images, so --input u8 has no meaning"):
        lower(Network.parse(CFG).with_random_weights(), pixels=True)


def test_a_shape_that_onnx_sees_otherwise_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer's shape is held against ONNX's inference."""

    def wrong(self: object, b: object, inputs: list[ir.Value], arrays: object) -> ir.Value:
        return inputs[0]

    network = Network.parse("[net]\nwidth=6\nheight=4\nchannels=3\n[avgpool]\n").with_random_weights()
    monkeypatch.setattr(layers["avgpool"], "emit", wrong)
    with pytest.raises(DncError, match="Inferred shape and existing shape differ in dimension 2") as caught:
        lower(network)
    assert caught.value.hint.startswith("this is a bug of dnc; please report it")


@pytest.mark.parametrize("cfg", thinned(sorted((ROOT / "cfg").glob("*.cfg"))), ids=lambda p: p.stem)
def test_cfgs_that_come_with_dnc(cfg: Path) -> None:
    """Their shapes, and the first layers of each, with random weights."""
    # Their own size would prove the same on a hundred times the pixels.
    network = Network.load(cfg, cutoff=4, width=48, height=32).with_random_weights()
    x: npt.NDArray[np.float32] = np.random.default_rng(1).random((1, *network.input_shape)).astype(np.float32)
    last = list(run_all(network, x))[-1][1]
    assert near(run(lower(network, layers=[3]), {"input": x})["layer003"], last)
    whole: Shape = Network.load(cfg).layers[-1].shape
    assert min(whole) > 0
