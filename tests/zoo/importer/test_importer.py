"""`dnc import`: that what is written computes the source's numbers, and that what is not certain is refused.

The expected outputs are ONNX Runtime's, of a model that is built beside the checkpoint from the same arrays.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest

from dnc.darknet import reference
from dnc.darknet.cfg import find_cfg
from dnc.darknet.layers.convolutional import BATCH_NORM_EPSILON
from dnc.darknet.network import Network
from dnc.errors import CfgError, DncError, DncWarning, WeightsError
from dnc.typing import Array
from dnc.zoo.importer import ImportReport, import_weights
from tests.thinning import thinned
from tests.zoo.importer.checkpoints import WRITERS, legacy, safetensors, zipped

Spec = tuple[str, str, int, int, int, int, str]
"""Name of the convolution, of its batch normalisation, filters, size, stride, groups, activation."""


CLOSE = 1e-5
"""Relative: a few layers in float32, in another order of additions, with weights that were rounded once more."""

BLOCKS: list[Spec] = [
    ("stem.0", "stem.1", 8, 3, 2, 1, "relu6"),
    ("blocks.9.conv_pw", "blocks.9.bn1", 16, 1, 1, 1, "relu6"),
    ("blocks.9.conv_dw", "blocks.9.bn2", 16, 5, 2, 16, "relu6"),
    ("blocks.9.conv_pwl", "blocks.9.bn3", 8, 1, 1, 1, "linear"),
    ("blocks.10.conv_pw", "blocks.10.bn1", 16, 1, 1, 1, "relu6"),
    ("blocks.10.conv_dw", "blocks.10.bn2", 16, 3, 1, 16, "relu6"),
    ("blocks.10.conv_pwl", "blocks.10.bn3", 8, 1, 1, 1, "linear"),
]
"""As timm names EfficientNet: sorted, block 10 comes before block 9, conv_dw before conv_pw, and two groups of equal
shapes; then a residual connection around block 10, the mean, and a linear classifier.
"""


class Toy:
    """A small EfficientNet: its state_dict, its cfg and its ONNX model."""

    def __init__(self, side: int = 20, epsilon: float = 1e-5, same: bool = False, bias: bool = False) -> None:
        generator = np.random.default_rng(side)
        self.side, self.epsilon, self.same = side, epsilon, same
        self.state: dict[str, Array] = {}
        channels = 3
        for name, norm, filters, size, _, groups, _ in BLOCKS:
            fan_in = channels // groups * size * size
            shape = (filters, channels // groups, size, size)
            self.state[f"{name}.weight"] = generator.normal(0, (2 / fan_in) ** 0.5, shape).astype(np.float32)
            if bias:
                self.state[f"{name}.bias"] = generator.normal(0, 0.3, filters).astype(np.float32)
            for leaf, low, high in (("weight", 0.8, 1.2), ("bias", -0.5, 0.5), ("running_mean", -0.5, 0.5)):
                self.state[f"{norm}.{leaf}"] = generator.uniform(low, high, filters).astype(np.float32)
            # Also variances as small as epsilon, where it matters.
            variance = generator.uniform(0.2, 2, filters)
            variance[:2] = [0, 3e-4]
            self.state[f"{norm}.running_var"] = variance.astype(np.float32)
            self.state[f"{norm}.num_batches_tracked"] = np.array(5)
            channels = filters
        self.state["classifier.weight"] = generator.normal(0, 1, (5, channels)).astype(np.float32)
        self.state["classifier.bias"] = generator.normal(0, 1, 5).astype(np.float32)
        self.x = generator.normal(0, 1, (2, 3, side, side)).astype(np.float32)

    def cfg(self, extra: int = 0, *, normalize: bool = True, end: str = "conv", head: bool = True) -> str:
        """Its cfg; kernels of stride 2 are `extra` larger."""
        sections = [f"[net]\nwidth={self.side}\nheight={self.side}\nchannels=3\n"]
        for number, (_, _, filters, size, stride, groups, activation) in enumerate(BLOCKS):
            wider = size + (extra if stride > 1 else 0)
            padding = {0: size // 2, 1: (size - 1) // 2, 2: size // 2 + 1}[wider - size]
            sections.append(
                f"[convolutional]\n{'batch_normalize=1' if normalize else ''}\nfilters={filters}\nsize = {wider} # k\n"
                f"stride={stride}\ngroups={groups}\n"
                f"{'pad=1' if wider // 2 == padding else f'padding={padding}'}\nactivation={activation}\n"
            )
            if number == len(BLOCKS) - 1:
                sections.append("[shortcut]\nfrom=-4\nactivation=linear\n")
        if head:
            last = "[convolutional]\nfilters=5\nsize=1" if end == "conv" else "[connected]\noutput=5"
            sections.append(f"[avgpool]\n\n{last}\nactivation=linear\n")
        return "\n".join(sections)

    def onnx(self, path: Path, *, fold: bool = False, explicit: bool = False) -> Path:
        """The model; `fold` puts batch normalisation into the convolutions, `explicit` writes SAME as pads."""
        tensors: list[onnx.TensorProto] = []
        nodes: list[onnx.NodeProto] = []

        def constant(name: str, array: Array) -> str:
            tensors.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
            return name

        def node(kind: str, inputs: list[str], **attributes: Any) -> str:
            nodes.append(onnx.helper.make_node(kind, inputs, [f"v{len(nodes)}"], **attributes))
            return f"v{len(nodes) - 1}"

        constant("zero", np.array(0)), constant("six", np.array(6))
        x, block, side = "x", "x", self.side
        for name, norm, _, size, stride, groups, activation in BLOCKS:
            if name.endswith("pw"):
                block = x
            total = max((-(-side // stride) - 1) * stride + size - side, 0) if self.same else size // 2 * 2
            side = -(-side // stride) if self.same else (side + total - size) // stride + 1
            pads: dict[str, Any] = {"pads": [total // 2] * 2 + [total - total // 2] * 2}
            if self.same and not explicit:
                pads = {"auto_pad": "SAME_UPPER"}
            weights, bias = self.state[f"{name}.weight"], self.state.get(f"{name}.bias")
            leaves = [self.state[f"{norm}.{leaf}"] for leaf in ("weight", "bias", "running_mean", "running_var")]
            if fold:
                scale, shift, mean, variance = (leaf.astype(np.float64) for leaf in leaves)
                factor = scale / np.sqrt(variance + self.epsilon)
                bias = shift + factor * ((0 if bias is None else bias) - mean)
                weights = weights * factor[:, None, None, None]
            arguments = [x, constant(f"{name}.weight", weights)]
            arguments += [] if bias is None else [constant(f"{name}.bias", bias)]
            x = node("Conv", arguments, strides=[stride] * 2, group=groups, **pads)
            if not fold:
                parameters = [constant(f"{norm}.{at}", leaf) for at, leaf in enumerate(leaves)]
                x = node("BatchNormalization", [x, *parameters], epsilon=self.epsilon)
            if activation == "relu6":
                x = node("Clip", [x, "zero", "six"])
        x = node("Add", [x, block])
        x = node("Flatten", [node("GlobalAveragePool", [x])])
        last = [constant(name, self.state[name]) for name in ("classifier.weight", "classifier.bias")]
        node("Gemm", [x, *last], transB=1)
        values = [onnx.helper.make_tensor_value_info(value, 1, None) for value in ("x", nodes[-1].output[0])]
        graph = onnx.helper.make_graph(nodes, "toy", values[:1], values[1:], tensors)
        onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=8), path)
        return path

    def expected(self, path: Path) -> Array:
        """What ONNX Runtime computes, in float64 where it can matter: (2, 5)."""
        ort = pytest.importorskip("onnxruntime")
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(self.onnx(path.with_suffix(".expected.onnx")).read_bytes(), options)
        output: Array = session.run(None, {"x": self.x})[0]
        return output

    def check(self, report: ImportReport, folder: Path) -> None:
        """The weights that were written compute the expected numbers, by the reference and by an engine."""
        import dnc

        expected = self.expected(folder / "toy")
        output = reference.run(Network.load(report.cfg, report.weights), self.x)[0].reshape(2, 5)
        bound = CLOSE * float(np.abs(expected).max())
        np.testing.assert_allclose(output, expected, rtol=0, atol=bound)
        engine = dnc.compile(report.cfg, report.weights, target="onnx", out=folder / "toy.engine")
        np.testing.assert_allclose(engine.forward(self.x)[0].reshape(2, 5), expected, rtol=0, atol=bound)


@pytest.fixture
def cfg(tmp_path: Path) -> Callable[[str], Path]:
    """Writes cfg text to in/net.cfg."""

    def write(text: str) -> Path:
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / "net.cfg").write_text(text, encoding="utf-8")
        return tmp_path / "in" / "net.cfg"

    return write


Cfg = Callable[[str], Path]


@pytest.mark.parametrize("end", ["conv", "connected"])
@pytest.mark.parametrize("kind", WRITERS)
def test_torch(tmp_path: Path, cfg: Cfg, kind: str, end: str) -> None:
    toy = Toy()
    report = import_weights(WRITERS[kind](tmp_path / "x", toy.state), cfg(toy.cfg(end=end)), tmp_path / "net.weights")
    assert report.written == (tmp_path / "net.weights",)
    assert (report.left, report.notes) == ((), ())
    assert [row.source for row in report.rows] == [name for name, *_ in BLOCKS] + ["classifier"]
    assert [row.done for row in report.rows] == [(f"batch normalisation '{norm}'",) for _, norm, *_ in BLOCKS] + [()]
    toy.check(report, tmp_path)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("epsilon", [1e-3, 1e-5, 1e-7])
def test_epsilon_and_bias(tmp_path: Path, cfg: Cfg, epsilon: float, bias: bool, normalize: bool) -> None:
    toy = Toy(epsilon=epsilon, bias=bias)
    source = zipped(tmp_path / "x", toy.state)
    text = toy.cfg(normalize=normalize)
    toy.check(import_weights(source, cfg(text), tmp_path / "net.weights", epsilon=epsilon), tmp_path)
    toy.check(import_weights(toy.onnx(tmp_path / "o"), cfg(text), tmp_path / "net.weights"), tmp_path)
    folded = import_weights(toy.onnx(tmp_path / "o", fold=True), cfg(text), tmp_path / "net.weights")
    toy.check(folded, tmp_path)


def test_numbers_are_exact(tmp_path: Path, cfg: Cfg) -> None:
    text = "[net]\nwidth=4\nheight=4\nchannels=1\n[convolutional]\nbatch_normalize=1\nfilters=3\nactivation=linear\n"
    state = {
        "c.weight": np.array([0.1, 0.2, 0.3], np.float32).reshape(3, 1, 1, 1),
        "b.weight": np.array([1, 2, 3], np.float32),
        "b.bias": np.array([4, 5, 6], np.float32),
        "b.running_mean": np.array([7, 8, 9], np.float32),
        "b.running_var": np.array([0.5, 0, 1e-6], np.float32),
    }
    source = zipped(tmp_path / "x", state)

    def arrays(epsilon: float) -> dict[str, Array]:
        report = import_weights(source, cfg(text), tmp_path / "net.weights", epsilon=epsilon)
        return dict(Network.load(report.cfg, report.weights).arrays[0])

    given = arrays(BATCH_NORM_EPSILON)
    for name, leaf in (
        ("weights", "c.weight"),
        ("scales", "b.weight"),
        ("biases", "b.bias"),
        ("mean", "b.running_mean"),
    ):
        np.testing.assert_array_equal(given[name], state[leaf])
    np.testing.assert_array_equal(given["variance"], state["b.running_var"])
    variance = state["b.running_var"].astype(np.float64)
    np.testing.assert_array_equal(arrays(1e-3)["variance"], (variance + (1e-3 - 1e-5)).astype(np.float32))
    given = arrays(1e-8)
    np.testing.assert_array_equal(given["variance"], np.array([0.5 + (1e-8 - 1e-5), 0, 0], np.float32))
    ratio = np.sqrt(1e-5 / (variance + 1e-8))
    np.testing.assert_array_equal(given["scales"], np.array([1, 2 * ratio[1], 3 * ratio[2]], np.float32))
    # By rounding in training; with its epsilon there is a root of it.
    state["b.running_var"] = np.array([0.5, -7e-44, -9e-6], np.float32)
    source = zipped(tmp_path / "x", state)
    given, variance = arrays(BATCH_NORM_EPSILON), state["b.running_var"].astype(np.float64)
    factor = given["scales"] / np.sqrt(given["variance"].astype(np.float64) + BATCH_NORM_EPSILON)
    np.testing.assert_allclose(factor, [1, 2, 3] / np.sqrt(variance + BATCH_NORM_EPSILON), rtol=1e-7)
    report = import_weights(source, cfg(text), tmp_path / "net.weights")
    assert "2 variances below zero" in report.rows[0].done
    with pytest.raises(WeightsError, match="has variance -9e-06 at 2, epsilon 1e-06"):
        arrays(1e-6)
    del state["b.running_var"], state["b.running_mean"], state["b.weight"], state["b.bias"]
    source = zipped(tmp_path / "x", state)
    given = arrays(1e-3)
    # Folded again, not a bit of the weights changes.
    factor = given["scales"] / np.sqrt(given["variance"].astype(np.float64) + BATCH_NORM_EPSILON)
    np.testing.assert_array_equal((given["weights"][:, 0, 0, 0] * factor).astype(np.float32), state["c.weight"].ravel())
    assert np.float32(given["variance"][0] + np.float32(1e-5)) == 1


@pytest.mark.parametrize("flag", ["dontloadscales=1", "flipped=1"])
def test_other_layouts_of_the_file(tmp_path: Path, cfg: Cfg, flag: str) -> None:
    toy = Toy(epsilon=1e-3)
    text = toy.cfg().replace("batch_normalize=1", f"batch_normalize=1\n{flag}")
    toy.check(
        import_weights(zipped(tmp_path / "x", toy.state), cfg(text), tmp_path / "a.weights", epsilon=1e-3), tmp_path
    )


@pytest.mark.parametrize("kind", [*WRITERS, "onnx", "onnx-explicit"])
@pytest.mark.parametrize("extra", [0, 1, 2])
@pytest.mark.parametrize("side", thinned([20, 22, 21, 23], 2))
def test_same_padding(tmp_path: Path, cfg: Cfg, side: int, extra: int, kind: str) -> None:
    toy = Toy(side, same=True)
    if kind in WRITERS:
        source = WRITERS[kind](tmp_path / "x", toy.state)
    else:
        source = toy.onnx(tmp_path / "x", explicit=kind != "onnx")
    given = cfg(toy.cfg(extra))
    sizes = [layer.shape[1:] for layer in Network.load(given).layers]
    half = [(side + 1) // 2, (side + 3) // 4]
    if (sizes[0], sizes[2]) != ((half[0],) * 2, (half[1],) * 2):
        # A kernel larger by one, on an odd side, leaves a row out: no weights mend that.
        with pytest.raises(WeightsError):
            import_weights(source, given, tmp_path / "net.weights", padding="same")
        assert not (tmp_path / "net.weights").exists()
        return
    report = import_weights(source, given, tmp_path / "net.weights", padding="same")
    toy.check(report, tmp_path)
    if report.cfg == given:
        assert not (tmp_path / "net.cfg").exists()
        return
    assert report.written == (tmp_path / "net.weights", tmp_path / "net.cfg")
    pairs = list(zip(given.read_text().splitlines(), report.cfg.read_text().splitlines(), strict=True))
    changed = [(before, after) for before, after in pairs if before != after]
    assert changed
    for before, after in changed:
        assert before.startswith(("size", "pad"))
        assert after.endswith("# k") == before.endswith("# k")


def test_padding_is_not_guessed(tmp_path: Path, cfg: Cfg) -> None:
    toy = Toy(20, same=True)
    with pytest.raises(WeightsError) as caught:
        import_weights(zipped(tmp_path / "x", toy.state), cfg(toy.cfg(1)), tmp_path / "net.weights")
    assert caught.value.message == (
        "layer 0 [convolutional] wants (8, 3, 4, 4), 'stem.0' of the source has (8, 3, 3, 3)"
    )
    assert "--padding same" in caught.value.hint
    with pytest.raises(WeightsError, match=r"size 3 pads by 1, 'stem.0' by 0, 0 before and 1, 1 after its 3 rows"):
        import_weights(toy.onnx(tmp_path / "o"), cfg(toy.cfg()), tmp_path / "net.weights")
    with pytest.raises(WeightsError, match="cannot hold the source's padding") as caught:
        import_weights(
            zipped(tmp_path / "x", toy.state), cfg(toy.cfg()), tmp_path / "in" / "net.weights", padding="same"
        )
    assert "-o" in caught.value.hint
    with pytest.raises(WeightsError, match="unknown padding 'valid'"):
        import_weights(tmp_path / "x", cfg(toy.cfg()), tmp_path / "net.weights", padding="valid")
    assert [path.name for path in tmp_path.iterdir() if path.suffix in (".weights", ".cfg")] == []


def test_the_cfg_is_adapted_in_every_spelling(tmp_path: Path, cfg: Cfg) -> None:
    head = "[net]\r\nwidth=8\r\nheight=8\r\nchannels=1\r\n"
    layers = (
        "size=3\r\npad=1\r\n",
        "size=3\r\npad=1\r\npadding=7\r\n",
        "size=3\r\npadding=1\r\n",
        "padding=1\r\nsize=3",
    )
    state = {"a.weight": np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)}
    source = zipped(tmp_path / "x", state)
    for layer in layers:
        given = cfg(f"{head}[convolutional]\r\n{layer}\r\nstride=2\r\nactivation=linear\r\n")
        report = import_weights(source, given, tmp_path / "net.weights", padding="same")
        network = Network.load(report.cfg, report.weights)
        expected = np.pad(state["a.weight"], ((0, 0), (0, 0), (1, 0), (1, 0)))
        np.testing.assert_array_equal(network.arrays[0]["weights"], expected)
        assert b"\n" not in report.cfg.read_bytes().replace(b"\r\n", b"")
    given = cfg(
        "[net]\nwidth=9\nheight=9\nchannels=1\n[convolutional]\nsize=2\nstride=2\npadding=1\nactivation=linear\n"
    )
    source = zipped(tmp_path / "x", {"a.weight": np.ones((1, 1, 2, 2), np.float32)})
    report = import_weights(source, given, tmp_path / "net.weights", padding="same")
    assert Network.load(report.cfg, report.weights).layers[0].shape == (1, 5, 5)


def test_half_a_checkpoint_and_wrong_shapes(tmp_path: Path, cfg: Cfg) -> None:
    toy = Toy()
    given, out = cfg(toy.cfg()), tmp_path / "net.weights"

    def error(state: dict[str, Array], write: Callable[..., Path] = zipped) -> WeightsError:
        with pytest.raises(WeightsError) as caught:
            import_weights(write(tmp_path / "x", state), given, out)
        assert not out.exists()
        return caught.value

    half = {name: array for name, array in toy.state.items() if name.startswith(("stem", "blocks.9"))}
    problem = error(half)
    assert (
        "layer 4 [convolutional] wants (16, 8, 1, 1), and nothing is left after 'blocks.9.conv_pwl'" in problem.message
    )
    assert "half a checkpoint" in problem.hint
    problem = error(half, safetensors)
    assert problem.message == "2 layers want (16, 8, 1, 1), layer 4 [convolutional] among them; the source has 1"
    wrong = {**toy.state, "blocks.9.conv_pw.weight": np.zeros((16, 4, 1, 1), np.float32)}
    for write in (zipped, safetensors):
        problem = error(wrong, write)
        assert "(16, 8, 1, 1)" in problem.message
        assert f"{given}:" in str(problem)
        assert "blocks.9.conv_pw" in str(problem)
        assert "(16, 4, 1, 1)" in str(problem)
    unnormalized = {name: array for name, array in toy.state.items() if not name.startswith("blocks.9.bn1")}
    unnormalized |= {f"other.{leaf}": toy.state[f"blocks.9.bn1.{leaf}"] for leaf in ("running_mean", "running_var")}
    wants = "layer 1 [convolutional] wants batch normalisation, and none follows 'blocks.9.conv_pw'"
    assert error(unnormalized).message == wants
    assert error(unnormalized, safetensors).message == "'blocks.9.bn2' could follow layer 1 or layer 2"
    assert "holds nan" in error({**toy.state, "classifier.bias": np.full(5, np.nan, np.float32)}).message
    negative = {**toy.state, "stem.1.running_var": np.full(8, -1, np.float32)}
    assert "'stem.1' of the source has variance -1 at 0" in error(negative).message
    assert "beyond float32" in error({**toy.state, "classifier.weight": np.full((5, 8), 1e300)}).message
    out.write_bytes(b"before")
    with pytest.raises(WeightsError):
        import_weights(zipped(tmp_path / "x", half), given, out)
    assert out.read_bytes() == b"before"


def convolutions(*names: str, size: int = 1) -> dict[str, Array]:
    """Convolutions of two channels, each of its own value."""
    return {f"{name}.weight": np.full((2, 2, size, size), n + 1, np.float32) for n, name in enumerate(names)}


TWO = """[net]
width=4
height=4
channels=2
[convolutional]
filters=2
activation=linear
[convolutional]
filters=2
activation=linear
"""


def test_what_is_ambiguous_is_refused_or_mapped(tmp_path: Path, cfg: Cfg) -> None:
    given, out = cfg(TWO), tmp_path / "net.weights"

    def names(write: Callable[..., Path], *names: str, pins: tuple[tuple[int, str], ...] = ()) -> list[str]:
        report = import_weights(write(tmp_path / "x", convolutions(*names)), given, out, pins=pins)
        network = Network.load(given, out)
        for row, arrays in zip(report.rows, network.arrays, strict=True):
            assert arrays["weights"].flat[0] == names.index(row.source) + 1
        return [row.source for row in report.rows]

    assert names(zipped, "b", "a") == ["b", "a"]
    with pytest.raises(WeightsError, match=r"layer 0 .*\(2, 2, 1, 1\), could be 'b' or 'down'") as caught:
        names(zipped, "b", "down", "a")
    assert "--map 0=b" in caught.value.hint
    assert names(zipped, "b", "down", "a", pins=((0, "b"), (1, "a"))) == ["b", "a"]
    assert names(zipped, "b", "a", pins=((0, "a"),)) == ["a", "b"]
    assert names(safetensors, "c10", "c9") == ["c9", "c10"]
    with pytest.raises(WeightsError, match="could be 'a' or 'b'"):
        names(safetensors, "b", "a")
    assert names(safetensors, "b", "a", pins=((1, "a"),)) == ["b", "a"]
    with pytest.raises(WeightsError, match="could be 'c1' or 'c2' or 'c3'"):
        names(safetensors, "c1", "c2", "c3")
    for pins, message in (
        (((7, "a"),), "layer 7 has no weights"),
        (((0, "c"),), "the source has no 'c'"),
        (((0, "a"), (0, "b")), "layer 0 is mapped twice"),
    ):
        with pytest.raises(WeightsError, match=message):
            names(zipped, "a", "b", pins=pins)
    with pytest.raises(WeightsError, match=r"layer 0 .* wants \(2, 2, 1, 1\), 'a' of the source has \(2, 2, 3, 3\)"):
        import_weights(zipped(tmp_path / "x", convolutions("a", "b", size=3)), given, out, pins=((0, "a"),))


def test_numbers_that_run_against_the_layers_are_refused(tmp_path: Path, cfg: Cfg) -> None:
    given = cfg(TWO.replace("filters=2", "filters=3", 1))
    state = {"c1.weight": np.ones((2, 3, 1, 1), np.float32), "c2.weight": np.ones((3, 2, 1, 1), np.float32)}
    source = safetensors(tmp_path / "x", state)
    with pytest.raises(WeightsError, match="'c1' comes before 'c2' by its name, layer 1 after it"):
        import_weights(source, given, tmp_path / "net.weights")
    assert len(import_weights(source, given, tmp_path / "net.weights", pins=((1, "c1"),)).rows) == 2


def test_batch_normalisations_that_are_layers(tmp_path: Path, cfg: Cfg) -> None:
    given = cfg(TWO + "[batchnorm]\n")
    norm = {f"n.{leaf}": np.array([1, 2], np.float32) for leaf in ("weight", "bias", "running_mean", "running_var")}
    for write in (zipped, safetensors):
        source = write(tmp_path / "x", {**convolutions("c1", "c2"), **norm})
        report = import_weights(source, given, tmp_path / "net.weights", epsilon=1e-3)
        assert [row.source for row in report.rows] == ["c1", "c2", "n"]
        arrays = Network.load(given, report.weights).arrays
        np.testing.assert_array_equal(arrays[0]["weights"], np.ones((2, 2, 1, 1)))
        np.testing.assert_array_equal(arrays[2]["biases"], [1, 2])
        np.testing.assert_array_equal(arrays[2]["variance"], np.array([1 + 99e-5, 2 + 99e-5], np.float32))
    with pytest.raises(WeightsError, match="lacks batch normalisations for layer 2"):
        import_weights(zipped(tmp_path / "x", convolutions("c1", "c2")), given, tmp_path / "net.weights")


def test_pinned_batch_normalisations(tmp_path: Path, cfg: Cfg) -> None:
    given = cfg(TWO.replace("filters", "batch_normalize=1\nfilters"))
    leaves = ("weight", "bias", "running_mean", "running_var")
    norms = {f"{name}.{leaf}": np.full(2, value, np.float32) for value, name in ((1, "y"), (2, "x")) for leaf in leaves}
    source = safetensors(tmp_path / "x", {**convolutions("c1", "c2"), **norms})
    with pytest.raises(WeightsError, match=r"the batch normalisation of layer 0 .* could be 'x' or 'y'"):
        import_weights(source, given, tmp_path / "net.weights")
    report = import_weights(source, given, tmp_path / "net.weights", pins=((0, "y"), (1, "x")))
    arrays = Network.load(given, report.weights).arrays
    assert [float(own["biases"][0]) for own in arrays] == [1, 2]


def test_strides_and_dilations_of_onnx(tmp_path: Path, cfg: Cfg) -> None:
    toy = Toy()
    with pytest.raises(WeightsError, match=r"layer 0 .* has strides \(1, 1\), 'stem.0' of the source \(2, 2\)"):
        import_weights(
            toy.onnx(tmp_path / "x"), cfg(toy.cfg().replace("stride=2", "stride=1", 1)), tmp_path / "n.weights"
        )


def test_shared_weights(tmp_path: Path, cfg: Cfg) -> None:
    shared = (
        TWO.replace("activation=linear\n[conv", "activation=linear\nsize=3\npad=1\n[conv") + "share_index=0\nsize=3\n"
    )
    state = convolutions("a", size=3)
    given, out = cfg(shared + "pad=1\n"), tmp_path / "net.weights"
    assert [row.source for row in import_weights(zipped(tmp_path / "x", state), given, out, padding="same").rows] == [
        "a"
    ]
    with pytest.raises(WeightsError, match="layer 1 shares the weights of layer 0, but pads otherwise"):
        import_weights(zipped(tmp_path / "x", state), cfg(shared), out, padding="same")


def test_cutoff(tmp_path: Path, cfg: Cfg) -> None:
    toy = Toy()
    full = import_weights(zipped(tmp_path / "x", toy.state), cfg(toy.cfg()), tmp_path / "net.weights")
    detector = toy.cfg(head=False) + "\n[convolutional]\nfilters=21\nsize=3\npad=1\nactivation=linear\n"
    for text in (toy.cfg(), detector):
        for write in (zipped, legacy, safetensors):
            source = write(tmp_path / "x", toy.state)
            report = import_weights(source, cfg(text), tmp_path / "part.weights", cutoff=4)
            assert len(report.rows) == 4
            assert report.left[-1] == "classifier" or write is safetensors
            part = report.weights.read_bytes()
            assert part == full.weights.read_bytes()[: len(part)]
            Network.load(report.cfg, report.weights, cutoff=4)
    with pytest.raises(CfgError, match="--cutoff 99"):
        import_weights(source, cfg(text), tmp_path / "part.weights", cutoff=99)


def test_layers_that_nothing_is_imported_into(tmp_path: Path, cfg: Cfg) -> None:
    text = TWO + "[lstm]\noutput=2\n"
    source = zipped(tmp_path / "x", convolutions("a", "b"))
    with pytest.raises(WeightsError, match=r"import does not know \[lstm\]") as caught:
        import_weights(source, cfg(text), tmp_path / "net.weights")
    assert "--cutoff 2" in caught.value.hint
    assert len(import_weights(source, cfg(text), tmp_path / "net.weights", cutoff=2).rows) == 2


def test_what_is_recorded(tmp_path: Path, cfg: Cfg) -> None:
    source, given, out = zipped(tmp_path / "x", convolutions("a", "b")), cfg(TWO), tmp_path / "net.weights"
    record = tmp_path / "net.preprocess.json"
    report = import_weights(source, given, out, mean=(0.5,), std=(0.25, 0.5), crop=0.875, color="rgb")
    assert report.written == (out, record)
    assert json.loads(record.read_text()) == {"mean": [0.5], "std": [0.25, 0.5], "crop": 0.875, "color": "rgb"}
    first = out.read_bytes()
    # What is recorded of older weights does not hold for new ones.
    import_weights(source, given, out)
    assert json.loads(record.read_text()) == {}
    assert out.read_bytes() == first
    out.unlink()
    with pytest.raises(DncError, match="crop"):
        import_weights(source, given, out, crop=8.0)
    assert not out.exists()


def test_sources_are_not_overwritten(tmp_path: Path, cfg: Cfg) -> None:
    source, given = zipped(tmp_path / "x", convolutions("a", "b")), cfg(TWO)
    for out in (source, given):
        before = out.read_bytes()
        with pytest.raises(WeightsError, match="would overwrite"):
            import_weights(source, given, out)
        assert out.read_bytes() == before


def test_the_report(tmp_path: Path, cfg: Cfg) -> None:
    state = {**convolutions("a", "b"), "extra": np.ones(3, np.float32)}
    report = import_weights(zipped(tmp_path / "x", state), cfg(TWO), tmp_path / "net.weights")
    assert report.left == ("extra",)
    assert json.loads(json.dumps(report.to_json()))["layers"][1] == {
        "layer": 1,
        "section": "convolutional",
        "shape": [2, 2, 1, 1],
        "source": "b",
        "source_shape": [2, 2, 1, 1],
        "done": ["no bias: zeros"],
    }
    assert " ".join(report.table().text().splitlines()[2].split()) == "1 convolutional 2x2x1x1 b 2x2x1x1 no bias: zeros"


def test_mobilenetv2_of_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    nn = torch.nn

    def unit(inputs: int, outputs: int, size: int = 1, stride: int = 1, groups: int = 1, active: bool = True) -> Any:
        conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), *[nn.ReLU6()] * active)

    class Block(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
            super().__init__()
            hidden = inputs * expand
            self.residual = stride == 1 and inputs == outputs
            first = [unit(inputs, hidden)] if expand > 1 else []
            last = [nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
            self.conv = nn.Sequential(*first, unit(hidden, hidden, 3, stride, hidden), *last)

        def forward(self, x: Any) -> Any:
            return x + self.conv(x) if self.residual else self.conv(x)

    torch.manual_seed(0)
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    parts, channels = [unit(3, 32, 3, 2)], 32
    for expand, outputs, repeats, stride in stages:
        for number in range(repeats):
            parts.append(Block(channels, outputs, stride if number == 0 else 1, expand))
            channels = outputs
    features = nn.Sequential(*parts, unit(320, 1280))
    model = nn.Module()
    model.features, model.classifier = features, nn.Sequential(nn.Dropout(), nn.Linear(1280, 1000))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor, low, high in ((module.weight, 0.8, 1.2), (module.bias, -0.5, 0.5)):
                    tensor.uniform_(low, high)
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 1.5)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        model.eval()
        x = torch.randn(1, 3, 224, 224)
        expected = model.classifier(features(x).mean((2, 3))).numpy()
    torch.save(model.state_dict(), tmp_path / "new.pth")
    torch.save(model.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    computed = []
    for name in ("new.pth", "old.pth"):
        report = import_weights(tmp_path / name, "mobilenetv2", tmp_path / f"{name}.weights")
        network = Network.load(find_cfg("mobilenetv2"), report.weights)
        maps = dict(reference.run_all(network, x.numpy()))
        computed.append(maps[report.rows[-1].layer].reshape(1, 1000))
        # 53 layers in float32; relative to the largest output.
        np.testing.assert_allclose(computed[-1], expected, rtol=0, atol=1e-4 * float(np.abs(expected).max()))
    np.testing.assert_array_equal(computed[0], computed[1])


def test_lenient_takes_what_is_no_number(tmp_path: Path, cfg: Cfg) -> None:
    """As a .weights file that holds it: each is a warning that names it."""
    text = "[net]\nwidth=4\nheight=4\nchannels=1\n[convolutional]\nbatch_normalize=1\nfilters=2\nactivation=linear\n"
    state = {
        "c.weight": np.array([np.nan, 2], np.float32).reshape(2, 1, 1, 1),
        "b.weight": np.array([1, 1], np.float32),
        "b.bias": np.array([4, 5], np.float32),
        "b.running_mean": np.array([7, 8], np.float32),
        "b.running_var": np.array([1, -1], np.float32),
    }
    source = zipped(tmp_path / "x", state)
    with pytest.raises(WeightsError, match="has variance -1 at 1"):
        import_weights(source, cfg(text), tmp_path / "net.weights")
    with pytest.warns(DncWarning) as caught:
        report = import_weights(source, cfg(text), tmp_path / "net.weights", lenient=True)
    messages = " ".join(str(warning.message) for warning in caught)
    assert "'c.weight' of the source holds nan at [0, 0, 0, 0]" in messages
    assert "has variance -1 at 1" in messages
    with pytest.warns(DncWarning):
        (arrays,) = Network.load(report.cfg, report.weights, lenient=True).arrays
    np.testing.assert_array_equal(arrays["weights"].ravel(), state["c.weight"].ravel())
