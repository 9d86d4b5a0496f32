"""Composites: valid ONNX that ONNX Runtime runs as it is; inlined, the same bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.graph.builder import WHERE, where_of
from dnc.graph.composites import (
    BINARY_CONVOLUTION,
    DECODE_BOXES,
    NON_MAX_SUPPRESSION,
    PREPROCESS,
    attributes_of,
    inline_composites,
    is_composite,
)
from dnc.graph.preprocessing import Preprocess
from dnc.graph.rewriting import add_initializer, constant_array
from dnc.graph.running import Running
from dnc.graph.serialization import serialize, serialize_to, small_model
from dnc.graph.verification import Verifier, feeds_for
from dnc.passes import passes
from dnc.runtime.preprocessing import Preprocessing

YOLO = "[yolo]\nmask=0,1,2\nnum=3\nanchors=4,4,8,8,16,16\nclasses=2\nnms_kind=greedynms\n"
TEXT = (
    "[net]\nwidth=32\nheight=24\nchannels=3\n[convolutional]\nfilters=21\nsize=3\nstride=4\npad=1\nactivation=leaky\n"
    f"{YOLO}[convolutional]\nfilters=21\nactivation=linear\n{YOLO}"
)
LETTERBOX = Preprocessing(32, 24, mode="letterbox", mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
BICUBIC = Preprocessing(32, 24, mode="center-crop", crop=0.8, interpolation="bicubic", color="bgr")
KINDS = [PREPROCESS, DECODE_BOXES, NON_MAX_SUPPRESSION]


def built(preprocessing: Preprocessing = LETTERBOX, batch: int | str = "N") -> ir.Model:
    network = Network.parse(TEXT, "b.cfg").with_random_weights(0)
    return lower(network, batch=batch, preprocessing=preprocessing, pixels=True, decode="graph+nms")


def run(content: bytes, model: ir.Model, preprocessing: Preprocessing) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    outputs: list[np.ndarray] = ort.InferenceSession(content, options).run(None, feeds_for(model, preprocessing))
    return outputs


def composites(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph if is_composite(node)]


@pytest.mark.parametrize("preprocessing", [LETTERBOX, BICUBIC], ids=lambda p: p.mode)
@pytest.mark.parametrize("keep", [KINDS, [PREPROCESS, NON_MAX_SUPPRESSION], [DECODE_BOXES], []])
def test_whole_and_inlined(keep: list[str], preprocessing: Preprocessing) -> None:
    """The checker and ONNX Runtime take what is kept of the composites; detections are the same."""
    model = built(preprocessing)
    assert composites(model) == KINDS
    expected = run(b"".join(serialize(model)), model, preprocessing)
    assert len(expected[0]) > 20
    copy = model.clone()
    inline_composites(copy, keep)
    assert composites(copy) == [kind for kind in KINDS if kind in keep]
    assert [name for _, name, _ in copy.functions] == composites(copy)
    assert ("dnc" in copy.graph.opset_imports) == bool(keep)
    onnx.checker.check_model(small_model(copy), full_check=True)
    onnx.shape_inference.infer_shapes(small_model(copy), check_type=True, strict_mode=True)
    found = run(b"".join(serialize(copy)), copy, preprocessing)
    assert [array.tobytes() for array in found] == [array.tobytes() for array in expected]
    # The model that was cloned is whole.
    assert composites(model) == KINDS


def test_inlined_nodes() -> None:
    """They have names of their own and the line of the cfg; constants are initializers, equal ones shared."""
    model = built()
    inline_composites(model)
    names = [node.name or "" for node in model.graph]
    assert len(set(names)) == len(names)
    assert {name.partition("/")[0] for name in names} == {
        *("preprocessing", "000_convolutional", "001_yolo", "002_convolutional", "003_yolo"),
        *("001_yolo_decode", "003_yolo_decode", "decode", "nms"),
    }
    heads = {node.metadata_props.get(WHERE) for node in model.graph if "_decode/" in (node.name or "")}
    assert heads == {"b.cfg:11 [yolo] #1", "b.cfg:20 [yolo] #3"}
    assert {where_of(node) for node in model.graph if node.name == "nms/TopK"} == {"node nms/TopK"}
    assert not [node for node in model.graph if node.op_type == "Constant"]
    contents = [
        (value.dtype, tuple(value.shape or ()), value.const_value.numpy().tobytes())
        for name, value in model.graph.initializers.items()
        if "/" not in name and value.const_value is not None
    ]
    assert len(set(contents)) == len(contents) > 10
    assert "001_yolo_decode/anchors" in model.graph.initializers
    assert not [value for value in model.graph.initializers.values() if not value.uses()]
    (places,) = (node for node in model.graph if node.name == "decode/Concat")
    assert list(places.outputs[0].shape or ())[1:] == [2 * 3 * 8 * 6, 4]
    assert [value.name for value in model.graph.outputs] == ["detections"]


def test_attributes() -> None:
    """What a target reads instead of nodes, in a file that was written and read as well."""
    model = ir.from_proto(onnx.load_from_string(b"".join(serialize(built()))))
    pixels, _, suppression = (node for node in model.graph if is_composite(node))
    found = Preprocess.of(pixels)
    assert (found.width, found.height, found.mode, found.color, found.divisor) == (32, 24, "letterbox", "rgb", 255)
    np.testing.assert_array_equal(np.array(found.std, np.float32), np.array(LETTERBOX.std, np.float32))
    assert found.gain.shape == (1, 3, 1, 1)
    assert (found.gain == 1).all()
    assert attributes_of(suppression) == {"exponent": pytest.approx(0.6), "limit": 4096}


@pytest.mark.parametrize("preprocessing", [LETTERBOX, BICUBIC], ids=lambda p: p.mode)
def test_gain(preprocessing: Preprocessing) -> None:
    """fold-scale moves the factors of the pixels into the first convolution, and says so in the composite."""
    model = built(preprocessing, batch=1)
    verifier = Verifier(feeds_for(model, preprocessing), ["layer001", "layer003"])
    verifier.start(model)
    fold = passes["fold-scale"]()
    remarks = fold.rewrite(model)
    moved = ["divisor folded into the weights"] + ["std folded into the weights"] * (preprocessing is LETTERBOX)
    assert [remark.text for remark in remarks.applied] == moved
    assert verifier.compare(model, fold.tolerance) > 0
    (call,) = (node for node in model.graph if is_composite(node, PREPROCESS))
    expected = 255 * np.array(preprocessing.std, np.float32) * np.ones(3, np.float32)
    np.testing.assert_array_equal(Preprocess.of(call).gain.ravel(), expected)
    assert not fold.rewrite(model).applied
    inline_composites(model)
    assert verifier.compare(model, 0) == 0


def test_other_passes_leave_composites_alone() -> None:
    """They compute in float32 whatever surrounds them."""
    model = built(batch=1)
    inline_composites(model, [PREPROCESS, NON_MAX_SUPPRESSION])
    verifier = Verifier(feeds_for(model, LETTERBOX), ["layer001", "layer003"])
    verifier.start(model)
    for name in ("fold-constants", "eliminate-identity", "fold-batchnorm", "to-float16", "eliminate-dead-code"):
        assert all("dnc" not in remark.text for remark in passes[name]().rewrite(model).applied)
    assert composites(model) == [PREPROCESS, NON_MAX_SUPPRESSION]
    assert model.graph.node(0).outputs[0].dtype == ir.DataType.FLOAT
    assert verifier.compare(model, passes["to-float16"].tolerance) > 0


def test_gain_stays_where_others_read_the_pixels() -> None:
    """Here a layer adds the pixels to what a convolution makes of them."""
    text = "[net]\nwidth=8\nheight=8\nchannels=3\n[empty]\n[convolutional]\nfilters=3\nactivation=linear\n"
    network = Network.parse(f"{text}[shortcut]\nfrom=-2\nactivation=linear\n").with_random_weights(0)
    model = lower(network, preprocessing=Preprocessing(8, 8), pixels=True)
    passes["eliminate-identity"]().rewrite(model)
    remarks = passes["fold-scale"]().rewrite(model)
    (call,) = (node for node in model.graph if is_composite(node))
    assert (Preprocess.of(call).gain == 1).all()
    assert not remarks.applied
    assert [(remark.where, remark.text) for remark in remarks.missed] == [
        ("node preprocessing/Preprocess", "a layer's own numbers would change")
    ]


SIGNS = (
    "[net]\nwidth=8\nheight=6\nchannels=3\n"
    "[convolutional]\nxnor=1\nfilters=33\nsize=3\nstride=2\npad=1\nbatch_normalize=1\nactivation=leaky\n"
    "[convolutional]\nxnor=1\nfilters=20\nsize=3\nstride_y=2\npad=1\ndilation=2\nactivation=linear\n"
    "[convolutional]\nxnor=1\nfilters=4\nantialiasing=1\nactivation=relu\n"
)


def signs(batch: int | str = "N", text: str = SIGNS) -> ir.Model:
    return lower(Network.parse(text, "s.cfg").with_random_weights(0), batch=batch)


def test_binary_convolutions() -> None:
    """One function for all; a weight is a bit; shapes are inferred through it, of a batch of any size."""
    model = signs()
    calls = [node for node in model.graph if is_composite(node)]
    assert [call.op_type for call in calls] == [BINARY_CONVOLUTION] * 3
    assert [where_of(call) for call in calls] == [
        f"s.cfg:{line} [convolutional] #{n}" for n, line in enumerate((5, 13, 21))
    ]
    assert len(model.functions) == 1
    proto = small_model(model)
    onnx.checker.check_model(proto, full_check=True)
    del proto.graph.value_info[:]
    infos = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True).graph.value_info
    found = {info.name: [side.dim_value for side in info.type.tensor_type.shape.dim] for info in infos}
    shapes = [found[call.outputs[0].name or ""] for call in calls]
    assert shapes == [[0, 33, 3, 4], [0, 20, 2, 4], [0, 4, 2, 4]]
    weights, scale, bias = (constant_array(value) for value in calls[1].inputs[1:])
    assert weights is not None
    assert (weights.dtype, weights.shape.numpy()) == (ir.DataType.UINT8, (20, 3, 3, 5))
    assert weights.numpy()[..., 4].max() == 1
    assert [tensor.shape.numpy() for tensor in (scale, bias) if tensor is not None] == [(20,), (20,)]
    assert attributes_of(calls[1]) == {"strides": (2, 1), "pads": (2, 2, 2, 2), "dilations": (2, 2)}


def test_binary_convolutions_in_a_file(tmp_path: Path) -> None:
    """Written, read and inlined; what it is written as computes weights when they are read."""
    model = signs()
    serialize_to(model, tmp_path / "model.onnx")
    feeds = feeds_for(model)
    expected = Running(model)(feeds)
    read = ir.load(tmp_path / "model.onnx")
    for kept in ([BINARY_CONVOLUTION], []):
        inline_composites(read, kept)
        assert composites(read) == [BINARY_CONVOLUTION] * 3 * len(kept)
        assert len(read.functions) == len(kept)
        assert ("dnc" in read.graph.opset_imports) == bool(kept)
        found = Running(read)(feeds)
        assert {name: array.tobytes() for name, array in found.items()} == {
            name: array.tobytes() for name, array in expected.items()
        }
    names = [node.name or "" for node in read.graph]
    assert len(set(names)) == len(names)
    assert names[:6] == [f"000_convolutional/{name}" for name in ("Greater", "Where", "Pad", "Conv", "Round", "Mul")]
    assert {where_of(node) for node in list(read.graph)[:7]} == {"s.cfg:5 [convolutional] #0"}
    inline_composites(model)
    assert isinstance(model.graph.initializers["001_convolutional/weights"].const_value, ir.LazyTensor)
    assert not [name for name in model.graph.initializers if name.endswith("_1")]


def test_composites_that_nothing_reads() -> None:
    """No function and no domain are left of them, which some readers of ONNX refuse."""
    text = SIGNS + "[route]\nlayers=-2\n[convolutional]\nfilters=2\nactivation=linear\n"
    model = lower(Network.parse(text.replace("xnor=1", "xnor=0", 2)).with_random_weights(0))
    assert composites(model) == [BINARY_CONVOLUTION]
    passes["eliminate-dead-code"]().rewrite(model)
    assert (composites(model), list(model.functions)) == ([], [])
    assert "dnc" not in model.graph.opset_imports


def test_composites_of_constants_stay() -> None:
    model = signs(batch=1)
    source = model.graph.inputs[0]
    constant = ir.Tensor(np.ones((1, 3, 6, 8), np.float32), name="fixed")
    source.replace_all_uses_with(add_initializer(model.graph, constant))
    expected = Running(model)({source.name or "": np.zeros((1, 3, 6, 8), np.float32)})
    passes["fold-constants"]().rewrite(model)
    assert composites(model) == [BINARY_CONVOLUTION] * 3
    found = Running(model)({source.name or "": np.zeros((1, 3, 6, 8), np.float32)})
    np.testing.assert_array_equal(found["layer002"], expected["layer002"])
