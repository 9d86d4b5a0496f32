"""What the arguments of `dnc bench` mean."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest

import dnc
from dnc.bench.prepare import BenchOptions, find_here, make_peers, make_subjects, network_of, sections
from dnc.compiler.source import is_engine
from dnc.errors import DncError, TargetError
from tests.networks import TINY, write_network

ONE = BenchOptions(threads=1)


def test_the_only_engine_or_cfg_of_a_folder(engines: Path, tmp_path: Path) -> None:
    with pytest.raises(DncError, match="no engine and no cfg"):
        find_here(tmp_path)
    shutil.copy(engines / "tiny.cfg", tmp_path)
    assert find_here(tmp_path) == str(tmp_path / "tiny.cfg")
    shutil.copytree(engines / "tiny.engine", tmp_path / "tiny.engine")
    assert find_here(tmp_path) == str(tmp_path / "tiny.engine")
    assert find_here(tmp_path / "tiny.engine") == str(tmp_path / "tiny.engine")
    with pytest.raises(DncError, match=r"2 engines here: tiny\.engine, vector\.engine"):
        find_here(engines)


def test_engines_and_variants_of_a_cfg(engines: Path, tmp_path: Path) -> None:
    options = BenchOptions(threads=1, targets=["onnx"], precisions=["fp32", "bf16"])
    what = [str(engines / "tiny.engine"), str(engines / "tiny.cfg")]
    subjects = make_subjects(what, options, tmp_path)
    assert [subject.name for subject in subjects] == ["tiny", "tiny onnx fp32", "tiny onnx bf16"]
    assert subjects[2].manifest.options == {"precision": "bf16"}
    assert [subject.name for subject in make_subjects(what[:1], ONE, tmp_path)] == ["tiny"]


def test_random_weights_stand_in(tmp_path: Path) -> None:
    cfg = tmp_path / "a.cfg"
    cfg.write_text(TINY, encoding="utf-8")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with pytest.warns(UserWarning, match="random ones stand in"):
        (subject,) = make_subjects([str(cfg)], BenchOptions(threads=1, targets=["onnx"]), scratch)
    found = network_of(subject, [str(cfg)], ONE, scratch)
    assert found is not None
    assert sections(found[0])["#2"] == "a.cfg:21 [yolo] #2"


def test_the_network_behind_an_engine(engines: Path, tmp_path: Path) -> None:
    (subject,) = make_subjects([str(engines / "tiny.engine")], ONE, tmp_path)
    found = network_of(subject, [], ONE, tmp_path)
    assert found is not None
    assert found[1] == engines / "tiny.weights"
    # Other weights are another network.
    other = write_network(tmp_path, "tiny", TINY, seed=5)
    moved = tmp_path / "tiny.engine"
    shutil.copytree(engines / "tiny.engine", moved)
    (alone,) = make_subjects([str(moved)], ONE, tmp_path)
    assert other.exists()
    assert network_of(alone, [], ONE, tmp_path) is None
    with pytest.raises(DncError, match=r"peers read tiny\.cfg and its weights"):
        make_peers(alone, [], BenchOptions(threads=1, peers=["ort"]), tmp_path)


def test_peers_read_the_same_network(tmp_path: Path) -> None:
    cfg = write_network(tmp_path, "tiny", TINY)
    engine = dnc.compile(cfg, target="onnx", out=tmp_path / "e", input="u8", verify=False)
    (subject,) = make_subjects([str(engine.folder)], ONE, tmp_path)
    options = BenchOptions(threads=1, peers=["ort", "ncnn", "ort"], interpreters={"ncnn": "/x/python"})
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    first, second = make_peers(subject, [], options, scratch)
    assert (first.name, second.name) == ("ort", "ncnn")
    # The peer gets what the engine makes of the pixels.
    assert first._network.input.exists()
    with first.open() as run:
        run()
    assert make_peers(subject, [], ONE, scratch) == []


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(DncError, match=r"there is no engine and no cfg 'none\.cfg'"):
        make_subjects(["none.cfg"], ONE, tmp_path)
    with pytest.raises(TargetError, match="unknown target 'onx'"):
        make_subjects(["none.cfg"], BenchOptions(threads=1, targets=["onx"]), tmp_path)
    with pytest.raises(DncError, match="not an engine"):
        make_subjects([str(tmp_path)], ONE, tmp_path)
    with pytest.raises(DncError, match="no peer 'ortt'"), warnings.catch_warnings():
        make_peers(None, [], BenchOptions(threads=1, peers=["ortt"]), tmp_path)  # type: ignore[arg-type]


def test_looks_of_an_engine(tmp_path: Path) -> None:
    assert is_engine(tmp_path)
    assert is_engine("a.dnc")
    assert not is_engine("a.cfg")
    assert not is_engine("yolov3-tiny")
