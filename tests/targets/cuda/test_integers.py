"""8-bit numbers on GPUs: the kernels' source is run on the CPU, and gives what target tvm's machine code gives."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import dnc
from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.graph.composites import inline_composites
from dnc.graph.quantization import Range, attach_ranges
from dnc.graph.running import Running
from dnc.quantization.calibration import Calibration
from dnc.targets import Target
from dnc.targets.base import UnsupportedError
from dnc.targets.cuda.kernels import CudaKernels
from dnc.targets.tvm.target import Tvm
from dnc.typing import Array
from tests import ROOT, models
from tests.networks import NETWORKS

pytest.importorskip("tvm.relax", exc_type=ImportError)

from tests.targets.cuda.emulation import environment, make_driver, make_nvcc
from tests.targets.cuda.test_schedules import _compute, pytestmark  # noqa: F401
from tests.targets.tvm.emit.test_integers import FORMS, compute, convolved, grid

EXACT = 1e-5
"""Of the largest number: sums are the same integers; each then is rounded to float32, multiplied and added to."""
FUSED = 5e-7
"""The same: two roundings to 2^-24 of it, where LLVM and NVIDIA's compilers fuse the two, and g++ does not."""


def _sides(form: str, size: tuple[int, int] = (9, 11)) -> tuple[int, int]:
    shape, pads, strides, dilations = FORMS[form]
    down, across = (
        (size[axis] + pads[axis] + pads[axis + 2] - (shape[2 + axis] - 1) * dilations[axis] - 1) // strides[axis] + 1
        for axis in range(2)
    )
    return down, across


def _convolutions(zero: int, names: list[str], images: int = 2) -> tuple[ir.Model, dict[str, Array], list[Array]]:
    """A model with a convolution of each form, its inputs, and what they give."""
    generator = np.random.default_rng(zero)
    inputs, outputs, lines, given = [], [], [], grid(1 / 64, zero)
    feeds, wanted = {}, []
    for place, form in enumerate(names):
        shape, pads, strides, dilations = FORMS[form]
        x = (generator.integers(-zero, 256 - zero, (images, shape[1], 9, 11)) / 64).astype(np.float32)
        w = generator.integers(-127, 128, shape).astype(np.int8)
        scales = generator.uniform(0.01, 0.02, shape[0]).astype(np.float32)
        bias = generator.standard_normal(shape[0]).astype(np.float32)
        down, across = _sides(form)
        inputs.append(f"float[{images}, {shape[1]}, 9, 11] x{place}")
        outputs.append(f"float[{images}, {shape[0]}, {down}, {across}] y{place}")
        sides = f"pads: ints = {list(pads)}, strides: ints = {list(strides)}, dilations: ints = {list(dilations)}"
        lines.append(
            f"q{place} = QuantizeLinear(x{place}, s, z) d{place} = DequantizeLinear(q{place}, s, z) "
            f"k{place} = DequantizeLinear<axis: int = 0>(w{place}, t{place}) "
            f"y{place} = Conv<{sides}>(d{place}, k{place}, b{place})"
        )
        given |= {f"w{place}": w, f"t{place}": scales, f"b{place}": bias}
        feeds[f"x{place}"] = x
        sums = convolved(x.astype(np.float64), w.astype(np.float64), pads, strides, dilations)
        wanted.append(sums * scales[:, None, None].astype(np.float64) + bias[:, None, None])
    text = f"g ({', '.join(inputs)}) => ({', '.join(outputs)}) {{ {' '.join(lines)} }}"
    return models.model(text, **given), feeds, wanted


EVERY = list(FORMS)


@pytest.mark.parametrize(
    ("arch", "names"),
    [
        ("sm_75", EVERY[::2]),
        ("sm_90", EVERY[1::2]),
        pytest.param("sm_75", EVERY[1::2], marks=pytest.mark.slow),
        pytest.param("sm_90", EVERY[::2], marks=pytest.mark.slow),
    ],
)
def test_convolutions(arch: str, names: list[str], tmp_path: Path) -> None:
    """All by the tensor cores but a window that is too large, and what target tvm's machine code gives."""
    built, feeds, wanted = _convolutions(77, names)
    (tmp_path / "c.arch").write_text(arch)
    found, rules = _compute(tmp_path, {"c": built}, {"c": feeds})["c"]
    here, _ = compute(built, *feeds.values(), eights="int8")
    for y, exact, own in zip(found, wanted, here, strict=True):
        np.testing.assert_allclose(y, exact, rtol=0, atol=EXACT * np.abs(exact).max())
        np.testing.assert_allclose(y, own, rtol=0, atol=FUSED * np.abs(exact).max())
    fitting = len(set(names) - {"no window lies inside"})
    assert sum(rule.startswith("int8-product") for rule in rules.values()) == fitting
    assert not [rule for rule in rules.values() if "none" in rule]


