"""Convolutions by Winograd's forms: exact within what is stated, where they may be used, and not elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import dnc
from dnc.errors import TargetError
from dnc.graph.rewriting import Remarks
from dnc.runtime.options import parse_options
from dnc.targets.tvm.minimal_filtering import FORMS, WINOGRAD, Form
from dnc.targets.tvm.target import Tvm
from dnc.typing import Array
from tests import models

pytest.importorskip("tvm.relax", exc_type=ImportError)

from dnc.targets.tvm.schedules.machine import Machine
from dnc.targets.tvm.schedules.winograd import gain
from dnc.targets.tvm.winograd import ChooseWinograd
from tests.targets.tvm.emit.test_integers import compute, convolved

MACHINES = {"AVX-512": Machine(16, 32), "AVX": Machine(8, 16), "NEON": Machine(4, 32)}
TOLERANCE = {2: 2e-6, 4: 5e-6}
"""Of the largest number, by the side of the tiles: some times what was seen, for up to 137 channels."""
SAME, NONE = (1, 1, 1, 1), (0, 0, 0, 0)
LAYERS: Mapping[str, tuple[tuple[int, int, int, int], int, tuple[int, int, int, int]]] = {
    # The input (N, C, H, W), output channels, padding above, left, below, right
    "whole tiles": ((1, 16, 8, 12), 32, SAME),
    "prime": ((1, 7, 13, 11), 24, SAME),
    "one channel": ((1, 1, 5, 9), 1, SAME),
    "one pixel": ((1, 24, 1, 1), 24, SAME),
    "no border": ((1, 8, 9, 7), 3, NONE),
    "uneven borders": ((1, 12, 6, 10), 20, (2, 0, 1, 3)),
    "batch": ((3, 20, 7, 5), 17, SAME),
    "many blocks": ((2, 3, 63, 85), 4, SAME),
    "beyond the cache": ((1, 131, 9, 10), 137, SAME),
}


def layer(name: str, form: Form, text: str = "y = Conv<pads = [{pads}]> (x, w, b)", **more: Any) -> ir.Model:
    shape, outputs, pads = LAYERS[name]
    generator = np.random.default_rng(1)
    built = models.model(
        f"g (float[{', '.join(map(str, shape))}] x) => (float[N, O, H, W] y) "
        f"{{ {text.replace('{pads}', ', '.join(map(str, pads)))} }}",
        w=generator.normal(0, 1, (outputs, shape[1], 3, 3)).astype(np.float32),
        b=generator.normal(0, 1, outputs).astype(np.float32),
        **more,
    )
    for node in built.graph:
        if node.op_type == "Conv":
            node.metadata_props[WINOGRAD] = str(form.outputs)
    return built


def arrays(built: ir.Model, name: str) -> tuple[Array, Array, Array]:
    """Data, and the weights and the bias in float64."""
    x = np.random.default_rng(2).normal(0, 1, LAYERS[name][0]).astype(np.float32)
    w, b = (built.graph.initializers[key].const_value.numpy().astype(np.float64) for key in "wb")  # type: ignore[union-attr]
    return x, w, b


def definition(x: Array, w: Array, b: Array, pads: tuple[int, ...]) -> Array:
    return convolved(x.astype(np.float64), w, pads, (1, 1), (1, 1)) + b[:, None, None]


def close(found: Array, wanted: Array, form: Form) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= TOLERANCE[form.outputs] * np.abs(wanted).max()


forms = pytest.mark.parametrize("form", FORMS.values(), ids=str)


@pytest.mark.parametrize(
    ("name", "form"), [*((name, FORMS[4]) for name in LAYERS), ("prime", FORMS[2]), ("batch", FORMS[2])]
)
def test_numbers(name: str, form: Form) -> None:
    built = layer(name, form)
    x, w, b = arrays(built, name)
    (found,), rules = compute(built, x)
    assert set(rules.split()) <= {"winograd", "injective", "view"}
    assert rules.count("winograd") == 1
    close(found, definition(x, w, b, LAYERS[name][2]), form)


@forms
@pytest.mark.parametrize("mcpu", ["x86-64", "x86-64-v3"])
def test_shorter_vectors(mcpu: str, form: Form) -> None:
    built = layer("prime", form)
    x, w, b = arrays(built, "prime")
    (found,), _ = compute(built, x, mcpu=mcpu)
    close(found, definition(x, w, b, SAME), form)


@forms
def test_what_follows_is_in_the_same_kernel(form: Form) -> None:
    """Swish, by a function, and a shortcut; at the end of the map, where tiles reach over it, too."""
    built = layer("prime", form, "c = Conv<pads = [{pads}]> (x, w, b) s = Sigmoid(c) m = Mul(c, s) y = Add(m, z)", z=Z)
    x, w, b = arrays(built, "prime")
    wanted = definition(x, w, b, SAME)
    (found,), rules = compute(built, x)
    assert set(rules.split()) <= {"winograd", "injective", "view"}
    assert rules.count("winograd") == 1
    close(found, wanted / (1 + np.exp(-wanted)) + Z, form)


Z = np.random.default_rng(3).normal(0, 1, (1, 24, 13, 11)).astype(np.float32)


@forms
def test_nothing_outside_is_read_or_written(form: Form) -> None:
    """What lies beyond the border counts as zero, whatever it is: of neighbours in memory, NaN would be seen."""
    built = layer("batch", form)
    x, w, b = arrays(built, "batch")
    x[1] = np.nan
    (found,), _ = compute(built, x)
    assert np.isnan(found[1]).all()
    kept = [0, 2]
    close(found[kept], definition(x[kept], w, b, SAME), form)


@forms
def test_error(form: Form) -> None:
    """What is measured is what the kernel has, in size."""
    built = layer("beyond the cache", form)
    x, w, b = arrays(built, "beyond the cache")
    wanted = definition(x, w, b, SAME)
    (found,), _ = compute(built, x)
    error = np.abs(found - wanted).max() / np.abs(wanted).max()
    measured = form.error(x, w.astype(np.float32), SAME, b)
    assert measured / 2 < error < 2 * measured


@forms
def test_error_of_outputs_alone(form: Form) -> None:
    """What tiles compute behind the end of the output is none of it."""
    x = np.zeros((1, 1, 5, 5), np.float32)
    x[..., -1, -1] = 1
    w = np.zeros((1, 1, 3, 3), np.float32)
    w[..., 0, 0] = 1 / 3
    # The only product is of the last pixel and the first tap: below and at the right of the last output.
    assert form.error(x, w, SAME) == 0


def test_error_of_no_numbers() -> None:
    x, w = np.full((1, 1, 4, 4), np.nan, np.float32), np.ones((1, 1, 3, 3), np.float32)
    assert np.isnan(FORMS[2].error(x, w, SAME))


def chosen(text: str, allowed: float = 1e-3, machine: str = "AVX-512", half: bool = False, **arrays: Any) -> Remarks:
    built = models.model(f"g (float[1, 64, 52, 52] input) => (float[1, O, H, W] y) {{ {text} }}", **arrays)
    remarks = ChooseWinograd(allowed, MACHINES[machine], half).rewrite(built)
    marked = [WINOGRAD in node.metadata_props for node in built.graph]
    assert sum(marked) == remarks.count
    return remarks


WEIGHTS = np.random.default_rng(0).normal(0, 0.05, (128, 64, 3, 3)).astype(np.float32)
CONV = "y = Conv<pads = [1, 1, 1, 1]> (input, w)"


@pytest.mark.parametrize("machine", MACHINES)
def test_large_layers_are_chosen(machine: str) -> None:
    remarks = chosen(CONV, machine=machine, w=WEIGHTS)
    (remark,) = remarks.applied
    assert remark.text.startswith("F(4x4): off by ")
    assert " of its largest output, " in remark.text


@pytest.mark.parametrize(
    ("allowed", "text"),
    [
        (12e-6, "F(4x4): off by 3.0e-06 of its largest output, 2"),
        (11.9e-6, "F(2x2): off by 1.0e-06 of its largest output, 1"),
        (3.9e-6, "F(4x4) is off by 3.0e-06 of its largest output, F(2x2) is off by 1.0e-06 of its largest output: "
         "4 times that is more than 3.9e-06"),
    ],
)  # fmt: skip
def test_the_error_decides(allowed: float, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fourth of what is allowed; where F(4x4) has more, F(2x2) may do."""
    errors = {2: 1e-6, 4: 3e-6}
    monkeypatch.setattr(Form, "error", lambda form, *_: errors[form.outputs])
    remarks = chosen(CONV, allowed, w=WEIGHTS)
    (remark,) = [*remarks.applied, *remarks.missed]
    assert remark.text.startswith(text)


