"""Convolutions of signs as bits (option kernels=new): the kernels' source is run on the CPU, and every number is that
of the composite (dnc.graph.binary)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from dnc.typing import Array

pytest.importorskip("tvm.relax", exc_type=ImportError)

from tests.targets.cuda.test_schedules import _compute, pytestmark  # noqa: F401


@dataclass(frozen=True)
class _Form:
    outputs: int
    size: int = 1
    stride: int = 1
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: int = 1


_CHAIN = (
    _Form(64, 3, pads=(1, 1, 1, 1)),
    # Channels that fill no word, and borders of several sides.
    _Form(70, 3, stride=2, pads=(0, 1, 2, 1)),
    _Form(24),
    _Form(33, 3, pads=(2, 2, 2, 2), dilation=2),
    # A few pixels.
    _Form(40, 3, stride=4),
)


def _convolved(x: Array, weights: Array, scale: Array, bias: Array, form: _Form) -> Array:
    """What the composite is to give, step by step in float32."""
    top, left, bottom, right = form.pads
    signs = np.where(x > 0, 1, -1)
    signs = np.pad(signs, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=-1)
    reach, by = (form.size - 1) * form.dilation, form.stride
    high, wide = ((side - reach - 1) // by + 1 for side in signs.shape[2:])
    sums = np.zeros((len(x), form.outputs, high, wide), np.int64)
    for y in range(0, reach + 1, form.dilation):
        for z in range(0, reach + 1, form.dilation):
            taken = signs[:, :, y : y + (high - 1) * by + 1 : by, z : z + (wide - 1) * by + 1 : by]
            tap = weights[:, :, y // form.dilation, z // form.dilation]
            sums += np.einsum("nchw,oc->nohw", taken, np.where(tap > 0, 1, -1))
    product: Array = sums.astype(np.float32) * scale[:, None, None]
    return product + bias[:, None, None]


def _chain(images: int, half: bool) -> tuple[ir.Model, dict[str, Array], Array]:
    """A model of all forms with activations between, its input, and what it gives: with a sum that reads a layer of
    which the signs are read, too; in float16 between the layers, if that is wanted."""
    rng = np.random.default_rng(images)
    x = rng.normal(0, 1, (images, 37, 11, 12)).astype(np.float32)
    x[rng.random(x.shape) < 0.05] = 0
    shape, feeds, lines, last = x.shape, {"x": x}, [], "x"
    given: dict[str, Array] = {}
    for place, form in enumerate(_CHAIN):
        weights = rng.normal(0, 1, (form.outputs, x.shape[1], form.size, form.size))
        # Products that a bias takes to 0 are told from those that it does not.
        scale = (rng.integers(1, 9, form.outputs) / np.float32(3)).astype(np.float32)
        bias = (scale * rng.integers(-9, 9, form.outputs)).astype(np.float32)
        packed = np.packbits(weights.transpose(0, 2, 3, 1) > 0, axis=3, bitorder="little")
        given |= {f"w{place}": packed, f"s{place}": scale, f"b{place}": bias}
        sides = f"pads: ints = {list(form.pads)}, strides: ints = {[form.stride] * 2}"
        sides += f", dilations: ints = {[form.dilation] * 2}"
        y = _convolved(x, weights, scale, bias, form)
        y = np.where(y > 0, y, np.float32(0.1) * y)
        lines.append(f"c{place} = dnc.BinaryConvolution<{sides}>({last}, w{place}, s{place}, b{place})")
        lines.append(f"a{place} = LeakyRelu<alpha: float = 0.1>(c{place})")
        last = f"a{place}"
        if place == 0:
            lines.append("z = Sigmoid(a0) e = Add(a0, z)")
            y, last = y + 1 / (1 + np.exp(-y)), "e"
        if half:
            y = y.astype(np.float16).astype(np.float32)
            lines.append(f"h{place} = Cast<to: int = 10>({last}) f{place} = Cast<to: int = 1>(h{place})")
            last = f"f{place}"
        x = y
    text = f"g (float{list(shape)} x) => (float{list(x.shape)} {last}) {{ {' '.join(lines)} }}"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 14, "dnc": 1]>\n{text}')
    for name, array in given.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.from_proto(proto), feeds, x


def test_chain(tmp_path: Path) -> None:
    """By the tensor cores, three images in float16 between the layers, and by the ordinary units, with several blocks
    for a tile: every number is the same."""
    forms = {"sm_75": "0 1", "sm_90": "7 2 bits"}
    cases = {arch: _chain(images, half) for arch, images, half in (("sm_75", 3, True), ("sm_90", 1, False))}
    for arch, form in forms.items():
        (tmp_path / f"{arch}.arch").write_text(f"{arch} new")
        (tmp_path / f"{arch}.form").write_text(form)
    found = _compute(tmp_path, {a: c[0] for a, c in cases.items()}, {a: c[1] for a, c in cases.items()})
    for arch, (outputs, rules) in found.items():
        np.testing.assert_array_equal(outputs[0], cases[arch][2])
        kind = "bits-product" if "bits" in forms[arch] else "b1-product"
        assert sum(kind in rule for rule in rules.values()) == len(_CHAIN) - 1
        assert sum(rule == "signs" for rule in rules.values()) == len(_CHAIN)
        assert not [rule for rule in rules.values() if "none" in rule]
