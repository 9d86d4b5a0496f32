"""What must stay in float32: the keep list, and each case of the rule."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.errors import DncError
from dnc.passes import passes
from dnc.passes.shared.reduced_precision import Keep, float32_nodes
from tests.models import model
from tests.networks import NETWORKS

KERNEL = np.ones((1, 1, 1, 1))


def stays(built: ir.Model, *keep: str, wide: bool = False) -> dict[str, str]:
    """The operators that stay, with the reasons."""
    return {node.op_type: reason for node, reason in float32_nodes(built, Keep(keep), wide=wide).items()}


def chain(*ops: str) -> ir.Model:
    """Operators of one input, in a row; Conv has weights, Pow an exponent."""
    more = {"Conv": ", w", "Pow": ", two", "BatchNormalization": ", one, one, one, one"}
    lines = [f"v{i + 1} = {op} (v{i}{more.get(op, '')})" for i, op in enumerate(ops)]
    text = "  ".join(lines).replace(f"v{len(ops)} =", "y =")
    constants = {"w": KERNEL, "two": np.array(2.0), "one": np.ones(1)}
    used = {name: array for name, array in constants.items() if f", {name}" in text}
    return model(f"agraph (float[1,1,2,2] v0) => (float[1,1,2,2] y) {{ {text} }}", **used)


def test_nothing_between_products() -> None:
    assert stays(chain("Conv", "Relu", "MaxPool <kernel_shape = [1, 1]>", "Conv")) == {}


def test_before_and_after_all_products() -> None:
    found = stays(chain("Abs", "Conv", "Relu", "Conv", "Sigmoid"))
    assert found == {"Abs": "it comes before all products", "Sigmoid": "it comes after all products"}


def test_no_products() -> None:
    assert set(stays(chain("Abs", "Relu"))) == {"Abs", "Relu"}


@pytest.mark.parametrize("op", ["Exp", "Pow", "Softmax"])
def test_range(op: str) -> None:
    """float16 ends at 65504; bfloat16 does not."""
    built = chain("Conv", "Relu", op, "Conv")
    assert stays(built) == {op: f"{op} may leave the range of float16"}
    assert stays(built, wide=True) == {}
    # After the last product it is that which counts.
    assert stays(chain("Conv", op)) == {op: "it comes after all products"}


def test_statistics() -> None:
    built = chain("Conv", "BatchNormalization", "Relu", "Conv")
    assert stays(built) == {"BatchNormalization": "a small variance is nothing in float16"}


def test_sections_stay_as_a_whole() -> None:
    """LRN's window sums are of squares, and its Pow is not all that may overflow; the layers around are not kept."""
    text = "[net]\nwidth=4\nheight=4\nchannels=3\n" + "[convolutional]\nfilters=8\n[normalization]\nsize=3\n" * 2
    built = lower(Network.parse(text + "[convolutional]\n").with_random_weights(0))
    found = float32_nodes(built, Keep(()))
    kept = {(node.name or "").split("/")[0] for node in found}
    # The last layer's activation comes after all products.
    assert kept == {"001_normalization", "003_normalization", "004_convolutional"}
    assert "its section has Pow, which may leave the range of float16" in found.values()
    assert {node.op_type for node in found} == {"Mul", "Conv", "Add", "Pow", "Sigmoid"}


@pytest.mark.parametrize("decides", ["Greater(c, z)", "Less(c, z)", "Cast <to = 6> (c)", "Sign(c)"])
def test_what_a_comparison_reads(decides: str) -> None:
    """The convolution before it stays, that after it does not; without one after it, neither does."""
    text = f"{{ b = Conv(x, w)  c = Relu(b)  d = {decides}  e = Cast <to = 1> (d)  "
    constants = {"w": KERNEL, **({"z": np.array(0.0)} if "z)" in decides else {})}
    head = "agraph (float[1,1,2,2] x) => (float[1,1,2,2] y) "
    followed = model(head + text + "f = Conv(e, w)  y = Relu(f) }", **constants)
    found = float32_nodes(followed, Keep(()))
    nodes = list(followed.graph)
    assert [found.get(node) for node in nodes[:3]] == ["a comparison depends on it"] * 3
    assert nodes[4] not in found
    last = model(head + text + "y = Relu(e) }", **constants)
    assert "Conv" not in {node.op_type for node in float32_nodes(last, Keep(()))}


def test_shapes_decide_nothing() -> None:
    text = """agraph (float[N,1,2,2] x) => (float[M,1,2,2] y) {
        b = Conv(x, w)  s = Shape(b)  c = Relu(b)  d = Reshape(c, s)  y = Conv(d, w)
    }"""
    assert stays(model(text, w=KERNEL)) == {}


EIGHT = (
    "agraph (float[1,1,2,2] x) => (float[1,1,2,2] y) { a = Conv (x, w) r = Relu (a) q = QuantizeLinear (r, s, z) "
    "d = DequantizeLinear (q, s, z) k = DequantizeLinear <axis = 0> (i, t) c = Conv (d, k) "
    "e = Sigmoid (c) m = Mul (c, e) n = Add (m, r) l = LeakyRelu (n) y = Conv (l, w) }"
)
"""A swish behind a product of 8 bits, then a sum with a map that is of none."""


def test_what_is_computed_with_eight_bits() -> None:
    """The product and its activation; not the map that is rounded, nor what adds another."""
    grid = {"s": np.array(0.1, np.float32), "t": np.ones(1, np.float32)}
    built = model(EIGHT, w=KERNEL, i=np.ones((1, 1, 1, 1), np.int8), z=np.array(0, np.uint8), **grid)
    nodes = {node: reason for node, reason in float32_nodes(built, Keep([])).items() if "Linear" not in node.op_type}
    assert {node.op_type: reason for node, reason in nodes.items()} == {
        "Conv": "it is computed with 8 bits",
        "Sigmoid": "it is computed with the sums of an 8-bit product",
        "Mul": "it is computed with the sums of an 8-bit product",
    }
    assert sum(node.op_type == "Conv" for node in nodes) == 1


def test_keep_layers_and_operators() -> None:
    built = lower(Network.parse(NETWORKS["yolo"]).with_random_weights(0))
    passes["fold-batchnorm"]().rewrite(built)

    def layers(*keep: str) -> set[str]:
        found = float32_nodes(built, Keep(keep))
        return {(node.name or "")[:3] for node, reason in found.items() if reason.startswith("layer")}

    assert layers() == set()
    assert layers("0", "2") == {"000", "002"}
    assert layers(" 2-5 ") == {"002", "003", "004", "005"}
    found = float32_nodes(built, Keep(["MaxPool"]))
    assert [reason for node, reason in found.items() if node.op_type == "MaxPool"] == ["MaxPool is kept in float32"]


REFUSED = {
    "5-2": "keep=5-2: the range is empty\n  hint: write 2-5",
    "Sigmoyd": "keep=Sigmoyd: neither a layer nor an operator\n  hint: did you mean 'Sigmoid'?",
    "-3": "keep=-3: neither a layer nor an operator\n  hint: layer numbers (36, 30-36), or operators of ONNX (Sigmoid)",
}


@pytest.mark.parametrize("entry", REFUSED)
def test_keep_refuses(entry: str) -> None:
    with pytest.raises(DncError) as caught:
        Keep([entry])
    assert str(caught.value) == REFUSED[entry]


def test_keep_of_a_layer_that_is_not_there() -> None:
    built = lower(Network.parse(NETWORKS["tiny"]).with_random_weights(0))
    with pytest.raises(DncError, match="keep names layer 7, but the network's last is 2"):
        float32_nodes(built, Keep(["1-7"]))
