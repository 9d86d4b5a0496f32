"""The kernels' numbers: their source is run on the CPU (emulation.py) and compared with ONNX Runtime."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.graph.serialization import serialize_to
from dnc.passes import passes
from dnc.targets.cuda.process import cuda_runtime
from dnc.targets.cuda.target import Cuda
from dnc.targets.tvm.emit import unsupported
from tests import ROOT
from tests.models import model, run
from tests.networks import NETWORKS
from tests.targets.cuda.emulation import make_driver
from tests.thinning import thinned

pytestmark = [
    pytest.mark.skipif(cuda_runtime() is None, reason="needs apache-tvm"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]

Arrays = Mapping[str, npt.NDArray[Any]]
_ROOT = ROOT


def _compute(folder: Path, models: Mapping[str, ir.Model], feeds: Mapping[str, Arrays]) -> dict[str, tuple[Any, Any]]:
    """For each model its outputs in order, and the rules that wrote its functions."""
    make_driver(folder)
    for name, built in models.items():
        serialize_to(built, folder / f"{name}.onnx")
        np.savez(folder / f"{name}.npz", **feeds[name])  # type: ignore[arg-type]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    command = [sys.executable, "-m", "tests.targets.cuda.worker", str(folder)]
    done = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, tuple[Any, Any]] = {}
    for name in models:
        arrays = np.load(folder / f"{name}.out.npz")
        found[name] = (
            [arrays[f"arr_{place}"] for place in range(len(arrays))],
            json.loads((folder / f"{name}.json").read_text()),
        )
    return found


def _weights(rng: np.random.Generator, *shape: int) -> npt.NDArray[np.float32]:
    weights: npt.NDArray[np.float32] = (rng.normal(0, 1, shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
    return weights


def _convolution(
    inputs: int,
    outputs: int,
    *,
    size: int = 1,
    stride: int = 1,
    pad: int = 0,
    dilation: int = 1,
    groups: int = 1,
    side: int = 9,
    images: int = 1,
) -> ir.Model:
    """A convolution with a bias and a leaky activation, of a map that is one column wider than high."""
    rng = np.random.default_rng(size * 100 + inputs)
    attributes = (
        f"group: int = {groups}, strides: ints = [{stride}, {stride}], pads: ints = [{pad}, {pad}, {pad}, {pad}], "
        f"dilations: ints = [{dilation}, {dilation}]"
    )
    high, wide = ((each + 2 * pad - dilation * (size - 1) - 1) // stride + 1 for each in (side, side + 1))
    return model(
        f"g (float[{images}, {inputs}, {side}, {side + 1}] x) => (float[{images}, {outputs}, {high}, {wide}] y) "
        f"{{ c = Conv <{attributes}> (x, w, b) y = LeakyRelu <alpha: float = 0.1> (c) }}",
        w=_weights(rng, outputs, inputs // groups, size, size),
        b=rng.normal(0, 1, outputs).astype(np.float32),
    )


_CONVOLUTIONS: dict[str, tuple[str, dict[str, int]]] = {
    # By name: the rule that is to write it, and what it is.
    "pointwise": ("product", {"inputs": 32, "outputs": 24}),
    "plain": ("product", {"inputs": 16, "outputs": 40, "size": 3, "pad": 1}),
    "first": ("product", {"inputs": 3, "outputs": 16, "size": 3, "pad": 1, "stride": 2, "side": 31}),
    "odd": ("product", {"inputs": 5, "outputs": 7, "size": 3}),
    "dilated": ("product", {"inputs": 8, "outputs": 20, "size": 3, "pad": 2, "dilation": 2}),
    "grouped": ("product", {"inputs": 24, "outputs": 48, "size": 3, "pad": 1, "groups": 3}),
    "strided": ("product", {"inputs": 12, "outputs": 255, "stride": 2}),
    "deep": ("product", {"inputs": 200, "outputs": 130, "side": 20}),
    "few": ("reduction", {"inputs": 40, "outputs": 33, "size": 3, "stride": 2, "pad": 1, "side": 3}),
    "depthwise": ("depthwise", {"inputs": 32, "outputs": 32, "size": 3, "pad": 1, "groups": 32}),
    "depthwise5": ("depthwise", {"inputs": 12, "outputs": 12, "size": 5, "pad": 2, "stride": 2, "groups": 12}),
    "depthwise9": ("depthwise", {"inputs": 6, "outputs": 6, "size": 9, "pad": 4, "groups": 6}),
    "multiplied": ("depthwise", {"inputs": 6, "outputs": 12, "size": 3, "pad": 1, "groups": 6}),
    "tall": ("depthwise", {"inputs": 64, "outputs": 64, "size": 3, "pad": 1, "groups": 64, "side": 160}),
}


def _compare(folder: Path, models: Mapping[str, ir.Model], tolerance: float) -> dict[str, list[str]]:
    """Computes and compares all; gives the rules of each model's functions."""
    rng = np.random.default_rng(7)
    feeds = {}
    for name, built in models.items():
        shapes = {value.name or "": tuple(value.shape or ()) for value in built.graph.inputs}
        feeds[name] = {key: rng.normal(0, 1, shape).astype(np.float32) for key, shape in shapes.items()}  # type: ignore[arg-type]
    rules = {}
    for name, (outputs, written) in _compute(folder, models, feeds).items():
        expected = run(models[name], feeds[name])
        for output, (key, wanted) in zip(outputs, expected.items(), strict=True):
            bound = tolerance * float(np.abs(wanted).max())
            np.testing.assert_allclose(output, wanted, rtol=0, atol=bound, err_msg=f"{name} {key}")
        rules[name] = list(written.values())
    return rules


