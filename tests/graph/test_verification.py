"""A pass that changes the numbers is caught, by as much as it declares and no more."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import pytest

from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.errors import PassError
from dnc.graph.pipeline import Pipeline
from dnc.graph.rewriting import Remarks, add_initializer, constant_array, replace_uses
from dnc.graph.verification import Verifier, error_between, feeds_for, photograph
from dnc.passes import Pass, passes
from dnc.passes.diagonalwise import Diagonalwise
from dnc.runtime.preprocessing import Preprocessing
from tests.models import model
from tests.networks import NETWORKS, TINY

ORDER = ("eliminate-identity", "fold-constants", "fold-batchnorm", "eliminate-dead-code")


def lowered(text: str = TINY, **options: Any) -> ir.Model:
    return lower(Network.parse(text).with_random_weights(0), **options)


class DropsBias(Pass):
    """A planted fault: a convolution loses its biases."""

    name: ClassVar[str] = "drops-bias"
    tolerance: ClassVar[float] = 1e-5

    def rewrite(self, model: ir.Model) -> Remarks:
        remarks = Remarks()
        for node in model.graph:
            if node.op_type == "Conv" and len(node.inputs) > 2:
                node.resize_inputs(2)
                remarks.apply(node, "faster without")
        return remarks


class Shifts(Pass):
    """A planted fault of a given size: the first output grows by it, relative to its largest value."""

    name: ClassVar[str] = "shifts"
    tolerance: ClassVar[float] = 1e-3

    def __init__(self, amount: float) -> None:
        self.amount = amount

    def rewrite(self, model: ir.Model) -> Remarks:
        remarks, graph = Remarks(), model.graph
        value = graph.outputs[0]
        node = value.producer()
        assert node is not None
        factor = add_initializer(graph, ir.tensor(np.array(1 + self.amount, np.float32), name="factor"))
        scaled = ir.node("Mul", [value, factor], outputs=[ir.Value(name=f"scaled by {factor.name}")])
        graph.append(scaled)
        replace_uses(value, scaled.outputs[0], graph)
        scaled.replace_input_with(0, value)
        value.name = f"before {factor.name}"
        remarks.apply(node, "scaled")
        return remarks


def test_photograph() -> None:
    image = photograph()
    assert image.shape == (256, 216, 3)
    assert image.std() > 40


@pytest.mark.parametrize("name", NETWORKS)
def test_every_pass_of_every_network(name: str) -> None:
    built = lowered(NETWORKS[name])
    applied = Pipeline([passes[each]() for each in ORDER]).run(built, verify=Verifier(feeds_for(built)))
    for item in applied:
        assert (item.error is None) == (item.count == 0)
        assert item.error is None or item.error <= item.tolerance


def test_dropped_bias_is_named() -> None:
    built = lowered()
    order = [passes["fold-batchnorm"](), DropsBias(), passes["eliminate-dead-code"]()]
    with pytest.raises(PassError) as caught:
        Pipeline(order).run(built, verify=Verifier(feeds_for(built)))
    text = str(caught.value)
    assert text.startswith("pass drops-bias: it changed the outputs: layer")
    assert "declared 1.0e-05" in text
    assert text.endswith("hint: --skip drops-bias leaves the pass out")


def test_wrong_block_is_named() -> None:
    """A planted fault: diagonalwise puts each filter into the place of its neighbour."""
    text = (
        "[net]\nwidth=6\nheight=6\nchannels=8\n[convolutional]\nfilters=8\ngroups=8\nsize=3\npad=1\nactivation=leaky\n"
    )

    class WrongBlock(Diagonalwise):
        """diagonalwise with blocks that are off by one."""

        name: ClassVar[str] = "wrong-block"

        def rewrite(self, model: ir.Model) -> Remarks:
            remarks = super().rewrite(model)
            (conv,) = (node for node in model.graph if node.op_type == "Conv")
            tensor = constant_array(conv.inputs[1])
            assert tensor is not None
            shifted = ir.tensor(np.roll(tensor.numpy(), 1, axis=1), name="shifted")
            conv.replace_input_with(1, add_initializer(model.graph, shifted))
            return remarks

    for plugin, fails in ((Diagonalwise, False), (WrongBlock, True)):
        built = lowered(text)
        verifier = Verifier(feeds_for(built))
        if fails:
            with pytest.raises(PassError, match="pass wrong-block: it changed the outputs: layer000 by "):
                Pipeline([plugin(width=4)]).run(built, verify=verifier)
        else:
            assert Pipeline([plugin(width=4)]).run(built, verify=verifier)[0].count == 1


@pytest.mark.parametrize(("amount", "passes_"), [(0.9e-3, True), (1.1e-3, False), (float("nan"), False)])
def test_declared_exactness_is_the_bound(amount: float, passes_: bool) -> None:
    built = model("agraph (float[N,4] input) => (float[N,4] layer000) { layer000 = Sin(input) }")
    verifier = Verifier(feeds_for(built))
    if passes_:
        (item,) = Pipeline([Shifts(amount)]).run(built, verify=verifier)
        assert item.error == pytest.approx(amount, rel=1e-3)
        assert item.to_json()["error"] == item.error
    else:
        with pytest.raises(PassError, match=r"pass shifts: it changed the outputs: layer000 by (1\.1e-03|nan)"):
            Pipeline([Shifts(amount)]).run(built, verify=verifier)


def test_rounding_is_no_fault() -> None:
    """10,000 times the first digits of a difference: the last bit of the input is worth more than is declared."""
    text = "agraph (float[N,4] input) => (float[N,4] layer000) { layer000 = Sub(input, w) }"
    near = feeds_for(model(text.replace(", w", ", input")))["input"].mean()
    built = model(text, w=np.full(4, near, np.float32))
    feeds = {"input": np.full((2, 4), near * (1 + 1e-4), np.float32)}
    verifier = Verifier(feeds)
    (item,) = Pipeline([Shifts(4e-3)]).run(built, verify=verifier)
    assert item.error == pytest.approx(4e-3, rel=1e-2)
    with pytest.raises(PassError, match=r"declared 1\.0e-03, \S+ by rounding"):
        Pipeline([Shifts(0.5)]).run(built, verify=verifier)


def test_what_a_saturated_softmax_hides() -> None:
    text = (
        "agraph (float[N,2] input) => (float[N,2] layer001) { layer000 = Mul(input, w)  layer001 = Softmax(layer000) }"
    )

    class Doubles(Shifts):
        """A planted fault before the softmax."""

        name: ClassVar[str] = "doubles"

        def rewrite(self, model: ir.Model) -> Remarks:
            node = next(iter(model.graph))
            node.replace_input_with(
                1, add_initializer(model.graph, ir.tensor(np.array([2e4, 0], np.float32), name="v"))
            )
            remarks = Remarks()
            remarks.apply(node, "doubled")
            return remarks

    for watch, caught in (((), False), (("layer000",), True)):
        built = model(text, w=np.array([1e4, 0], np.float32))
        verifier = Verifier({"input": np.ones((2, 2), np.float32)}, watch)
        if caught:
            with pytest.raises(PassError, match="pass doubles: it changed the outputs: layer000"):
                Pipeline([Doubles(0)]).run(built, verify=verifier)
        else:
            Pipeline([Doubles(0)]).run(built, verify=verifier)


def test_each_pass_is_compared_with_the_one_before() -> None:
    """Two errors within the bounds are no third one beyond them."""
    built = model("agraph (float[N,4] input) => (float[N,4] layer000) { layer000 = Sin(input) }")
    Pipeline([Shifts(0.8e-3), Shifts(0.8e-3)]).run(built, verify=Verifier(feeds_for(built)))


def test_lost_and_reshaped_outputs() -> None:
    text = "agraph (float[N,4] input) => (float[N,4] a, float[N,4] b) {{ a = Sin(input)  b = {} }}"
    verifier = Verifier(feeds_for(model(text.format("Cos(input)"))))
    verifier.start(model(text.format("Cos(input)")))
    with pytest.raises(PassError, match="output b is gone"):
        verifier.compare(model("agraph (float[N,4] input) => (float[N,4] a) { a = Sin(input) }"), 1.0)
    wider = text.replace("float[N,4] b", "float[N,8] b").format("Concat <axis=1> (input, input)")
    with pytest.raises(PassError, match=r"b was \(2, 4\), is \(2, 8\)"):
        verifier.compare(model(wider), 1.0)


@pytest.mark.parametrize("batch", ["N", 1, 3])
@pytest.mark.parametrize("images", [1, 2])
def test_noise_and_photograph(batch: int | str, images: int) -> None:
    preprocessing = Preprocessing(16, 16)
    feeds = feeds_for(lowered(batch=batch), preprocessing, images=images)
    x = feeds["input"]
    count = batch if isinstance(batch, int) else images
    assert x.shape == (count, 3, 16, 16)
    expected = preprocessing(photograph())
    assert np.array_equal(x[-1, :, :, 8:], expected[:, :, 8:])
    assert np.array_equal(x[-1], expected) == (count > 1)


def test_pixels() -> None:
    preprocessing = Preprocessing(16, 16)
    built = lowered(pixels=True, preprocessing=preprocessing)
    x = feeds_for(built, preprocessing)["input"]
    assert x.dtype == np.uint8
    assert np.array_equal(x[1], photograph())
    Pipeline([passes[each]() for each in ORDER]).run(built, verify=Verifier(feeds_for(built, preprocessing)))


def test_suppressed_in_the_graph() -> None:
    """The maps of the heads are compared as well: a fault in the network does not hide behind the suppression."""
    built = lowered(decode="graph+nms")
    watch = [f"layer{layer.index:03d}" for layer in Network.parse(TINY).outputs]
    with pytest.raises(
        PassError, match=r"pass drops-bias: it changed the outputs: .* (detections before|of its largest value)"
    ):
        Pipeline([passes["fold-batchnorm"](), DropsBias()]).run(built, verify=Verifier(feeds_for(built), watch))


def test_error() -> None:
    one = np.array([1.0, -4.0])
    assert error_between(np.array([1.0, -5.0]), one) == 0.25
    assert error_between(one, one) == 0
    assert error_between(np.array([0.5]), np.zeros(1)) == 0.5
    assert error_between(np.zeros((0, 7)), np.zeros((0, 7))) == 0
    assert np.isnan(error_between(np.array([1.0, np.inf]), one))
    assert error_between(np.array([np.inf, 1.0]), np.array([np.inf, 1.0])) == 0
