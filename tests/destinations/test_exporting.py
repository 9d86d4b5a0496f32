"""`dnc.export` and `dnc export`: what is compiled, where it is written, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

import dnc
from dnc.compiler.options import CompileOptions
from dnc.destinations import destinations, find
from dnc.destinations.base import Export
from dnc.errors import BundleError, DestinationError, DncError, WeightsError
from dnc.runtime.engine import Engine
from dnc.runtime.manifest import Writer, read_manifest
from dnc.runtime.package import package
from tests.destinations.networks import NETWORKS

Engines = Callable[[str], Engine]
Command = Callable[..., Any]


def test_destinations_are_classes_with_what_the_help_says() -> None:
    for name, kind in destinations.items():
        assert name == kind.name
        assert kind.summary
        assert kind({}).options.keys() == {option.name for option in kind.known_options}


@pytest.mark.parametrize(
    ("name", "hint"), [("yolov8", "'ultralytics'"), ("ultralytic", "'ultralytics'"), ("x", "one of")]
)
def test_unknown(name: str, hint: str) -> None:
    with pytest.raises(DestinationError, match=f"unknown destination '{name}'") as caught:
        find(name)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("name", "given", "message", "hint"),
    [
        ("frigate", {"batch": 4}, "takes batches of 4, and Frigate runs images one by one", "leave --batch out"),
        ("ovms", {"batch": 4}, "takes batches of 4, and a request has one image", "leave --batch out"),
        ("nnarchive", {"batch": 4, "target": "onnx"}, "batches of 4, and a camera gives one", "leave --batch out"),
        ("nnarchive", {"precision": "bf16", "target": "onnx"}, "knows no weights in bf16", "--precision fp16"),
        ("opencv", {"precision": "fp16"}, "OpenCV reads float32, and no fp16", "leave --precision out"),
        ("deepstream", {"precision": "bf16", "target": "onnx"}, "no mode for bf16", "--precision fp16"),
        (
            "deepstream",
            {"precision": "fp16", "target": "onnx", "calibration": "c.json"},
            "a calibration is for a model of float32",
            "leave --precision out",
        ),
        (
            "deepstream",
            {"options": {"tensorrt": "11.0.0"}, "target": "onnx", "calibration": "c.json"},
            "TensorRT 11.0.0 reads no calibrations",
            "--precision int8",
        ),
        ("triton", {"options": {"accelerator": "tensorrt", "kind": "cpu"}}, "contradicts kind=cpu", "for GPUs"),
        ("triton", {"options": {"kind": "gpu"}, "target": "openvino"}, "for ONNX Runtime", "target onnx"),
        *(
            (name, {"decode": "graph"}, "--decode graph made of its heads", "leave --decode out")
            for name in destinations
        ),
        *((name, {"input": "u8"}, "takes pixels", "leave --input out") for name in destinations if name != "ovms"),
    ],
)
def test_what_it_cannot_take_is_said_before_compiling(
    name: str,
    given: dict[str, Any],
    message: str,
    hint: str,
    write: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def compiled(*_: object) -> Engine:
        raise AssertionError("it was compiled")

    monkeypatch.setattr("dnc.destinations.exporting.compile_engine", compiled)
    monkeypatch.setattr("dnc.targets.Selectable.missing", lambda self: "")
    monkeypatch.setattr("dnc.targets.Target.missing", lambda self: "")
    monkeypatch.setattr("dnc.targets.myriad.Myriad.missing", lambda self: "")
    cfg = write("tiny")
    with pytest.raises(DestinationError, match=message) as caught:
        dnc.export(cfg, name, tmp_path / "out", **given)
    assert hint in caught.value.hint
    assert str(caught.value.where) in (str(cfg), "c.json")


def test_of_an_engine_the_hint_is_how_it_is_compiled(engine: Engines, tmp_path: Path) -> None:
    with pytest.raises(DestinationError, match="takes batches of 4") as caught:
        dnc.export(engine("batch_4").folder, "frigate", tmp_path / "out")
    assert caught.value.hint == "compile it without --batch, or name the cfg in place of the engine"


def test_they_are_listed(command: Command) -> None:
    code, out, _ = command("export", "--list")
    assert code == 0
    assert all(f"\n {name} " in out or f"\n{name} " in out for name in destinations)


def test_a_cfg_is_compiled_on_the_way(write: Callable[..., Path], tmp_path: Path, command: Command) -> None:
    cfg = write("tiny")
    code, out, err = command("export", cfg, "--for", "yolov5", "-o", tmp_path / "out", "--json")
    assert (code, err) == (0, "")
    made = json.loads(out)
    assert (made["network"], made["destination"], made["path"]) == ("tiny", "yolov5", str(tmp_path / "out"))
    assert set(made["files"]) == {"README.md", "export.json", "tiny.onnx"}
    assert {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()} == made["files"]
    assert not list(tmp_path.glob("*.engine"))
    # As of the engine, and once more in the same place.
    dnc.compile(cfg, None, "onnx", tmp_path / "tiny.engine")
    before = (tmp_path / "out" / "tiny.onnx").read_bytes()
    assert dnc.export(tmp_path / "tiny.engine", "yolov5", tmp_path / "out") == tmp_path / "out"
    assert (tmp_path / "out" / "tiny.onnx").read_bytes() == before


def test_one_file(engine: Engines, tmp_path: Path) -> None:
    out = tmp_path / "net.onnx"
    assert dnc.export(engine("yolo").folder, "yolov5", out) == out
    dnc.export(engine("yolo").folder, "yolov5", tmp_path / "folder")
    assert out.read_bytes() == (tmp_path / "folder" / "yolo.onnx").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"net.onnx", "folder"}


def test_a_package(engine: Engines, tmp_path: Path) -> None:
    file = package(engine("yolo").folder, tmp_path / "yolo.dnc")
    one = dnc.export(file, "yolov5", tmp_path / "one.onnx")
    other = dnc.export(engine("yolo").folder, "yolov5", tmp_path / "other.onnx")
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("name", "called"),
    [
        ("client.py", "client_py"),
        ("README.md", "README_md"),
        ("yolo-fastest-1.1-xl", "yolo-fastest-1.1-xl"),
        ("-a b.c d", "a_b_c_d"),
        ("..", "network"),
    ],
)
def test_names_are_like_no_files(engine: Engines, name: str, called: str) -> None:
    manifest = dataclasses.replace(engine("yolo").manifest, name=name)
    assert Export(SimpleNamespace(manifest=manifest)).name == called  # type: ignore[arg-type]


def test_files_beside_a_folder_of_the_networks_name(write: Callable[..., Path], tmp_path: Path) -> None:
    cfg = write("client.py", NETWORKS["one_class"].cfg)
    out = dnc.export(cfg, "triton", tmp_path / "out", verify=False)
    assert (out / "client.py").is_file()
    assert (out / "client_py" / "config.pbtxt").is_file()


def test_a_name_as_long_as_a_name_can_be(write: Callable[..., Path], tmp_path: Path) -> None:
    """NAME.preprocess.json, which need not be there, would be longer."""
    cfg = write("x" * 245, NETWORKS["one_class"].cfg)
    weights = cfg.with_suffix(".weights").rename(tmp_path / "short.weights")
    dnc.export(cfg, "opencv", tmp_path / "net.onnx", weights=weights, verify=False)
    with pytest.raises(WeightsError, match="no weights beside the cfg"):
        dnc.export(cfg, "opencv", tmp_path / "net.onnx")


def test_the_engine_itself_is_not_written_over(engine: Engines, tmp_path: Path) -> None:
    folder = tmp_path / "engine"
    shutil.copytree(engine("yolo").folder, folder)
    before = (folder / "model.onnx").read_bytes()
    with pytest.raises(DncError, match="a file of an engine stands in the way"):
        dnc.export(folder, "opencv", folder / "model.onnx")
    assert (folder / "model.onnx").read_bytes() == before


def test_suffixes_in_capitals(engine: Engines, tmp_path: Path) -> None:
    assert dnc.export(engine("yolo").folder, "yolov5", tmp_path / "NET.ONNX").is_file()
    with pytest.raises(DestinationError, match=r"triton does not write a file NET\.ONNX"):
        dnc.export(engine("yolo").folder, "triton", tmp_path / "NET.ONNX")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda out: (out / "mine.txt").write_text("x"), "mine.txt, which is not of the export there"),
        (lambda out: (out / "README.md").write_text("mine"), "README.md, which was changed since it was exported"),
        (lambda out: (out / "export.json").write_text('{"files": [1], "destination": "yolov5"}'), "which is damaged"),
        (lambda out: (out / "README.md").unlink() or (out / "README.md").symlink_to(out / "yolo.onnx"), "was changed"),
        (lambda out: (out / "export.json").unlink(), "README.md in a folder without export.json"),
        (lambda out: (out / "export.json").write_text("{"), "export.json, which is damaged"),
    ],
)
def test_what_is_not_an_export_stays(
    engine: Engines, tmp_path: Path, change: Callable[[Path], object], found: str
) -> None:
    out = tmp_path / "out"
    dnc.export(engine("yolo").folder, "yolov5", out)
    change(out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(DestinationError, match="something stands in the way") as caught:
        dnc.export(engine("yolo").folder, "yolov5", out)
    assert found in caught.value.message
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_another_destinations_export_stays(engine: Engines, tmp_path: Path) -> None:
    dnc.export(engine("yolo").folder, "yolov5", tmp_path / "out")
    with pytest.raises(DestinationError, match="an export for yolov5"):
        dnc.export(engine("yolo").folder, "ultralytics", tmp_path / "out")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DestinationError, match="in the way: a file"):
        dnc.export(engine("yolo").folder, "ultralytics", tmp_path / "file")


def test_options_of_the_compiler_are_for_a_cfg(engine: Engines, tmp_path: Path, command: Command) -> None:
    folder = engine("yolo").folder
    for given in (
        {"batch": 1},
        {"weights": "a.weights"},
        {"options": {"precision": "fp16"}},
        {"calibration": "c.json"},
    ):
        with pytest.raises(
            DestinationError, match=f"{next(iter(given)) if 'options' not in given else 'precision'} is"
        ):
            dnc.export(folder, "yolov5", tmp_path / "out", **given)
    code, _, err = command("export", folder, "--for", "yolov5", "--batch", "1", "-o", tmp_path / "out")
    assert code == 2
    assert "--batch is for a cfg" in err
    code, _, err = command("export", folder, "--for", "yolov5", "--option", "x=1", "-o", tmp_path / "out")
    assert code == 1
    assert "destination yolov5 has no option 'x'" in err
    assert not list(tmp_path.iterdir())


def test_thresholds_are_shares(engine: Engines, tmp_path: Path) -> None:
    with pytest.raises(DestinationError, match="confidence=2 is not from 0 to 1"):
        dnc.export(engine("yolo").folder, "yolov5", tmp_path / "out", confidence=2)
    with pytest.raises(DestinationError, match="iou=nan"):
        dnc.export(engine("yolo").folder, "yolov5", tmp_path / "out", iou=float("nan"))


def test_engines_of_other_targets(write: Callable[..., Path], tmp_path: Path) -> None:
    cfg = write("tiny")
    with pytest.raises(DestinationError, match="yolov5 takes engines of target onnx, not of openvino") as caught:
        dnc.export(cfg, "yolov5", tmp_path / "out", target="openvino")
    assert caught.value.hint == "compile it with --target onnx"
    with pytest.raises(DestinationError, match="not of cpu"):
        # Whose choice would be a matter of chance.
        dnc.export(cfg, "yolov5", tmp_path / "out", target="cpu")
    pytest.importorskip("openvino")
    engine = dnc.compile(cfg, None, "openvino", tmp_path / "engine", verify=False)
    file = package(engine.folder, tmp_path / "net.dnc")
    for given in (engine.folder, file):
        with pytest.raises(DestinationError, match="yolov5 takes engines of target onnx, not of openvino") as caught:
            dnc.export(given, "yolov5", tmp_path / "out")
        assert caught.value.where == given
    assert not (tmp_path / "out").exists()


def test_the_target_is_the_destinations() -> None:
    assert CompileOptions.target != find("yolov5").target


def test_damaged_engines(engine: Engines, tmp_path: Path) -> None:
    folder = tmp_path / "engine"
    shutil.copytree(engine("yolo").folder, folder)
    model = folder / "model.onnx"
    model.write_bytes(model.read_bytes()[:-10])
    with pytest.raises(DncError, match="bytes, not"):
        dnc.export(folder, "yolov5", tmp_path / "out")
    with pytest.raises(DncError, match="the file does not exist"):
        dnc.export(tmp_path / "nothing.dnc", "yolov5", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _renamed(name: str, value: str) -> Callable[[onnx.ModelProto], object]:
    return lambda model: setattr(getattr(model.graph, name)[0], "name", value)


@pytest.mark.parametrize(
    ("change", "manifest", "message"),
    [
        (_renamed("input", "other"), {}, "cannot be read"),
        (_renamed("output", "other"), {}, "cannot be read"),
        (lambda model: model.graph.ClearField("output"), {}, "layer002 has the shape None"),
        (lambda model: model.Clear(), {}, "cannot be read"),
        (lambda model: None, {"anchors": ()}, "output 'layer002' of shape"),
    ],
)
@pytest.mark.parametrize("name", ["yolov5", "opencv"])
def test_models_that_are_not_of_their_engine(
    engine: Engines,
    tmp_path: Path,
    name: str,
    change: Callable[[onnx.ModelProto], object],
    manifest: dict[str, Any],
    message: str,
) -> None:
    """With right digests: made so."""
    folder = tmp_path / "engine"
    shutil.copytree(engine("yolo").folder, folder)
    given = read_manifest(folder)
    model = onnx.load(folder / "model.onnx")
    change(model)
    onnx.save(model, folder / "model.onnx")
    (folder / "engine.json").unlink()
    (folder / "labels.txt").unlink(missing_ok=True)
    first, *others = given.heads
    heads = (dataclasses.replace(first, **manifest), *others)
    Writer(folder).finish(dataclasses.replace(given, heads=heads))
    with pytest.raises(BundleError, match=message):
        dnc.export(folder, name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["ultralytics", "yolov5", "nnarchive", "frigate"])
def test_another_suppression_is_told(name: str, write: Callable[..., Path], tmp_path: Path, command: Command) -> None:
    """Once on the terminal, with its place, and in README.md."""
    cfg = write("net", NETWORKS["yolo"].cfg.replace("classes=3", "classes=3\nnms_kind=greedynms\nbeta_nms=0.6"))
    code, _, err = command("export", cfg, "--for", name, "--target", "onnx", "--no-verify", "-o", tmp_path / "out")
    assert code == 0
    assert err.count(f"{name} suppresses boxes by IoU alone, and not as nms_kind=greedynms of the cfg says") == 1
    assert "net.cfg" in err
    assert "hint: " in err
    assert "nms_kind=greedynms" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["triton", "deepstream", "opencv"])
def test_of_the_cfgs_own_suppression_nothing_is_said(
    name: str, write: Callable[..., Path], tmp_path: Path, command: Command
) -> None:
    cfg = write("net", NETWORKS["yolo"].cfg.replace("classes=3", "classes=3\nnms_kind=greedynms\nbeta_nms=0.6"))
    code, _, err = command("export", cfg, "--for", name, "--target", "onnx", "--no-verify", "-o", tmp_path / "out")
    assert (code, err) == (0, "")