def test_numbers_that_are_none_are_no_small_error() -> None:
    weights = WEIGHTS.copy()
    weights[3, 5] = np.inf
    (remark,) = chosen(CONV, w=weights).missed
    assert "off by nan" in remark.text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("r = Mul(w, one) y = Conv<pads = [1, 1, 1, 1]> (input, r)", "does not multiply constant weights in float32"),
        ("q = QuantizeLinear(w, one) d = DequantizeLinear(q, one) y = Conv (input, d)", "it multiplies in 8 bits"),
        ("m = GlobalAveragePool(input) y = Conv<pads = [1, 1, 1, 1]> (m, w)", "F(2x2) promises 0."),
    ],
)
def test_what_stays(text: str, why: str) -> None:
    (remark,) = chosen(text, w=WEIGHTS, one=np.array(1, np.float32)).missed
    assert why in remark.text


@pytest.mark.parametrize("form", ["strides = [2, 2]", "dilations = [2, 2]", "group = 2"])
def test_other_convolutions_are_not_of_its_kind(form: str) -> None:
    remarks = chosen(f"y = Conv<{form}> (input, w)", w=WEIGHTS[:, : 32 if "group" in form else 64])
    assert not remarks.applied
    assert not remarks.missed


def test_bfloat16_stays() -> None:
    """What is multiplied in bfloat16; what comes last is not."""
    second = np.random.default_rng(1).normal(0, 0.1, (128, 128, 3, 3)).astype(np.float32)
    text = "a = Conv<pads = [1, 1, 1, 1]> (input, w) c = Conv<pads = [1, 1, 1, 1]> (a, v) y = Conv (c, v)"
    remarks = chosen(text, half=True, w=WEIGHTS, v=second)
    assert [remark.text for remark in remarks.missed] == ["it multiplies in bfloat16"] * 2
    assert len(remarks.applied) == 1


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES.keys())
def test_gain(machine: Machine) -> None:
    """Few channels are not worth transforming."""
    for form in FORMS.values():
        assert gain(form, (1, 26, 26, 256), 128, machine) > 1.1
        assert gain(form, (1, 416, 416, 16), 3, machine) < 1
        assert gain(form, (1, 1, 1, 512), 512, machine) < 1