def _layers(channels: int, more: str = "") -> ir.Model:
    """Two convolutions with a leaky between them, all that moves numbers, and a residual."""
    rng = np.random.default_rng(channels)
    half = channels // 2
    given: dict[str, Any] = {
        "w": rng.integers(-127, 128, (channels, channels, 3, 3)).astype(np.int8),
        "v": rng.integers(-127, 128, (half, channels, 1, 1)).astype(np.int8),
        "u": rng.integers(-127, 128, (channels, channels + half, 1, 1)).astype(np.int8),
        "t": rng.uniform(0.001, 0.002, channels).astype(np.float32),
        "h": rng.uniform(0.001, 0.002, half).astype(np.float32),
        "r": np.array([1, 1, 2, 2], np.float32),
        **{f"s{number}": np.array(scale, np.float32) for number, scale in enumerate((1 / 64, 0.11, 0.07))},
        **{f"z{number}": np.array(zero, np.uint8) for number, zero in enumerate((128, 31, 64))},
    }
    text = (
        f"g (float[1, {channels}, 8, 10] x) => (float[1, {channels}, 8, 10] y) {{ "
        "q = QuantizeLinear(x, s0, z0) d = DequantizeLinear(q, s0, z0) k = DequantizeLinear<axis: int = 0>(w, t) "
        "c = Conv<pads: ints = [1, 1, 1, 1]>(d, k) a = LeakyRelu<alpha: float = 0.1>(c) "
        "q1 = QuantizeLinear(a, s1, z1) d1 = DequantizeLinear(q1, s1, z1) "
        "m = MaxPool<kernel_shape: ints = [2, 2], strides: ints = [2, 2]>(d1) "
        "k1 = DequantizeLinear<axis: int = 0>(v, h) c1 = Conv(m, k1) a1 = Relu(c1) "
        "q2 = QuantizeLinear(a1, s1, z1) d2 = DequantizeLinear(q2, s1, z1) "
        'n = Resize<mode: string = "nearest", nearest_mode: string = "floor", '
        'coordinate_transformation_mode: string = "asymmetric">(d2, , r) e = Concat<axis: int = 1>(n, d1) '
        "k2 = DequantizeLinear<axis: int = 0>(u, t) c2 = Conv(e, k2) a2 = LeakyRelu<alpha: float = 0.1>(c2) "
        f"o = Add(a2, a) {more} }}"
    )
    return models.model(text, **given)


@pytest.mark.parametrize("sizes", [(32, 12), pytest.param((6,), marks=pytest.mark.slow)])
def test_layers(sizes: tuple[int, ...], tmp_path: Path) -> None:
    """Numbers that stay of 8 bits from layer to layer, with as many channels as words hold, and with others: the same
    as target tvm's, but for a few that are rounded to the other side."""
    built = {str(channels): _layers(channels, "y = Identity(o)") for channels in sizes}
    rng = np.random.default_rng(5)
    feeds = {name: {"x": rng.normal(0, 1, (1, int(name), 8, 10)).astype(np.float32)} for name in built}
    for name in {"32", "6"} & built.keys():
        (tmp_path / f"{name}.arch").write_text("sm_90 new")
    found = _compute(tmp_path, built, feeds)
    for name, (outputs, rules) in found.items():
        here, _ = compute(built[name], feeds[name]["x"], eights="int8")
        difference = np.abs(outputs[0] - here[0])
        assert (difference > FUSED * np.abs(here[0]).max()).mean() < 0.01
        assert sum("int8-product" in rule for rule in rules.values()) == 3
        assert not [rule for rule in rules.values() if "none" in rule]


@pytest.mark.slow
def test_every_tile(tmp_path: Path) -> None:
    """With one block for a tile and with several."""
    from dnc.targets.cuda.schedules.mma import MMA_TILES

    names = [form for form in FORMS if FORMS[form][0][2] < 15]
    cases: dict[str, tuple[ir.Model, dict[str, Array], list[Array]]] = {}
    for number in range(len(MMA_TILES)):
        name = f"{number}"
        cases[name] = _convolutions(number, [names[number % len(names)]], images=1 + number % 3)
        (tmp_path / f"{name}.form").write_text(f"{number} {1 + number % 3}")
        (tmp_path / f"{name}.arch").write_text("sm_90" if number % 2 else "sm_75")
    found = _compute(tmp_path, {name: case[0] for name, case in cases.items()}, {n: c[1] for n, c in cases.items()})
    for name, (outputs, rules) in found.items():
        (wanted,) = cases[name][2]
        np.testing.assert_allclose(outputs[0], wanted, rtol=0, atol=EXACT * np.abs(wanted).max())
        assert any("int8-product" in rule for rule in rules.values())


