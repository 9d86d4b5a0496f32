"""dnc info: Darknet's table and totals, and what an engine says about itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import dnc
from dnc.cli import _report
from dnc.graph.quantization import Range
from dnc.quantization.calibration import Calibration
from dnc.runtime.package import package
from tests.conftest import Result
from tests.networks import write_network

Command = Callable[..., Result]


def test_table(command: Command, engines: Path) -> None:
    result = command("info", engines / "tiny.cfg", "--weights", engines / "tiny.weights")
    assert (result.code, result.err) == (0, "")
    # 8 * (4 + 27) + 14 * (1 + 8) = 374 floats after a header of 20 bytes.
    assert result.out == (
        "layer  type           filters  size/stride                 input      output  BFLOPs\n"
        "    0  convolutional        8  3 x 3 / 2             16 x 16 x 3   8 x 8 x 8   0.000\n"
        "    1  convolutional       14  1 x 1 / 1               8 x 8 x 8  8 x 8 x 14   0.000\n"
        "    2  yolo                    2 anchors, 2 classes   8 x 8 x 14  8 x 8 x 14\n"
        "3 layers, 374 parameters, 0.000 BFLOPs, 1,516 bytes of weights\n"
    )
    assert (engines / "tiny.weights").stat().st_size == 1516
    assert command("info", engines / "tiny.cfg").out == result.out


def test_published_networks_go_by_name(command: Command) -> None:
    result = command("info", "yolov3-tiny")
    assert result.out.splitlines()[-1] == ("24 layers, 8,858,734 parameters, 5.571 BFLOPs, 35,434,956 bytes of weights")


def test_json(command: Command, engines: Path) -> None:
    result = command("info", engines / "tiny.cfg", "--json", "--cutoff", 2)
    info = json.loads(result.out)
    assert info["input"] == [3, 16, 16]
    assert (info["parameters"], info["outputs"], info["weights_bytes"]) == (374, [1], 1516)
    assert info["layers"][0] == {
        "index": 0,
        "type": "convolutional",
        "line": 6,
        "settings": "8  3 x 3 / 2",
        "sources": [-1],
        "output": [8, 8, 8],
        "parameters": 248,
        "bflops": 2 * 27 * 8 * 64 / 1e9,
        "bit_operations": 0,
    }
    assert info["bflops"] == pytest.approx(sum(layer["bflops"] for layer in info["layers"]))


def test_operations_on_bits_are_told_apart(command: Command, tmp_path: Path) -> None:
    """Darknet divides those of xnor=1 by 32 and adds them to the others."""
    path = write_network(
        tmp_path,
        "bits",
        "[net]\nwidth=100\nheight=100\nchannels=3\n"
        "[convolutional]\nfilters=64\nactivation=linear\n"
        "[convolutional]\nfilters=100\nsize=3\npad=1\nxnor=1\nactivation=linear\n",
    )
    lines = command("info", path).out.splitlines()
    assert lines[0].split()[-3:] == ["output", "BFLOPs", "BOPs"]
    assert lines[1].split()[-1] == "0.004"
    # 2 * 64 * 9 * 100 * 100^2 = 1.152e9 of one bit; 2 * 3 * 64 * 100^2 = 3.84e6 of floats.
    assert lines[2].split()[-2:] == ["0.036", "1.152"]
    assert "0.004 BFLOPs + 1.152 BOPs (for Darknet 0.040 BFLOPs)" in lines[-1]
    info = json.loads(command("info", path, "--json").out)
    assert info["bit_operations"] == 1.152e9
    assert [layer["bit_operations"] for layer in info["layers"]] == [0, 1.152e9]
    assert info["bflops"] == pytest.approx(0.00384 + 0.036)
    assert info["float_operations"] == pytest.approx(3.84e6)
    engine = dnc.compile(path, target="onnx", out=tmp_path / "e", verify=False)
    assert engine.manifest.network["bit_operations"] == 1.152e9
    assert "0.004 BFLOPs + 1.152 BOPs" in command("info", tmp_path / "e").out


def test_weights_are_checked(command: Command, engines: Path) -> None:
    result = command("info", engines / "features.cfg", "-w", engines / "vector.weights")
    assert (result.code, result.out) == (1, "")
    assert "the weights are 4.3 times too short: they end within layer 0" in result.err


def test_lenient(command: Command, tmp_path: Path) -> None:
    cfg = tmp_path / "x.cfg"
    cfg.write_text("[net]\nwidth=8\nheight=8\nchannels=3\n[convolutional]\nfilters=2\nactivation=qqq\n", "utf-8")
    assert command("info", cfg).code == 1
    result = command("info", cfg, "--lenient")
    assert result.code == 0
    assert result.err.startswith("dnc: warning: ")


def test_engine(command: Command, engines: Path) -> None:
    folder = engines / "tiny.engine"
    result = command("info", folder)
    assert (result.code, result.err) == (0, "")
    facts = dict(line.split("  ", 1) for line in result.out.splitlines() if not line.startswith(" "))
    facts = {key: value.strip() for key, value in facts.items()}
    assert facts["engine"].startswith(f"{folder}, 0.0 MB")
    assert facts["target"] == "onnx"
    assert facts["network"] == "tiny.cfg, 3 layers, 374 parameters, 0.000 BFLOPs"
    assert facts["input"] == "float32 (N, 3, 16, 16)"
    assert facts["preprocessing"] == "resize to 16 x 16, rgb, pixel / 255"
    assert facts["outputs"] == "layer002 (14, 8, 8)"
    assert facts["heads"].startswith("yolo: 2 classes, tiny.cfg:")
    assert facts["labels"] == "2: cat, black dog"
    assert "fold-batchnorm x1" in facts["passes"]
    assert facts["made with"].startswith("dnc ")
    info = json.loads(command("info", folder, "--json").out)
    assert info["labels"] == ["cat", "black dog"]
    assert info["target"] == "onnx"
    assert info["bytes"] == sum(path.stat().st_size for path in folder.iterdir())


def test_package(command: Command, engines: Path, tmp_path: Path) -> None:
    file = package(engines / "tiny.engine", tmp_path / "tiny.dnc")
    of_folder, of_file = (json.loads(command("info", what, "--json").out) for what in (engines / "tiny.engine", file))
    assert of_file == {**of_folder, "folder": str(file), "bytes": file.stat().st_size}
    file.write_bytes(b"PK")
    assert "not an engine" in command("info", file).err


def test_engine_on_vectors(command: Command, engines: Path) -> None:
    out = command("info", engines / "vector.engine").out
    assert "float32 (N, 7)" in out
    assert "none: the network takes no images" in out
    assert "classifier: 3 classes" in out


@pytest.fixture
def table(command: Command, folder: Path) -> Path:
    """calibration.json of tiny, on the photographs, with t.txt and cache."""
    exports = ("--export", "darknet", "t.txt", "--export", "tensorrt", "cache")
    result = command("calibrate", "tiny.cfg", "-n", 2, "--method", "minmax", *exports, "-o", "calibration.json")
    assert result.code == 0
    return folder


def test_calibration(command: Command, table: Path) -> None:
    result = command("info", "calibration.json")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[:4] == [
        "calibration    calibration.json, 4 ranges",
        "method         minmax, asymmetric",
        "images         2 of obj.data",
        "preprocessing  resize to 16 x 16, rgb, pixel / 255",
    ]
    assert lines[4].startswith("network        sha256 ")
    assert lines[5].split() == ["value", "low", "high", "lowest", "seen", "highest", "seen", "cut"]
    assert [line.split()[0] for line in lines[6:]] == ["input", "layer000", "layer001", "layer002"]
    # minmax cuts nothing.
    assert all(line.split()[-1] == "0" for line in lines[6:])
    info = json.loads(command("info", "calibration.json", "--json").out)
    assert (info.pop("file"), info.pop("belongs")) == ("calibration.json", None)
    assert info == json.loads((table / "calibration.json").read_text(encoding="utf-8"))


def test_calibration_and_its_network(command: Command, table: Path) -> None:
    lines = command("info", "calibration.json", "--cfg", "tiny.cfg").out.splitlines()
    assert lines[5] == "               that of tiny.cfg"
    assert lines[8].split()[:2] == ["layer000", "convolutional"]
    other = (table / "tiny.cfg").read_text(encoding="utf-8") + "\n# another\n"
    (table / "other.cfg").write_text(other, encoding="utf-8")
    result = command("info", "calibration.json", "--cfg", "other.cfg", "-w", "tiny.weights")
    assert (result.code, "not that of other.cfg" in result.out) == (0, True)
    arguments = ("info", "calibration.json", "--cfg", "other.cfg", "-w", "tiny.weights", "--json")
    assert json.loads(command(*arguments).out)["belongs"] is False


@pytest.mark.parametrize(
    ("file", "own", "names"),
    [
        ("t.txt", ["convolution 0", "convolution 1"], ["input", "layer000"]),
        ("cache", ["input", "layer000", "layer001", "layer002"], ["input", "layer000", "layer001", "layer002"]),
    ],
)
def test_tables_of_others(command: Command, table: Path, file: str, own: list[str], names: list[str]) -> None:
    """By their own names, or those of a network."""
    calibration = json.loads((table / "calibration.json").read_text(encoding="utf-8"))
    for more, expected in (((), own), (("--cfg", "tiny.cfg"), names)):
        result = command("info", file, *more)
        assert (result.code, result.err) == (0, "")
        assert "the table names none" in result.out
        info = json.loads(command("info", file, *more, "--json").out)
        assert (list(info["ranges"]), info["belongs"]) == (expected, None)
        ends = calibration["ranges"]["input"]
        first = info["ranges"][expected[0]]
        assert first["threshold"] == pytest.approx(max(-ends["low"], ends["high"]), rel=1e-6)


def test_sketch() -> None:
    """Brackets where a range ends; what it cuts is beyond them. An older calibration has neither."""
    histogram = {"below": 512, "above": 1536, "width": 0.5, "values": 100, "cut": 7, "sketch": "1 0 3 40 0 0 0 8"}
    # 8 parts of 128: from -256 to 768.
    assert _report._sketch(histogram, Range(-128.0, 512.0)) == "▂[ ▃█  ] ▅"
    assert _report._cut(histogram) == "7.0000 %"
    assert _report._sketch({"bins": 12}, Range(0, 1)) == _report._cut({"bins": 12}) == ""


@pytest.mark.parametrize(
    "change",
    [
        {"histograms": {"input": 3}},
        {"histograms": {"input": {"sketch": "1 x", "bins": 3, "width": 1}}},
        {"histograms": {"input": {"sketch": "9" * 5000, "bins": 3, "width": 1, "cut": -1, "values": 0}}},
        {"histograms": {"input": {"sketch": "1 2", "bins": 3, "width": 0}}},
        {"histograms": {"input": {"sketch": [1], "bins": "3", "below": None, "width": 1e308}}},
        {"images": {"skipped": 3, "source": [1]}, "histograms": {}},
    ],
)
def test_nonsense_of_calibrations(command: Command, table: Path, change: dict[str, object]) -> None:
    path = table / "calibration.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    calibration = Calibration.read(path)
    assert command("info", path).code == 0
    for name, known in calibration.ranges.items():
        histogram = calibration.histograms.get(name, {})
        if isinstance(histogram, dict):
            assert _report._sketch(histogram, known) == ""


def test_preprocessing_that_is_none(command: Command, table: Path) -> None:
    path = table / "calibration.json"
    values = {**json.loads(path.read_text(encoding="utf-8")), "preprocessing": {"mode": "x"}}
    path.write_text(json.dumps(values), encoding="utf-8")
    result = command("info", path)
    assert (result.code, "unusable preprocessing" in result.err) == (1, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ("calibration.json", "-w", "tiny.weights"),
        ("tiny.cfg", "--cfg", "tiny.cfg"),
        ("cache", "--cutoff", "1"),
        ("cache", "--width", "8"),
    ],
)
def test_options_of_calibrations(command: Command, table: Path, arguments: tuple[str, ...]) -> None:
    assert command("info", *arguments).code == 2


def test_what_is_neither(command: Command, engines: Path, tmp_path: Path) -> None:
    assert "cannot read the cfg" in command("info", tmp_path / "none").err
    assert "did you mean 'yolov4-tiny'?" in command("info", "yolov4-tinny.cfg").err
    assert "`dnc zoo networks`" in command("info", "none").err
    assert "hint: check the path\n" in command("info", tmp_path / "yolov4-tinny.cfg").err
    assert "the folder has no engine.json" in command("info", tmp_path).err
    assert "binary data" in command("info", engines / "tiny.weights").err
    for option in ("--cutoff", "--width"):
        result = command("info", engines / "tiny.engine", option, "1")
        assert result.code == 2
        assert f"{option} is for a cfg" in result.err