def test_some(tmp_path: Path) -> None:
    """Each rule once, in one network; sums of up to 144 products in another order."""
    rng = np.random.default_rng(0)
    built = model(
        "g (float[1, 16, 12, 10] x) => (float[1, 20, 1, 1] y) { "
        "a = Conv <pads: ints = [1, 1, 1, 1]> (x, w) r = Relu(a) "
        "d = Conv <group: int = 16, pads: ints = [1, 1, 1, 1]> (r, k) "
        "p = MaxPool <kernel_shape: ints = [2, 2], strides: ints = [2, 2]> (d) "
        "m = GlobalAveragePool(p) f = Conv(m, v) s = Sigmoid(f) y = Concat <axis: int = 1> (s, m) }",
        w=_weights(rng, 16, 16, 3, 3),
        k=_weights(rng, 16, 1, 3, 3),
        v=_weights(rng, 4, 16, 1, 1),
    )
    rules = _compare(tmp_path, {"some": built}, 1e-6)["some"]
    written = {rule for each in rules for rule in each.split("+")}
    assert written == {"product", "depthwise", "pool", "reduction", "injective"}


@pytest.mark.slow
def test_convolutions(tmp_path: Path) -> None:
    """Every kind in float32, with tiles that are not full on either side."""
    models = {name: _convolution(**dims) for name, (_, dims) in _CONVOLUTIONS.items()}
    # float32's 6e-8 for each of up to 2000 terms, which add up at random.
    rules = _compare(tmp_path, models, 3e-6)
    for name, (rule, _) in _CONVOLUTIONS.items():
        assert any(each.startswith(rule) for each in rules[name]), (name, rules[name])
        assert not any("none" in each for each in rules[name])


@pytest.mark.slow
def test_convolutions_in_float16(tmp_path: Path) -> None:
    """The same on tensor cores, against the same float16 graph rounded after every operator."""
    models = {}
    for name, (_, dims) in _CONVOLUTIONS.items():
        models[name] = _convolution(**dims)
        for each in ("to-float16", "eliminate-dead-code"):
            passes[each]().rewrite(models[name])
    # Two roundings to 2^-11, before and after the bias.
    rules = _compare(tmp_path, models, 1.5e-3)
    for name, (rule, dims) in _CONVOLUTIONS.items():
        wanted = "tensor-product" if rule == "product" and dims["outputs"] // dims.get("groups", 1) >= 8 else rule
        assert any(each.startswith(wanted) for each in rules[name]), (name, rules[name])