def _ranges(built: ir.Model, feeds: dict[str, Array]) -> dict[str, Range]:
    """From the smallest to the largest number of every value, and 0."""
    copy = built.clone()
    for node in copy.graph:
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT and value not in copy.graph.outputs:
                copy.graph.outputs.append(value)
    found = {**Running(copy)(feeds), **feeds}
    return {
        name: Range(min(float(array.min()), 0.0), max(float(array.max()), 0.0), float(array.min()), float(array.max()))
        for name, array in found.items()
        if array.dtype == np.float32 and array.size
    }


@pytest.mark.slow
def test_engine(write: Callable[..., Path], tmp_path: Path) -> None:
    """One from a table that target tvm takes as well, and what it says of itself."""
    cfg = write("tiny")
    network = Network.load(cfg, cfg.with_suffix(".weights"))
    image = np.random.default_rng(1).random((3, 16, 16), dtype=np.float32)
    ranges = _ranges(lower(network, batch=1), {"input": image[None]})
    table = tmp_path / "table.json"
    Calibration(network.digest, "minmax", False, {}, {}, ranges).write(table)
    options = {"backend": "tvm", "arch": "sm_87,sm_75", "compiler": str(make_nvcc(tmp_path, make_driver(tmp_path)))}
    shared: dict[str, Any] = {"precision": "int8", "calibration": table}
    made = dnc.compile(cfg, out=tmp_path / "e", target="cuda", options=options, **shared).manifest
    assert "no GPU has run kernels of 8 bits yet" in made.report["device"]
    assert "1 int8-product" in made.report["kernels"]
    assert not made.deviation["measured"]
    np.save(tmp_path / "image.npy", image)
    run = "import sys, numpy, dnc; numpy.save(sys.argv[2], dnc.load(sys.argv[1]).forward(numpy.load(sys.argv[3]))[0])"
    paths = [str(tmp_path / name) for name in ("e", "out.npy", "image.npy")]
    done = subprocess.run(
        [sys.executable, "-c", run, *paths], cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (own,) = dnc.compile(cfg, out=tmp_path / "t", target="tvm", **shared).forward(image)
    # The head is in float16.
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), own, rtol=0, atol=2e-3 * np.abs(own).max())


def _ready(built: ir.Model, target: Target, ranges: dict[str, Range]) -> ir.Model:
    copy = built.clone()
    inline_composites(copy, keep=target.composites)
    attach_ranges(copy, ranges)
    target.pipeline().run(copy)
    return copy


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::dnc.errors.DncWarning")
def test_networks(write: Callable[..., Path], tmp_path: Path) -> None:
    """All networks that 8 bits are for: with float32 beside them, what target tvm's machine code gives; with float16,
    as engines have it, as far as that is exact."""
    folder = tmp_path / "models"
    folder.mkdir()
    targets = {"float32": Tvm({"precision": "int8"}), "float16": CudaKernels({"arch": "sm_75", "precision": "int8"})}
    built, feeds = {}, {}
    for name in NETWORKS:
        cfg = write(name, lenient=True)
        lowered = lower(Network.load(cfg, cfg.with_suffix(".weights"), lenient=True), batch=1)
        rng = np.random.default_rng(3)
        shapes = {value.name or "": [int(str(side)) for side in value.shape or ()] for value in lowered.graph.inputs}
        given: dict[str, Array] = {key: rng.random(shape, dtype=np.float32) for key, shape in shapes.items()}
        ranges = _ranges(lowered, given)
        for beside, target in targets.items():
            if name in ("rnn", "vector", "yolo2") or (beside == "float16" and name not in ("yolo", "crnn")):
                continue
            try:
                ready = _ready(lowered, target, ranges)
            except UnsupportedError:
                continue
            if any(node.op_type == "QuantizeLinear" for node in ready.graph):
                built[f"{name}-{beside}"], feeds[f"{name}-{beside}"] = ready, given
    found = _compute(folder, built, feeds)
    assert len(found) > len(NETWORKS) / 2
    for name, (outputs, rules) in found.items():
        network, beside = name.split("-")
        here, _ = compute(built[f"{network}-float32"], *feeds[name].values(), eights="int8")
        for y, own in zip(outputs, here, strict=True):
            # A number that was rounded to the other side would be seen in both; in float16, some are.
            tolerance = {"float32": 5e-6, "float16": 1.5e-2}[beside]
            np.testing.assert_allclose(y, own, rtol=0, atol=tolerance * np.abs(own).max())
        assert not [rule for rule in rules.values() if "none" in rule]
