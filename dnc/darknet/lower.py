"""Network -> ONNX: each layer emits its nodes, and the outputs of the heads become the graph's.

The graph's input is `input`, float32 (N, C, H, W) in [0, 1] as Darknet's layers see it, or pixels
(`dnc.graph.preprocessing`); the output of a Darknet layer is called `layer036`. A recurrent layer reads `state007.h`
and gives `next007.h`. Decoded in the graph, the outputs are `boxes` and `scores`, or `detections`
(`dnc.graph.suppression`).
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from dnc.darknet.layers.base import Layer, layer_value
from dnc.darknet.network import Network
from dnc.errors import DncError
from dnc.graph.boxes import emit_scores, undecodable
from dnc.graph.builder import Builder
from dnc.graph.composites import add_functions
from dnc.graph.preprocessing import emit_pixels
from dnc.graph.serialization import check
from dnc.graph.suppression import Decode, emit_decoded, emit_nms
from dnc.runtime.decoding import BoxHead
from dnc.runtime.preprocessing import Preprocessing

__all__ = ["DECODE", "lower", "needs_window"]

DECODE = ("host", "graph", "graph+nms")


def needs_window(preprocessing: Preprocessing | None) -> bool:
    """Whether boxes must be told where the image lies in the input: not where it fills it."""
    return preprocessing is not None and preprocessing.mode in ("letterbox", "center-crop")


def lower(
    network: Network,
    *,
    batch: int | str = "N",
    layers: Collection[int] = (),
    decode: str = "host",
    preprocessing: Preprocessing | None = None,
    pixels: bool = False,
) -> ir.Model:
    """Lowers a network with weights.

    Args:
        batch: the batch size, or the name of a free one.
        layers: layers whose outputs become graph outputs besides the heads' (after them, in order).
        decode: "host": the heads' maps are the outputs; "graph": boxes and scores; "graph+nms": detections.
        preprocessing: how images become the input; needed for `pixels`, and for "graph+nms" on letterboxed images.
        pixels: takes uint8 images of any size, and preprocesses them in the graph.

    Raises:
        WeightsError: the network has no weights.
        CfgError: a head cannot be decoded in the graph.
    """
    network.need_weights()
    b = Builder(batch)
    if pixels and preprocessing is None:
        raise DncError("this network does not take images, so --input u8 has no meaning", network.file)
    if pixels and preprocessing is not None:
        values = {-1: emit_pixels(b, preprocessing)}
    else:
        values = {-1: b.input("input", network.input_shape)}
    following: list[tuple[ir.Value, str, list[int | str]]] = []
    for layer, arrays in zip(network.layers, network.arrays, strict=True):
        b.enter(f"{layer.index:03d}_{layer.name}", layer.where)
        prefix = f"{layer.index:03d}."
        b.states = {name: b.input(f"state{prefix}{name}", shape) for name, shape in layer.states().items()}
        b.next_states = {}
        value = layer.emit(b, [values[source] for source in layer.sources], arrays)
        if value.producer() is None or value in values.values():
            # A layer that does nothing still has a name of its own; the pass eliminate-identity removes it.
            value = b.op("Identity", value)
        value.name = layer_value(layer.index)
        value.shape = ir.Shape([batch, *layer.shape])
        value.type = ir.TensorType(ir.DataType.FLOAT)
        values[layer.index] = value
        for name, state in b.next_states.items():
            following.append((state, f"next{prefix}{name}", [batch, *layer.states()[name]]))
    heads = [layer.index for layer in network.outputs]
    if decode == "host":
        b.outputs += [values[index] for index in heads]
    else:
        _emit_decoded(b, network, values, decode == "graph+nms", needs_window(preprocessing))
        heads = []
    b.outputs += [values[index] for index in sorted(set(layers) - set(heads))]
    for state, name, shape in following:
        b.output(state, name, shape)
    add_functions(b)
    model = b.model("darknet", {"dnc.digest": network.digest})
    check(model, "lowering")
    return model


def _emit_decoded(b: Builder, network: Network, values: dict[int, ir.Value], nms: bool, window: bool) -> None:
    heads = [(layer, layer.head()) for layer in network.outputs]
    boxes = [(layer, head) for layer, head in heads if isinstance(head, BoxHead)]
    if not boxes or len(boxes) < len(heads):
        raise DncError("only boxes can be decoded in the graph", network.file, "leave --decode at host")

    found = undecodable([head for _, head in boxes])
    if found is not None:
        layer = next(layer for layer, head in boxes if head == found[0])
        layer.fail(found[1], "leave --decode at host")

    def decoder(layer: Layer, head: BoxHead) -> Decode:
        def decode(body: Builder, output: ir.Value) -> tuple[ir.Value, ir.Value]:
            body.enter(f"{layer.index:03d}_{layer.name}_decode", layer.where)
            return emit_scores(body, head, output, layer.shape)

        return decode

    last, head = boxes[-1]
    places, scores = emit_decoded(
        b, [(values[layer.index], decoder(layer, head)) for layer, head in boxes], head.classes
    )
    if not nms:
        b.output(places, "boxes")
        b.output(scores, "scores")
        return
    kind, beta = head.nms
    if kind == "cornersnms":
        last.fail("nms_kind=cornersnms moves boxes, which cannot be done in the graph", "use --decode graph or host")
    b.enter("nms")
    b.output(emit_nms(b, places, scores, kind, beta, window), "detections", ["detections", 7])