def test_ranks() -> None:
    """Forms of single functions, and of one by itself, differ; a rank beyond the last is the last."""
    import tvm
    from tvm_ffi import structural_hash

    from dnc.runtime.runners.cuda.device import Device
    from dnc.targets.cuda import schedules
    from dnc.targets.tvm.compile import fused
    from dnc.targets.tvm.emit import emit

    device = Device.of(["sm_75"])
    for each, shape in (("pointwise", {"side": 40}), ("depthwise", {})):
        built = _convolution(**{**_CONVOLUTIONS[each][1], **shape})
        with tvm.target.Target({"kind": "cuda", "arch": "sm_75"}), tvm.transform.PassContext(opt_level=3):
            module = fused(emit(built))
            (name,) = [
                name
                for name, rule in schedules.report(schedules.apply(module, device)).items()
                if "+" not in rule and rule.startswith(("product", "depthwise"))
            ]
            alone = [structural_hash(schedules.scheduled(module, name, device, rank)) for rank in (0, 1, 2, 998, 999)]
            within = [
                structural_hash(schedules.apply(module, device, {name: rank})[name]) for rank in (0, 1, 2, 998, 999)
            ]
        assert alone == within
        assert len(set(alone)) == 4
        assert alone[-1] == alone[-2]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "tf32"])
def test_every_tile(precision: str, tmp_path: Path) -> None:
    """With one block for a tile and with several, copied and by way of registers, in steps of one place and of more."""
    from dnc.targets.cuda.schedules import tensors, tiled

    models = {}
    tiles = {"fp32": tiled.SCALAR_TILES, "fp16": tensors._TILES, "tf32": tensors._TF32_TILES}[precision]
    copying, other = ("sm_90 tf32", "sm_80 tf32") if precision == "tf32" else ("sm_90", "sm_75")
    for number in range(len(tiles)):
        for parts, arch, inputs in ((1 + number % 4, copying, 64), (1 + (number + 1) % 2, other, 24)):
            name = f"{number}-{arch[:5]}"
            models[name] = _convolution(inputs, 72, size=3, pad=1, side=12)
            for each in ("to-float16", "eliminate-dead-code") if precision == "fp16" else ():
                passes[each]().rewrite(models[name])
            (tmp_path / f"{name}.form").write_text(f"{number} {parts}")
            (tmp_path / f"{name}.arch").write_text(arch)
    # As in the tests above; TF32 rounds both factors of each of 600 products to 2^-11, at random.
    rules = _compare(tmp_path, models, {"fp32": 3e-6, "fp16": 1.5e-3, "tf32": 5e-4}[precision])
    rule = {"fp32": "product", "fp16": "tensor-product", "tf32": "tf32-product"}[precision]
    assert all(rule in each for each in rules.values())


