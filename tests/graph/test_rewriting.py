"""What holds for every pass: numbers and names stay, a second run changes nothing, and the interface of onnx_ir."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import pytest

from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.errors import PassError
from dnc.graph.rewriting import add_node, constant_array, replace_uses
from dnc.graph.serialization import check
from dnc.passes import Pass, passes
from tests.models import model, ops, outputs, same
from tests.networks import NETWORKS
from tests.thinning import thinned

REDUCED = ("to-bfloat16", "to-float16")
"""Passes that round numbers to 8 or 11 bits: their errors are of that size, not of float32's. A tenth is still far
below what a wrong weight or a lost bias does."""


def _applicable() -> list[str]:
    """Passes that need nothing but a model."""
    found = []
    for name, each in passes.items():
        try:
            each()
        except TypeError:
            continue
        found.append(name)
    return found


def _names(built: ir.Model) -> tuple[list[str | None], list[str | None]]:
    return [value.name for value in built.graph.inputs], [value.name for value in built.graph.outputs]


@pytest.mark.parametrize("batch", thinned(["N", 2]))
@pytest.mark.parametrize("network", thinned(NETWORKS, 2))
@pytest.mark.parametrize("name", _applicable())
def test_alone(name: str, network: str, batch: int | str) -> None:
    """Each pass alone on every network: valid, within its declared tolerance, names kept; the second time, nothing."""
    optimization = passes[name]()
    lowered = lower(Network.parse(NETWORKS[network]).with_random_weights(0), batch=batch)
    before, names = outputs(lowered), _names(lowered)
    count = optimization.rewrite(lowered).count
    check(lowered, name)
    assert _names(lowered) == names
    same(outputs(lowered), before, optimization.tolerance)
    text = str(lowered)
    assert optimization.rewrite(lowered).count == 0
    assert str(lowered) == text
    assert count >= 0


@pytest.mark.parametrize("options", ["keep", "pixels", "graph", "graph+nms"])
@pytest.mark.parametrize("name", _applicable())
def test_other_graphs(name: str, options: str) -> None:
    """With every layer an output, with preprocessing inside, with boxes decoded, with a loop for the suppression."""
    from dnc.runtime.preprocessing import Preprocessing

    network = Network.parse(NETWORKS["tiny" if options == "graph+nms" else "yolo"]).with_random_weights(0)
    _, height, width = network.input_shape
    lowered = lower(
        network,
        layers=range(len(network.layers)) if options == "keep" else (),
        pixels=options == "pixels",
        preprocessing=Preprocessing(width, height, mode="letterbox"),
        decode=options if options.startswith("graph") else "host",
    )
    feeds = {"confidence": np.array([0.5], np.float32), "iou": np.array([0.45], np.float32)}
    given = {value.name: feeds[value.name] for value in lowered.graph.inputs if value.name in feeds}
    before, names = outputs(lowered, given), _names(lowered)
    assert min(output.size for output in before.values()) > 0
    optimization = passes[name]()
    optimization.rewrite(lowered)
    check(lowered, name)
    assert _names(lowered) == names
    after = outputs(lowered, given)
    if options == "graph+nms" and name in REDUCED:
        # Rounding turns the order of boxes with nearly the same score: `dnc.graph.verification` compares their number.
        (found,), (expected,) = after.values(), before.values()
        assert found.shape[1] == expected.shape[1]
        assert abs(len(found) - len(expected)) <= 1 + 0.05 * len(expected)
        return
    same(after, before, optimization.tolerance)


@pytest.mark.parametrize("name", _applicable())
def test_as_a_pass_of_onnx_ir(name: str) -> None:
    """`call` says whether anything changed."""
    lowered = lower(Network.parse(NETWORKS["yolo"]).with_random_weights(0))
    optimization = passes[name]()
    assert isinstance(optimization, Pass)
    result = optimization(lowered)
    assert result.model is lowered
    assert not optimization(lowered).modified


@pytest.mark.parametrize("name", _applicable())
def test_declarations(name: str) -> None:
    each = passes[name]
    assert each.name == name
    # What 8 bits change is no rounding error: the bound only tells what is left of an output from what is not.
    assert 0 <= each.tolerance < (1e-1 if name in REDUCED else 1.1 if name in ("quantize", "correct-bias") else 1e-3)
    assert math.isfinite(each.tolerance)
    assert each.__doc__


@pytest.mark.parametrize("name", passes)
def test_options(name: str) -> None:
    """Their defaults are values; text is parsed, typed values are kept."""
    optimization = passes[name].from_text({option.name: option.default for option in passes[name].known_options})
    assert list(optimization.options) == [option.name for option in passes[name].known_options]
    assert optimization.options == passes[name]().options == passes[name](**optimization.options).options
    with pytest.raises(PassError, match=f"pass {name} has no option 'nonsense'"):
        passes[name].from_text({"nonsense": "1"})


WRONG = {
    "diagonalwise with=8": "pass diagonalwise has no option 'with'\n  hint: did you mean 'width'?",
    "diagonalwise only=8": "pass diagonalwise has no option 'only'\n  hint: it has width",
    "diagonalwise width=1": "option width=1 of pass diagonalwise is not a number from 2 on, or all",
    "grouped-to-dense groups=0": "option groups=0 of pass grouped-to-dense is not a whole number from 1 to 65536",
    "fuse-activation form=opnvino": "option form=opnvino of pass fuse-activation is not one of onnx, onnxruntime, "
    "openvino, myriad\n  hint: did you mean 'openvino'?",
    "quantize keep=36+Sigmoidd": "keep=Sigmoidd: neither a layer nor an operator\n  hint: did you mean 'Sigmoid'?",
    "quantize ranges=x": "pass quantize has no option 'ranges'\n  hint: it has keep",
}


@pytest.mark.parametrize("text", WRONG)
def test_wrong_options(text: str) -> None:
    name, _, option = text.partition(" ")
    key, _, value = option.partition("=")
    with pytest.raises(PassError) as caught:
        passes[name].from_text({key: value})
    assert str(caught.value) == WRONG[text]


def test_options_as_text() -> None:
    assert passes["diagonalwise"].from_text({"width": "all"}).options == {"width": None}
    assert passes["to-float16"].from_text({"keep": "30-36+Add"}).options == {"keep": ["30-36", "Add"]}


@pytest.mark.parametrize(
    ("name", "given"),
    [("diagonalwise", {"width": "8"}), ("grouped-to-dense", {"groups": "2"}), ("quantize", {"keep": "3"}),
     ("to-float16", {"keep": "3"}), ("fuse-activation", {"form": "myriad"}), ("share-convs", {"pixels": "9"})],
)  # fmt: skip
def test_options_that_are_given_anew(name: str, given: dict[str, str]) -> None:
    """A pass keeps nothing of the options that it was made with."""
    changed = passes[name]().configured(given)
    assert vars(changed) == vars(passes[name].from_text(given)) != vars(passes[name]())


UNMET = {
    "diagonalwise": "there is no depthwise convolution",
    "grouped-to-dense": "there is no grouped convolution",
    "quantize": "there is no operator that the target computes with 8 bits",
    "equalize": "there is no pair of convolutions whose channels were calibrated",
    "to-float16": "it comes before all products",
    "fold-batchnorm": "",
    "merge-pools": "",
}


@pytest.mark.parametrize("name", UNMET)
def test_what_was_asked_for_in_vain(name: str) -> None:
    """An optimization may find nothing to do; what is only done because it is asked for may not."""
    optimization = passes[name]()
    assert optimization.unmet(optimization.rewrite(model(ADD, a=np.ones((1, 2))))) == UNMET[name]


def test_what_was_asked_for_and_missed() -> None:
    text = "agraph (float[1,37,9,9] x) => (float[1,37,7,7] y) { y = Conv <group = 37> (x, w) }"
    built = model(text, w=np.ones((37, 1, 3, 3)))
    narrow, whole = passes["diagonalwise"](), passes["diagonalwise"](width=None)
    assert narrow.unmet(narrow.rewrite(built)) == "37 channels have no divisor from 4 to 32"
    assert whole.unmet(whole.rewrite(built)) == ""


ADD = "agraph (float[1,2] x) => (float[1,2] y) { z = Add(x, a)  y = Relu(z) }"


def test_constant_array() -> None:
    built = model(ADD, a=np.ones((1, 2)))
    add, relu = built.graph
    tensor = constant_array(add.inputs[1])
    assert tensor is not None
    assert tensor.numpy().tolist() == [[1, 1]]
    assert constant_array(add.inputs[0]) is None
    assert constant_array(relu.inputs[0]) is None
    assert constant_array(None) is None
    # An initializer that is an input as well may be given another value by whoever runs the model.
    value = add.inputs[1]
    assert value is not None
    built.graph.inputs.append(value)
    assert constant_array(value) is None


@pytest.mark.parametrize(
    ("old", "new", "kept"),
    [("layer001", "Conv_0", "layer001"), ("Mul_0", "layer001", "layer001"), ("layer002", "layer001", "layer001")],
)
def test_replaced_values_keep_the_layer_s_name(old: str, new: str, kept: str) -> None:
    text = f"agraph (float[1,2] x) => (float[1,2] y) {{ {new} = Abs(x)  {old} = Identity({new})  y = Relu({old}) }}"
    built = model(text)
    first, second, _ = built.graph
    replace_uses(second.outputs[0], first.outputs[0], built.graph)
    assert first.outputs[0].name == kept
    relu = next(node for node in built.graph if node.op_type == "Relu")
    assert relu.inputs[0] is first.outputs[0]


def test_replaced_outputs_keep_their_name() -> None:
    built = model("agraph (float[1,2] x) => (float[1,2] y) { layer000 = Abs(x)  y = Identity(layer000) }")
    first, second = built.graph
    replace_uses(second.outputs[0], first.outputs[0], built.graph)
    assert [value.name for value in built.graph.outputs] == ["y"]
    assert built.graph.outputs[0] is first.outputs[0]


def test_inputs_and_initializers_keep_their_name() -> None:
    built = model("agraph (float[1,2] input) => (float[1,2] y) { layer000 = Identity(input)  y = Relu(layer000) }")
    identity = next(iter(built.graph))
    value = identity.inputs[0]
    assert value is not None
    replace_uses(identity.outputs[0], value, built.graph)
    assert value.name == "input"
    assert ops(built) == ["Identity", "Relu"]


def test_new_nodes_have_names_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the graph is not looked through for each of them."""
    built = model("agraph (float[2] x) => (float[2] y) { y = Abs(x) }")
    graph, (last,) = built.graph, built.graph
    looked = 0
    each = ir.Graph.__iter__

    def look(graph: ir.Graph) -> Iterator[ir.Node]:
        nonlocal looked
        looked += 1
        return each(graph)

    monkeypatch.setattr(ir.Graph, "__iter__", look)
    made = [add_node(graph, last, "Neg", [graph.inputs[0]], name="same") for _ in range(50)]
    assert looked == 1
    # Not by add_node, under the name that would be next.
    graph.insert_before(last, ir.node("Neg", [graph.inputs[0]], name="same_50"))
    add_node(graph, last, "Neg", [graph.inputs[0]], name="same")
    graph.remove(made[:3])
    add_node(graph, last, "Neg", [graph.inputs[0]], name="same")
    names = [node.name for node in each(graph)]
    assert len(names) == len(set(names))
