"""The graph that is compiled computes the network on bytes; what the compiler refuses is found before."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from dnc.graph.serialization import check
from dnc.runtime.preprocessing import Preprocessing
from dnc.runtime.runners.myriad.pixels import Pixels
from dnc.targets.myriad.graph import halve, pixels_for, prepare, tensors, unsupported
from tests.models import model, ops, run

HALF = 2e-3
"""float16 weights of a layer or two: each is rounded by up to 2^-11 = 4.9e-4 of itself."""

IMAGE = "agraph (float[1,3,6,6] input) => (float[1,4,6,6] y)"
GENERATOR = np.random.default_rng(5)
WEIGHTS = GENERATOR.normal(0, 0.5, (4, 3, 3, 3)).astype(np.float32)
BIASES = GENERATOR.normal(0, 0.5, 4).astype(np.float32)
CONV = "y = Conv<pads=[1,1,1,1]>(input, w, b)"


def error(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    """Relative to the largest."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def prepared(built: ir.Model, pixels: Pixels | None = None) -> ir.Model:
    """Prepared, and checked as the pipeline would."""
    ready = prepare(built, pixels)
    check(ready, "prepare")
    return ready


@pytest.mark.parametrize("color", ["rgb", "bgr"])
@pytest.mark.parametrize("wanted", ["rgb", "bgr"])
@pytest.mark.parametrize(
    "preprocessing",
    [
        {},
        {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)},
        {"std": (0.2, 0.3, 0.25)},
        {"mean": (0.5,), "std": (0.5,)},
    ],
)
def test_bytes(color: str, wanted: str, preprocessing: dict[str, tuple[float, ...]]) -> None:
    """On bytes in the camera's order the prepared model gives what the network gives on its own input."""
    built = model(f"{IMAGE} {{ {CONV} }}", w=WEIGHTS, b=BIASES)
    pixels = pixels_for(Preprocessing(6, 6, color=wanted, **preprocessing), color)  # type: ignore[arg-type]
    image = GENERATOR.integers(0, 256, (1, 3, 6, 6)).astype(np.float32)
    ready = prepared(built, pixels)
    found = run(ready, {"input": image})["y"]
    expected = run(built, {"input": pixels.input_of(image)})["y"]
    assert error(found, expected) < HALF
    # A plain scale is in the weights; a mean cannot be, because the border is not shifted.
    plain = "mean" not in preprocessing
    assert ops(ready) == ["Cast", "Cast", *([] if plain else ["Mul", "Add"]), "Conv"]


def test_pixels() -> None:
    """What the network's preprocessing gives of a picture, turned into bytes, is the picture."""
    picture = GENERATOR.integers(0, 256, (6, 6, 3), np.uint8)
    for preprocessing in (
        Preprocessing(6, 6),
        Preprocessing(6, 6, color="bgr", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)),
    ):
        x = preprocessing(picture)[None]
        for color, order in (("rgb", [0, 1, 2]), ("bgr", [2, 1, 0])):
            pixels = pixels_for(preprocessing, color)
            image = pixels.bytes_of(x)
            assert np.array_equal(image[0], picture.transpose(2, 0, 1)[order])
            np.testing.assert_allclose(pixels.input_of(image), x, atol=1e-6, err_msg="float32's last digit")


def test_gray_and_alpha() -> None:
    assert pixels_for(Preprocessing(6, 6, 1, color="gray"), "bgr").order == (0,)
    assert pixels_for(Preprocessing(6, 6, 4), "bgr").order == (2, 1, 0, 3)


def test_bytes_of_a_network_that_reads_its_input_twice() -> None:
    """Where it is not convolutions alone that read the image, its channels are put in order first."""
    body = "a = Conv<pads=[1,1,1,1]>(input, w, b)\n m = ReduceMean<axes=[1]>(input)\n y = Add(a, m)"
    built = model(f"{IMAGE} {{ {body} }}", w=WEIGHTS, b=BIASES)
    pixels = pixels_for(Preprocessing(6, 6), "bgr")
    image = GENERATOR.integers(0, 256, (1, 3, 6, 6)).astype(np.float32)
    ready = prepared(built, pixels)
    assert "Gather" in ops(ready)
    assert error(run(ready, {"input": image})["y"], run(built, {"input": pixels.input_of(image)})["y"]) < HALF


def test_the_model_stays_as_it_is() -> None:
    built = model(f"{IMAGE} {{ {CONV} }}", w=WEIGHTS, b=BIASES)
    before = str(built)
    prepare(built, pixels_for(Preprocessing(6, 6), "bgr"))
    assert str(built) == before


def test_halve() -> None:
    """To the nearest; below 2^-14 there is nothing but 0 and 2^-14."""
    tiny = 2.0**-14
    given = np.array([1 + 2**-12, -1, tiny, tiny * 0.6, tiny * 0.4, -tiny * 0.6, 0, 65504, 1e6], np.float32)
    assert halve(given).dtype == np.float16
    assert halve(given).tolist() == [1, -1, tiny, tiny, 0, -tiny, 0, 65504, np.inf]


def test_weights_are_stored_in_float16() -> None:
    """Once each, however many read them; other constants stay."""
    built = model(
        f"{IMAGE} {{ a = Conv<pads=[1,1,1,1]>(input, w, b)\n c = Conv<pads=[1,1,1,1]>(input, w, b)\n"
        "d = Mul(c, k)\n y = Add(a, d) }",
        w=WEIGHTS, b=BIASES, k=np.full((1, 4, 1, 1), 0.1),
    )  # fmt: skip
    ready = prepared(built)
    kinds = {name: value.dtype for name, value in ready.graph.initializers.items()}
    assert kinds == {"w.half": ir.DataType.FLOAT16, "b.half": ir.DataType.FLOAT16, "k": ir.DataType.FLOAT}
    x = GENERATOR.normal(0, 1, (1, 3, 6, 6)).astype(np.float32)
    assert error(run(ready, {"input": x})["y"], run(built, {"input": x})["y"]) < HALF