_HARD: dict[str, dict[str, int]] = {
    "pointwise": {"inputs": 64, "outputs": 72, "side": 13},
    "taps": {"inputs": 64, "outputs": 40, "size": 3, "pad": 1, "side": 11},
    "between_taps": {"inputs": 40, "outputs": 136, "size": 3, "pad": 1, "stride": 2, "side": 17},
    "fours": {"inputs": 12, "outputs": 33, "size": 3, "pad": 1},
    "twos": {"inputs": 18, "outputs": 20, "size": 5, "pad": 2, "stride": 2, "side": 13},
    "dilated": {"inputs": 16, "outputs": 24, "size": 3, "pad": 2, "dilation": 2},
    "grouped": {"inputs": 48, "outputs": 72, "size": 3, "pad": 1, "groups": 3},
    "far_out": {"inputs": 8, "outputs": 16, "size": 7, "pad": 6, "stride": 3},
    "no_border": {"inputs": 24, "outputs": 255, "size": 3, "side": 8},
    "short": {"inputs": 8, "outputs": 16},
    "first": {"inputs": 3, "outputs": 16, "size": 3, "pad": 1, "stride": 2, "side": 31},
    "images": {"inputs": 32, "outputs": 48, "size": 3, "pad": 1, "images": 3, "side": 7},
}
"""Convolutions of which something does not come out even."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mma", "wgmma"])
def test_by_instructions(kind: str, tmp_path: Path) -> None:
    """Every tile with one block for it or with several, each for another convolution, by mma.sync and by wgmma."""
    from dnc.runtime.runners.cuda.device import Device
    from dnc.targets.cuda.schedules import mma
    from dnc.targets.cuda.schedules.warpgroups import WGMMA_TILES

    models = {}
    tiles = {"mma": mma.MMA_TILES, "wgmma": WGMMA_TILES}[kind]
    for number in range(max(len(tiles), len(_HARD))):
        tile, parts = number % len(tiles), 1 + number % 3
        archs = [
            arch
            for arch in ("sm_80", "sm_86", "sm_90")
            if kind == "mma" and mma._stages(tiles[tile], Device.of([arch])) is not None
        ]
        arch = archs[number // 3 % len(archs)] if archs else "sm_90"
        each = list(_HARD)[(number + parts) % len(_HARD)]
        name = f"{number}-{parts}-{each}"
        models[name] = _convolution(**_HARD[each])
        for rewriting in ("to-float16", "eliminate-dead-code"):
            passes[rewriting]().rewrite(models[name])
        (tmp_path / f"{name}.form").write_text(f"{tile} {parts} {kind}")
        (tmp_path / f"{name}.arch").write_text(f"{arch} new")
    # Two roundings to 2^-11, before and after the bias.
    rules = _compare(tmp_path, models, 1.5e-3)
    assert {rule for each in rules.values() for rule in each if "product" in rule} == {f"{kind}-product"}


@pytest.mark.slow
def test_bfloat16(tmp_path: Path) -> None:
    """Convolutions of it, one after the other and beside a sum; what has few pixels, or a single one; squares."""
    rng = np.random.default_rng(5)
    text = (
        "g (float[{n}, 18, {h}, {w}] x) => (float[{n}, 24, {h}, {w}] y, float[{n}, 10, 1, 1] s) {{ "
        "a = Conv <pads: ints = [1, 1, 1, 1]> (x, u) r = Relu(a) b = Conv <pads: ints = [1, 1, 1, 1]> (r, v) "
        "c = Add(b, r) d = Relu(c) e = Conv(d, w) z = Sigmoid(e) y = Conv(z, t) "
        "m = GlobalAveragePool(d) f = Conv(m, q) g = Relu(f) s = Conv(g, k) }}"
    )
    weights = {
        "u": _weights(rng, 40, 18, 3, 3),
        "v": _weights(rng, 40, 40, 3, 3),
        "w": _weights(rng, 6, 40, 1, 1),
        "t": _weights(rng, 24, 6, 1, 1),
        "q": _weights(rng, 16, 40, 1, 1),
        "k": _weights(rng, 10, 16, 1, 1),
    }
    shapes = {"map": (1, 9, 10), "images": (3, 5, 7), "few": (1, 2, 3)}
    models = {name: model(text.format(n=n, h=h, w=w), **weights) for name, (n, h, w) in shapes.items()}
    for name in models:
        (tmp_path / f"{name}.arch").write_text("sm_80 bf16")
    models["wgmma"] = model(text.format(n=1, h=5, w=7), **weights)
    (tmp_path / "wgmma.arch").write_text("sm_90 bf16 new")
    (tmp_path / "wgmma.form").write_text("8 2 wgmma")
    # Both factors of up to 360 products are rounded to 2^-9, at random, in four layers.
    rules = _compare(tmp_path, models, 1e-2)
    assert all(any("mma-" in rule for rule in rules[name]) for name in ("map", "images"))
    assert any("wgmma-" in rule for rule in rules["wgmma"])
    assert not any("none" in rule for each in rules.values() for rule in each)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["depthwise", "few"])
def test_every_rank(name: str, tmp_path: Path) -> None:
    """Other ways to cut up what is no product."""
    rule, dims = _CONVOLUTIONS[name]
    ranks = range(0, 40, 5) if name == "depthwise" else range(1, 4)
    models = {str(rank): _convolution(**dims) for rank in ranks}
    for rank in ranks:
        (tmp_path / f"{rank}.rank").write_text(str(rank))
    # As in the tests above.
    rules = _compare(tmp_path, models, 3e-6)
    assert all(any(each.startswith(rule) for each in written) for written in rules.values())


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_squeeze_and_excitation(precision: str, tmp_path: Path) -> None:
    """A number for each channel, with the map that it scales in one kernel; means whose terms blocks share."""
    rng = np.random.default_rng(1)
    models = {}
    for name, images, channels, side in (("odd", 2, 36, 7), ("large", 1, 8, 100), ("many", 1, 160, 5)):
        kind = f"float[{images}, {channels}, {side}, {side + 1}]"
        models[name] = model(
            f"g ({kind} x) => ({kind} y) "
            "{ m = GlobalAveragePool(x) c = Conv(m, v, a) t = Sigmoid(c) u = Mul(c, t) "
            "d = Conv(u, w, b) s = Sigmoid(d) y = Mul(x, s) }",
            v=_weights(rng, 10, channels, 1, 1),
            a=rng.normal(0, 1, 10).astype(np.float32),
            w=_weights(rng, channels, 10, 1, 1),
            b=rng.normal(0, 1, channels).astype(np.float32),
        )
        for each in ("to-float16", "eliminate-dead-code") if precision == "fp16" else ():
            passes[each]().rewrite(models[name])
    # Means of up to 10000 numbers, of which float16 keeps 11 bits.
    rules = _compare(tmp_path, models, 2e-6 if precision == "fp32" else 2e-3)
    assert all("scaled" in each and not any("none" in rule for rule in each) for each in rules.values())


@pytest.mark.parametrize("precision", thinned(["fp16", "fp32"]))
def test_truths(precision: str, tmp_path: Path) -> None:
    """What chooses by a comparison, behind every kind of kernel that has vectors."""
    rng = np.random.default_rng(5)
    built = model(
        "g (float[1, 8, 6, 10] x) => (float[1, 16, 6, 10] y, float[1, 16, 3, 5] z, float[1, 16, 1, 1] m, "
        "float[1, 16, 6, 10] b) { "
        "c = Conv(x, w) y = Elu(c) d = Conv <group: int = 16, pads: ints = [1, 1, 1, 1]> (y, k) s = Selu(d) "
        "p = MaxPool <kernel_shape: ints = [2, 2], strides: ints = [2, 2]> (s) z = Elu(p) "
        "a = GlobalAveragePool(z) m = Elu(a) g = Greater(c, n) b = Cast <to: int = 1> (g) }",
        w=_weights(rng, 16, 8, 1, 1),
        k=_weights(rng, 16, 1, 3, 3),
        n=np.zeros((), np.float32),
    )
    for each in ("to-float16", "eliminate-dead-code") if precision == "fp16" else ():
        passes[each]().rewrite(built)
    # A few roundings; truths are equal but where a number rounds to 0.
    _compare(tmp_path, {"truths": built}, 2e-6 if precision == "fp32" else 4e-3)


def test_means_in_float16(tmp_path: Path) -> None:
    """Between convolutions, where their sums are larger than any number of float16."""
    eye = np.eye(8, dtype=np.float32).reshape(8, 8, 1, 1)
    built = model(
        "g (float[1, 8, 150, 150] x) => (float[1, 8, 1, 1] y) "
        "{ c = Conv(x, w) m = GlobalAveragePool(c) y = Conv(m, v) }",
        w=12.5 * eye,
        v=eye,
    )
    for each in ("to-float16", "eliminate-dead-code"):
        passes[each]().rewrite(built)
    feeds = {"x": np.random.default_rng(0).uniform(0.9, 1, (1, 8, 150, 150)).astype(np.float32)}
    ((found,), _) = _compute(tmp_path, {"means": built}, {"means": feeds})["means"]
    # Not against ONNX Runtime, whose own sums of float16 may overflow.
    np.testing.assert_allclose(found, 12.5 * feeds["x"].mean((2, 3), keepdims=True), rtol=2e-3)


@pytest.mark.parametrize("arch", thinned(["sm_90", "sm_75"]))
def test_few_outputs_in_float16(arch: str, tmp_path: Path) -> None:
    """By the ordinary units, in float32, with windows that reach out of a map whose vectors have eight numbers."""
    built = _convolution(16, 3, size=3, pad=1)
    for each in ("to-float16", "eliminate-dead-code"):
        passes[each]().rewrite(built)
    (tmp_path / "few.arch").write_text(arch)
    assert "product" in _compare(tmp_path, {"few": built}, 1.5e-3)["few"]


_BLOCKS = {
    # Images, channels, those between the two products, height (one less than the width), stride, side of the window;
    # what the block has besides: a residual, a second reader of what is scaled, no depthwise convolution, none behind.
    "plain": (1, 32, 8, 11, 1, 3, ""),
    "odd": (3, 36, 6, 7, 2, 5, "residual"),
    "wide": (2, 160, 10, 5, 1, 3, "residual"),
    "narrow": (1, 6, 4, 9, 1, 3, ""),
    "read": (1, 24, 4, 6, 1, 3, "read"),
    "without": (2, 24, 4, 40, 1, 3, "without"),
    "last": (2, 40, 4, 6, 1, 3, "last"),
    "large": (1, 16, 4, 70, 1, 3, ""),
}


def _block(images: int, channels: int, between: int, side: int, stride: int, size: int, has: str) -> ir.Model:
    """A depthwise convolution, squeeze and excitation, and the convolution behind."""
    rng = np.random.default_rng(channels)
    high, wide = (side - 1) // stride + 1, side // stride + 1
    outputs = 20
    first = (
        "c = Conv(x, u) d = Relu(c)"
        if has == "without"
        else (
            f"c = Conv <group: int = {channels}, strides: ints = [{stride}, {stride}], "
            f"pads: ints = [{size // 2}, {size // 2}, {size // 2}, {size // 2}]> (x, k, a) e = Sigmoid(c) d = Mul(c, e)"
        )
    )
    last = {
        "": "y = Conv(z, p, q)",
        "residual": "o = Conv(z, p, q) y = Add(o, r)",
        "read": "o = Conv(z, p, q) i = Conv(z, p, b) y = Add(o, i)",
        "without": "o = Conv(z, p, q) y = Relu(o)",
        "last": "y = Conv <pads: ints = [1, 1, 1, 1]> (z, l, q)",
    }[has]
    given = f"float[{images}, {channels}, {side}, {side + 1}] x"
    if has == "residual":
        given += f", float[{images}, {outputs}, {high}, {wide}] r"
    return model(
        f"g ({given}) => (float[{images}, {outputs}, {high}, {wide}] y) {{ {first} m = GlobalAveragePool(d) "
        f"f = Conv(m, v, s) g = Sigmoid(f) h = Mul(f, g) j = Conv(h, w, t) n = Sigmoid(j) z = Mul(d, n) {last} }}",
        k=_weights(rng, channels, 1, size, size),
        u=_weights(rng, channels, channels, 1, 1),
        a=rng.normal(0, 1, channels).astype(np.float32),
        v=_weights(rng, between, channels, 1, 1),
        s=rng.normal(0, 1, between).astype(np.float32),
        w=_weights(rng, channels, between, 1, 1),
        t=rng.normal(0, 1, channels).astype(np.float32),
        p=_weights(rng, outputs, channels, 1, 1),
        l=_weights(rng, outputs, channels, 3, 3),
        q=rng.normal(0, 1, outputs).astype(np.float32),
        b=rng.normal(0, 1, outputs).astype(np.float32),
    )


@pytest.mark.parametrize(
    ("precision", "arch", "names"),
    [
        # For few multiprocessors a thread has several rows.
        ("fp16", "sm_87", ["odd", "large"]),
        *(
            pytest.param(precision, arch, list(_BLOCKS), marks=pytest.mark.slow)
            for precision, arch in (("fp16", "sm_90"), ("fp32", "sm_90"), ("fp16", "sm_75"), ("tf32", "sm_80"))
        ),
    ],
)
def test_squeezing(precision: str, arch: str, names: list[str], tmp_path: Path) -> None:
    """What is before squeeze and excitation gives its numbers, too, and what is behind scales its data with them."""
    models = {}
    for name in names:
        models[name] = _block(*_BLOCKS[name])
        (tmp_path / f"{name}.arch").write_text(f"{arch} new" + (" tf32" if precision == "tf32" else ""))
        for each in ("to-float16", "eliminate-dead-code") if precision == "fp16" else ():
            passes[each]().rewrite(models[name])
    # As for convolutions of a single kind, of which there are two, one behind the other.
    rules = _compare(tmp_path, models, {"fp32": 3e-6, "fp16": 2e-3, "tf32": 1e-3}[precision])
    squeezes = {name: [rule for rule in rules[name] if "squeeze" in rule] for name in models}
    assert all(each == (["squeeze"] if name == "without" else ["depthwise-squeeze"]) for name, each in squeezes.items())
    # The map is scaled by itself only where the convolution does not do it.
    functions = {"plain": 4, "odd": 5, "wide": 5, "narrow": 5, "read": 6, "without": 5, "last": 5, "large": 4}
    assert {name: len(each) for name, each in rules.items()} == {name: functions[name] for name in names}


def _partial(images: int, channels: int, side: int, first: bool) -> ir.Model:
    """Some of a map's channels, convolutions of them beside each other, and these beside the map; then a head."""
    rng = np.random.default_rng(channels)
    whole, wide = 2 * channels, side + 1
    names = ("j", "f") if first else ("f", "j")
    return model(
        f"g (float[{images}, 16, {side}, {wide}] x) => (float[{images}, 21, {side}, {wide}] y) {{ "
        "a = Conv <pads: ints = [1, 1, 1, 1]> (x, p, b) c = LeakyRelu <alpha: float = 0.1> (a) "
        "h, d = Split <axis: int = 1> (c, n) "
        "e = Conv <pads: ints = [1, 1, 1, 1]> (d, q, o) f = Relu(e) "
        f"i = Conv <group: int = {channels}, pads: ints = [1, 1, 1, 1]> (f, k, o) "
        f"j = LeakyRelu <alpha: float = 0.1> (i) l = Concat <axis: int = 1> ({', '.join(names)}) m = Conv(l, r, b) "
        "s = Relu(m) t = Concat <axis: int = 1> (c, s) u = Conv(t, v, w) z = Reshape(u, fives) "
        "xy, wh, others = Split <axis: int = 2> (z, sizes) "
        "sig = Sigmoid(xy) mul = Mul(sig, scale) sub = Sub(mul, offset) rest = Sigmoid(others) "
        "joint = Concat <axis: int = 2> (sub, wh, rest) y = Reshape(joint, fours) }",
        p=_weights(rng, whole, 16, 3, 3),
        b=rng.normal(0, 1, whole).astype(np.float32),
        n=np.array([channels, channels]),
        q=_weights(rng, channels, channels, 3, 3),
        o=rng.normal(0, 1, channels).astype(np.float32),
        k=_weights(rng, channels, 1, 3, 3),
        r=_weights(rng, whole, whole, 1, 1),
        v=_weights(rng, 21, 2 * whole, 1, 1),
        w=rng.normal(0, 1, 21).astype(np.float32),
        fives=np.array([images, 3, 7, side, wide]),
        sizes=np.array([2, 2, 3]),
        scale=np.array(1.05, np.float32),
        offset=np.array(0.025, np.float32),
        fours=np.array([images, 21, side, wide]),
    )


