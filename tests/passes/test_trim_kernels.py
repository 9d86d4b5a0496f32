"""Zero borders of kernels go, and the padding with them; nothing else does."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.passes import passes
from tests.models import model, outputs, same

Array = npt.NDArray[np.float32]
R = np.random.default_rng(0)


def kernel(size: int, top: int = 0, left: int = 0, bottom: int = 0, right: int = 0, *, dense: int = 3) -> Array:
    """(4, dense, size, size) with zero borders."""
    array = np.zeros((4, dense, size, size), np.float32)
    inner = array[:, :, top : size - bottom, left : size - right]
    inner[...] = R.uniform(0.5, 1, inner.shape) * R.choice([-1, 1], inner.shape)
    return array


def build(weights: Array, sides: tuple[int, int], attributes: str, channels: int = 3, size: int = 9) -> ir.Model:
    text = f"agraph (float[1,{channels},{size},{size}] x) => (float[1,4,{sides[0]},{sides[1]}] y)"
    return model(f"{text} {{ y = Conv <{attributes}> (x, w) }}", w=weights)


def geometry(built: ir.Model) -> tuple[list[int], list[int], list[int]]:
    """The shape of the weights without filters and channels, kernel_shape and pads."""
    (conv,) = built.graph
    assert conv.inputs[1] is not None
    assert conv.inputs[1].shape is not None
    attributes = [list(conv.attributes[name].as_ints()) for name in ("kernel_shape", "pads")]
    return [int(side) for side in conv.inputs[1].shape.numpy()[2:]], attributes[0], attributes[1]


APPLIES = {
    "first row and column": (kernel(4, 1, 1), (10, 10), "pads=[2,2,2,2]", [3, 3], [1, 1, 2, 2]),
    "SAME at stride 2": (kernel(5, 2, 2), (5, 5), "pads=[2,2,2,2], strides=[2,2]", [3, 3], [0, 0, 2, 2]),
    "all around": (kernel(5, 1, 1, 1, 1), (9, 9), "pads=[2,2,2,2]", [3, 3], [1, 1, 1, 1]),
    "rows alone": (kernel(3, bottom=1), (9, 9), "pads=[1,1,1,1]", [2, 3], [1, 1, 0, 1]),
    "columns alone": (kernel(3, left=1), (9, 9), "pads=[1,1,1,1]", [3, 2], [1, 0, 1, 1]),
    "dilation": (kernel(3, top=1), (9, 9), "pads=[2,2,2,2], dilations=[2,2]", [2, 3], [0, 2, 2, 2]),
    "less padding than zeros": (kernel(5, 3, 0), (7, 9), "pads=[1,2,1,2]", [4, 5], [0, 2, 1, 2]),
    "dilation and less padding": (kernel(5, 2), (4, 9), "pads=[3,4,0,4], dilations=[2,2]", [4, 5], [1, 4, 0, 4]),
    "zero everywhere": (kernel(3, 3), (9, 9), "pads=[1,1,1,1]", [2, 2], [0, 0, 1, 1]),
    "without kernel_shape": (kernel(2, 1, 1), (10, 10), "pads=[1,1,1,1]", [1, 1], [0, 0, 1, 1]),
    "depthwise": (kernel(3, 1, dense=1), (9, 9), "pads=[1,1,1,1], group=4", [2, 3], [0, 1, 1, 1]),
}


@pytest.mark.parametrize("name", APPLIES)
def test_applies(name: str) -> None:
    weights, sides, attributes, sizes, pads = APPLIES[name]
    built = build(weights, sides, attributes, channels=4 if weights.shape[1] == 1 else 3)
    before = outputs(built)
    optimization = passes["trim-kernels"]()
    assert optimization.rewrite(built).count == 1
    assert geometry(built) == (sizes, sizes, pads)
    same(outputs(built), before, optimization.tolerance)
    assert optimization.rewrite(built).count == 0


NONZERO = kernel(3, 1)
NONZERO[3, 2, 0, 1] = 1e-30
REFUSES = {
    "no zeros": (kernel(3), (9, 9), "pads=[1,1,1,1]", []),
    "one number": (NONZERO, (9, 9), "pads=[1,1,1,1]", []),
    "a single tap": (kernel(1, 1), (9, 9), "pads=[0,0,0,0]", []),
    "no padding": (kernel(3, 1), (7, 7), "pads=[0,0,0,0]", ["no padding that would shrink with its zeros"]),
    "auto_pad": (kernel(3, 1), (9, 9), 'auto_pad="SAME_UPPER"', ["the engine chooses its padding"]),
}


@pytest.mark.parametrize("name", REFUSES)
def test_refuses(name: str) -> None:
    weights, sides, attributes, reasons = REFUSES[name]
    built = build(weights, sides, attributes)
    before = outputs(built)
    remarks = passes["trim-kernels"]().rewrite(built)
    assert remarks.count == 0
    assert [remark.text for remark in remarks.missed] == reasons
    same(outputs(built), before, 0)


def test_refuses_weights_that_are_no_constant() -> None:
    text = "agraph (float[1,3,9,9] x) => (float[1,4,9,9] y) { n = Neg(w)  y = Conv <pads=[1,1,1,1]> (x, n) }"
    remarks = passes["trim-kernels"]().rewrite(model(text, w=kernel(3, 1)))
    assert [remark.text for remark in remarks.missed] == ["its weights are no constant"]


def network(zeros: int) -> Network:
    """One normalized convolution of 5 x 5 whose first rows and columns are zero."""
    options = "batch_normalize=1\nfilters=4\nsize=5\npad=1\nstride=2\n"
    text = f"[net]\nwidth=9\nheight=8\nchannels=3\n[convolutional]\n{options}"
    parsed = Network.parse(text).with_random_weights(0)
    (arrays,) = parsed.arrays
    weights = arrays["weights"].copy()
    weights[:, :, :zeros], weights[:, :, :, :zeros] = 0, 0
    return parsed.with_arrays(({**arrays, "weights": weights},))


def test_comes_before_folding_and_holds_no_copy() -> None:
    """Weights that another pass computes are not computed to look at them; its own are computed when they are read."""
    built = lower(network(2))
    before = outputs(built)
    passes["trim-kernels"]().rewrite(built)
    (weights,) = (value.const_value for name, value in built.graph.initializers.items() if name.endswith(".trimmed"))
    assert isinstance(weights, ir.LazyTensor)
    assert weights.numpy().shape == (4, 3, 3, 3)
    assert weights.numpy() is not weights.numpy()
    passes["fold-batchnorm"]().rewrite(built)
    same(outputs(built), before, 1e-5)
    folded = lower(network(2))
    passes["fold-batchnorm"]().rewrite(folded)
    remarks = passes["trim-kernels"]().rewrite(folded)
    assert (remarks.count, [text for _, text in remarks.missed]) == (0, ["its weights are computed by an earlier pass"])


def test_stops_at_the_first_filter_that_is_not_zero() -> None:
    """Of most kernels little is read: here the rest of the array must not even be looked at."""

    class Watched(np.ndarray):
        seen: list[int] = []

        def __array_function__(self, func, types, args, kwargs):  # type: ignore[no-untyped-def]
            Watched.seen.append(args[0].size)
            plain = tuple(each.view(np.ndarray) if isinstance(each, Watched) else each for each in args)
            result = func(*plain, **kwargs)
            return result.view(Watched) if isinstance(result, np.ndarray) else result

    built = build(kernel(3), (9, 9), "pads=[1,1,1,1]")
    (conv,) = built.graph
    assert conv.inputs[1] is not None
    conv.inputs[1].const_value = ir.Tensor(kernel(3).view(Watched), name="w")
    passes["trim-kernels"]().rewrite(built)
    looked = [size for size in Watched.seen if size < 108]
    assert looked
    assert max(looked) == 9


def test_weights_read_twice_stay_for_the_other() -> None:
    text = "agraph (float[1,3,9,9] x) => (float[1,4,9,9] y, float[1,4,7,7] z)"
    built = model(f"{text} {{ y = Conv <pads=[1,1,1,1]> (x, w)  z = Conv(x, w) }}", w=kernel(3, 1))
    before = outputs(built)
    assert passes["trim-kernels"]().rewrite(built).count == 1
    same(outputs(built), before, 1e-6)


@settings(max_examples=40)
@given(
    size=st.integers(1, 6),
    zeros=st.tuples(*[st.integers(0, 3)] * 4),
    pads=st.tuples(*[st.integers(0, 4)] * 4),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
)
def test_random_geometry(size: int, zeros: tuple[int, ...], pads: tuple[int, ...], stride: int, dilation: int) -> None:
    top, left, bottom, right = zeros
    sides = [(9 + pads[i] + pads[i + 2] - dilation * (size - 1) - 1) // stride + 1 for i in (0, 1)]
    assume(min(sides) > 0)
    weights = kernel(size, min(top, size), min(left, size), min(bottom, size - min(top, size)), 0)
    if right:
        weights[:, :, :, size - min(right, size) :] = 0
    attributes = f"pads=[{','.join(map(str, pads))}], strides=[{stride},{stride}], dilations=[{dilation},{dilation}]"
    built = build(weights, (sides[0], sides[1]), attributes)
    before = outputs(built)
    optimization = passes["trim-kernels"]()
    optimization.rewrite(built)
    same(outputs(built), before, optimization.tolerance)
    assert optimization.rewrite(built).count == 0