def test_rounding_of_activations_is_left_out() -> None:
    built = model(
        "agraph (float[1,3,6,6] input) => (float[1,3,6,6] y)"
        "{ a = Relu(input)\n q = QuantizeLinear(a, s, z)\n d = DequantizeLinear(q, s, z)\n y = Neg(d) }",
        s=np.float32(0.5), z=np.uint8(0),
    )  # fmt: skip
    assert unsupported(built) == []
    assert ops(prepared(built)) == ["Relu", "Neg"]


@pytest.mark.parametrize(
    ("numbers", "operator"),
    [
        ((0, 2, 1), "Split"),
        ((1, 3, 1), "Split"),
        ((2, 100, 1), "Split"),
        ((-3, -1, 1), "Split"),
        ((0, 4, 1), "Slice"),
        ((0, 1, 0), "Slice"),
    ],
)
def test_slices(numbers: tuple[int, int, int], operator: str) -> None:
    """Written as Split where they are a part along one axis that is not the batch's."""
    start, stop, axis = ([number] for number in numbers)
    built = model(
        "agraph (float[1,4,6,6] input) => (float[?,?,6,6] y) { y = Slice(input, a, b, c) }".replace(
            "[?,?", f"[1,{len(range(4)[slice(numbers[0], numbers[1])]) if axis[0] else 4}"
        ),
        a=np.array(start), b=np.array(stop), c=np.array(axis),
    )  # fmt: skip
    ready = prepared(built)
    assert ops(ready) == [operator]
    x = GENERATOR.normal(0, 1, (1, 4, 6, 6)).astype(np.float32)
    assert np.array_equal(run(ready, {"input": x})["y"], run(built, {"input": x})["y"])


@pytest.mark.parametrize("counted", [0, 1])
@pytest.mark.parametrize(
    ("kernel", "stride", "pads", "side"), [(3, 1, "1,1,1,1", 6), (3, 2, "1,1,1,1", 3), (2, 2, "0,0,1,1", 3)]
)
def test_padded_averages(counted: int, kernel: int, stride: int, pads: str, side: int) -> None:
    attributes = f"kernel_shape=[{kernel},{kernel}],strides=[{stride},{stride}],pads=[{pads}]"
    built = model(
        f"agraph (float[1,4,6,5] input) => (float[1,4,{side},{5 if stride == 1 else 3}] y)"
        f"{{ y = AveragePool<{attributes},count_include_pad={counted}>(input) }}"
    )
    assert unsupported(built) == []
    ready = prepared(built)
    assert "AveragePool" not in ops(ready)
    x = GENERATOR.normal(0, 1, (1, 4, 6, 5)).astype(np.float32)
    assert error(run(ready, {"input": x})["y"], run(built, {"input": x})["y"]) < HALF


def test_outputs_that_are_the_same() -> None:
    """The blob has one tensor for them, under the first one's name."""
    built = model(
        "agraph (float[1,3,6,6] input) => (float[1,3,6,6] a, float[1,3,6,6] b, float[1,3,6,6] c)"
        "{ a = Relu(input)\n b = Identity(a)\n d = Neg(input)\n c = Identity(d) }"
    )
    assert tensors(built) == {"a": "a", "b": "a", "c": "c"}


@pytest.mark.parametrize(
    ("body", "constants", "what"),
    [
        ("y = Selu(input)", {}, "Selu: the pass fuse-activation writes it as Elu"),
        ("y = HardSigmoid(input)", {}, "HardSigmoid: the pass fuse-activation writes it as Clip"),
        ("y = Sin(input)", {}, "Sin: the compiler does not know it"),
        ("y = CumSum(input, k)", {"k": np.array(1)}, "CumSum: write it as a product with a triangular matrix"),
        ("a = Cast<to=2>(input)\n y = Cast<to=1>(a)", {}, "Cast: a cast to UINT8 is unknown"),
        (
            "a = GlobalAveragePool(input)\n w = Reshape(a, k)\n b = Conv(input, w)\n y = Mul(input, b)",
            {"k": np.array([1, 3, 1, 1])},
            "Conv: its weights are computed",
        ),
        ("y = Resize<mode=\"cubic\">(input, , k)", {"k": np.ones(4, np.float32)}, "Resize: mode cubic is unknown"),
    ],
)  # fmt: skip
def test_unsupported(body: str, constants: dict[str, npt.NDArray[np.generic]], what: str) -> None:
    built = model(f"agraph (float[1,3,6,6] input) => (float[1,3,6,6] y) {{ {body} }}", **constants)
    (found,) = unsupported(built)
    assert what in found


def test_everything_is_found_at_once() -> None:
    built = model("agraph (float[N,3,6,6] input) => (float[N,3,6,6] y) { a = Selu(input)\n b = Sin(a)\n y = Sin(b) }")
    for node, place in zip(built.graph, ("a.cfg:3 [x] #0", "a.cfg:5 [y] #1", "a.cfg:7 [y] #2"), strict=True):
        node.metadata_props["dnc.where"] = place
    found = unsupported(built)
    assert [line.partition(": ")[0] for line in found] == [
        "input input",
        "a.cfg:3 [x] #0",
        "a.cfg:5 [y] #1",
        "a.cfg:7 [y] #2",
    ]


def test_one_image() -> None:
    built = model("agraph (float[2,3,6,6] input) => (float[2,3,6,6] y) { y = Relu(input) }")
    assert unsupported(built) == ["the blob would take one image whatever the batch is: leave --batch out"]