@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.slow)])
def test_places(precision: str, tmp_path: Path) -> None:
    """Convolutions write where a concatenation of their results, or some of their channels, are read; a head is one
    kernel."""
    models = {"one": _partial(1, 16, 9, True), "some": _partial(2, 24, 5, False)}
    for name, built in models.items():
        (tmp_path / f"{name}.arch").write_text("sm_90 new")
        for each in ("to-float16", "eliminate-dead-code") if precision == "fp16" else ():
            passes[each]().rewrite(built)
    # Four convolutions, one behind the other.
    rules = _compare(tmp_path, models, {"fp32": 3e-6, "fp16": 4e-3}[precision])
    # To (N, H, W, C), four convolutions with what moves their results, and the head.
    product = {"fp32": "product", "fp16": "mma-product"}[precision]
    wanted = sorted(["injective", product, product, "depthwise", product, product, "injective"])
    assert all(sorted(written) == wanted for written in rules.values())


@pytest.mark.slow
def test_others(tmp_path: Path) -> None:
    """Pools, reductions, connected layers and what moves elements."""
    rng = np.random.default_rng(3)
    texts: dict[str, tuple[str, dict[str, Any]]] = {
        "pools": (
            "g (float[1, 10, 13, 13] x) => (float[1, 10, 13, 13] a, float[1, 10, 13, 13] b, float[1, 10, 7, 7] c) { "
            "a = MaxPool <kernel_shape: ints = [5, 5], pads: ints = [2, 2, 2, 2]> (x) "
            "b = MaxPool <kernel_shape: ints = [13, 13], pads: ints = [6, 6, 6, 6]> (x) "
            "c = AveragePool <kernel_shape: ints = [3, 3], strides: ints = [2, 2], pads: ints = [1, 1, 1, 1]> (x) }",
            {},
        ),
        "reductions": (
            "g (float[1, 64, 40, 30] x) => (float[1, 64, 1, 1] a, float[1, 1, 40, 30] b, float[1, 64, 40, 30] c) { "
            "a = GlobalAveragePool(x) b = ReduceMax <axes: ints = [1], keepdims: int = 1> (x) "
            "c = Softmax <axis: int = 1> (x) }",
            {},
        ),
        "connected": (
            "g (float[1, 300] x, float[20, 300] z) => (float[1, 50] y, float[20, 50] w) "
            "{ y = Gemm(x, m, b) w = Gemm(z, m, b) }",
            {"m": _weights(rng, 300, 50), "b": rng.normal(0, 1, 50).astype(np.float32)},
        ),
        "moved": (
            "g (float[1, 12, 6, 8] x, float[1, 4, 12, 16] z) "
            "=> (float[1, 16, 12, 16] y, float[1, 24, 24] t, float[1, 13, 6, 8] o, float[1, 8, 6, 8] l) { "
            'u = Resize <mode: string = "nearest", coordinate_transformation_mode: string = "asymmetric", '
            'nearest_mode: string = "floor"> (x, , s) c = Concat <axis: int = 1> (u, z) y = Tanh(c) '
            "r = Reshape(x, f) t = Transpose <perm: ints = [0, 2, 1]> (r) "
            "p, q = Split <axis: int = 1> (x, n) e = Neg(q) o = Concat <axis: int = 1> (p, e, p) "
            "h, l = Split <axis: int = 1> (x, k) }",
            {
                "s": np.array([1, 1, 2, 2], np.float32),
                "f": np.array([1, 24, 24]),
                "n": np.array([1, 11]),
                "k": np.array([4, 8]),
            },
        ),
    }
    rules = _compare(tmp_path, {name: model(text, **given) for name, (text, given) in texts.items()}, 2e-6)
    assert not any("none" in rule for each in rules.values() for rule in each)


@pytest.mark.slow
def test_networks(write: Callable[..., Path], tmp_path: Path) -> None:
    """Every section of Darknet's that TVM can compile, and no function without a schedule."""
    models = {}
    for name in NETWORKS:
        cfg = write(name, lenient=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = Network.load(cfg, cfg.with_suffix(".weights"), lenient=True)
        built = lower(network, batch=1)
        for each in Cuda({"backend": "tvm", "arch": "sm_75"}).candidates()[0].optimizations():
            each.rewriting.rewrite(built)
        if not unsupported(built):
            models[name] = built
    assert len(models) > len(NETWORKS) / 2
    folder = tmp_path / "models"
    folder.mkdir()
    # float32, through up to 20 layers.
    rules = _compare(folder, models, 1e-5)
    assert not [rule for each in rules.values() for rule in each if "none" in rule]
