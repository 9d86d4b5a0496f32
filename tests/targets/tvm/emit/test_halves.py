"""precision=bf16: convolutions of numbers that are rounded to bfloat16, with sums in float32; constants of 16 bits."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.passes.shared.reduced_precision import layer_of
from dnc.targets.tvm.emit.halves import convolutions
from dnc.typing import Array
from tests import models

pytest.importorskip("tvm.relax", exc_type=ImportError)

from tests.targets.tvm.emit.test_integers import FORMS, compute, convolved

TOLERANCE = 1e-5
"""Of the largest number: rounding of sums in float32, in another order. Products of bfloat16 are exact."""


def half(x: Array) -> Array:
    return x.astype(ml_dtypes.bfloat16).astype(np.float64)


EVEN = [name for name, (shape, *_) in FORMS.items() if shape[1] % 2 == 0]


@pytest.mark.parametrize(
    ("form", "mcpu"), [*((name, "host") for name in EVEN), ("3x3", "x86-64-v3"), ("uneven", "x86-64-v3")]
)
def test_convolution(form: str, mcpu: str) -> None:
    """With the processor's instruction and without, which is the same arithmetic."""
    shape, pads, strides, dilations = FORMS[form]
    generator = np.random.default_rng(0)
    x = generator.standard_normal((2, shape[1], 9, 11)).astype(np.float32)
    w = generator.standard_normal(shape).astype(np.float32)
    bias = generator.standard_normal(shape[0]).astype(np.float32)
    sides = f"pads: ints = {list(pads)}, strides: ints = {list(strides)}, dilations: ints = {list(dilations)}"
    built = models.model(
        f"g (float[2, {shape[1]}, 9, 11] x) => (float[N, O, H, W] y, float[N, I, K, L] z) "
        f"{{ r = Relu(x) c = Conv<{sides}>(r, w, b) y = Neg(c) z = Conv(c, v) }}",
        w=w,
        v=generator.standard_normal((2, shape[0], 1, 1)).astype(np.float32),
        b=bias,
    )
    (found, head), _ = compute(built, x, mcpu=mcpu, bfloat16=True)
    wanted = -convolved(half(np.maximum(x, 0)), half(w), pads, strides, dilations) - bias[:, None, None]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE * np.abs(wanted).max())
    # The last one is not rounded.
    last = models.run(built, {"x": x})["z"]
    assert 1e-4 < np.abs(head - last).max() / np.abs(last).max() < 2e-2


def test_rounding() -> None:
    """To even, from the smallest to the largest numbers; a convolution with 1 shows what it reads."""
    bits = np.arange(0, 1 << 32, 65521).astype(np.uint32)
    x = bits[: len(bits) // 2 * 2].view(np.float32)
    x = x[np.isfinite(x) & ((np.abs(x) > 1e-37) | (x == 0)) & (np.abs(x) < 3.38e38)][: 1 << 15]
    built = models.model(
        f"g (float[1, 2, {len(x) // 2}, 1] x) => (float[1, 2, H, 1] y, float[1, 2, H, 1] z) "
        "{ r = Mul(x, one) y = Conv(r, w) z = Conv(y, w) }",
        one=np.ones(1, np.float32),
        w=np.eye(2, dtype=np.float32).reshape(2, 2, 1, 1),
    )
    given = x.reshape(1, 2, -1, 1)
    (found, _), _ = compute(built, given, bfloat16=True)
    np.testing.assert_array_equal(found, half(given))


def test_which_convolutions() -> None:
    """Of all channels, an even number of them, of more than a pixel, and before the last one."""
    built = models.model(
        "g (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y) { a = Conv(x, w) b = Conv<group: int = 4>(a, d) "
        "c = Conv(b, v) p = GlobalAveragePool(c) s = Conv(p, v) m = Mul(c, s) y = Conv(m, v) }",
        w=np.ones((4, 3, 1, 1), np.float32),
        d=np.ones((4, 1, 1, 1), np.float32),
        v=np.ones((4, 4, 1, 1), np.float32),
    )
    assert [node.outputs[0].name for node in convolutions(built.graph)] == ["c"]


def test_before_signs() -> None:
    """What the signs of a binary convolution hang on is not rounded."""
    sections = "".join(
        f"[convolutional]\nfilters=8\nsize=3\npad=1\nactivation=relu\nxnor={xnor}\n" for xnor in (0, 0, 1, 0, 0)
    )
    network = Network.parse(f"[net]\nwidth=8\nheight=8\nchannels=4\n{sections}").with_random_weights()
    found = [layer_of(node) for node in convolutions(lower(network).graph)]
    assert found == [3]


def test_constants_alone() -> None:
    """Real numbers between which truths choose have as many bits as they say, and what is computed of them too."""
    x = np.random.default_rng(0).normal(0, 1, (1, 2, 5, 5)).astype(np.float32)
    w = np.array([1, -1, -1, 1], np.float16).reshape(2, 2, 1, 1)
    built = models.model(
        "g (float[1, 2, 5, 5] x) => (float16[1, 2, 5, 5] y) "
        "{ t = Greater(x, zero) s = Where(t, one, minus) y = Conv(s, w) }",
        zero=np.array(0, np.float32),
        one=np.array(1, np.float16),
        minus=np.array(-1, np.float16),
        w=w,
    )
    (y,), _ = compute(built, x)
    assert y.dtype == np.float16
    assert np.array_equal(y, np.einsum("nchw,oc->nohw", np.where(x > 0, 1, -1), w[:, :, 0, 0]))