@pytest.mark.parametrize("text", ["on", "", "0", "-1e-5", "nan", "inf", "0.5", "1e-5x"])
def test_wrong_values(text: str) -> None:
    with pytest.raises(TargetError, match=rf"option winograd={text} of target tvm is not off, or the error allowed"):
        Tvm({"winograd": text})


CFG = """[net]
width=48
height=40
channels=3
[convolutional]
batch_normalize=1
filters=64
size=3
stride=1
pad=1
activation=leaky
[convolutional]
batch_normalize=1
filters=128
size=3
stride=1
pad=1
activation=mish
[convolutional]
filters=7
size=1
activation=linear
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="model.so is linked with g++")
def test_an_engine(write: Callable[..., Path], tmp_path: Path) -> None:
    """It says which layers are computed so, and why the others are not; its numbers are those without."""
    cfg = write("net", CFG)
    usual, engine = (
        dnc.compile(cfg, target="tvm", options={"winograd": text}, out=tmp_path / text, verify=False)
        for text in ("off", "1e-5")
    )
    (remarks,) = [item for item in engine.manifest.remarks if item["name"] == "winograd"]
    assert [remark["where"].rpartition("#")[2] for remark in remarks["applied"]] == ["1"]
    assert [remark["where"].rpartition("#")[2] for remark in remarks["missed"]] == ["0"]
    assert "1 winograd" in engine.manifest.report["functions"]
    assert "winograd" not in usual.manifest.report["functions"]
    x = np.random.default_rng(0).random((1, 3, 40, 48), np.float32)
    (found,), (wanted,) = engine.forward(x), usual.forward(x)
    assert 0 < np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_off_unless_allowed() -> None:
    assert "winograd" not in [step.name for step in Tvm().pipeline()]
    assert "winograd" not in [step.name for step in Tvm({"winograd": "off"}).pipeline()]
    assert list(Tvm({"winograd": "1e-5"}).pipeline())[-1].name == "winograd"
    assert parse_options("tvm", Tvm.known_options, {})["winograd"] == 0


def test_without_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnc.targets.tvm.target.available", lambda: False)
    with pytest.raises(TargetError, match=r"errors are measured with ONNX Runtime\n  hint: pip install onnxruntime"):
        Tvm({"winograd": "1e-5"}).pipeline()
