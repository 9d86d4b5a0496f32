"""What is timed: inputs of an engine, and several callers."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

import dnc
from dnc.bench.subject import Callers, Subject, engine_name, feeds, unique
from dnc.errors import DncError
from dnc.runtime.runners import Session
from dnc.runtime.runners.onnx import OnnxRunner
from tests.networks import NETWORKS, RECURRENT, write_network
from tests.patience import PATIENCE


def test_an_engine_runs_on_its_inputs(engines: Path) -> None:
    subject = Subject("tiny", engines / "tiny.engine", 1, batch=2)
    assert subject.feeds["input"].shape == (2, 3, 16, 16)
    with subject.open() as run:
        assert [output.shape for output in run()] == [(2, 14, 8, 8)]  # type: ignore[attr-defined]


def test_inputs_of_graphs_that_do_more(tmp_path: Path) -> None:
    """Pixels, thresholds of the suppression, the window of a letterbox; states."""
    cfg = write_network(tmp_path, "yolo", NETWORKS["yolo"])
    engine = dnc.compile(cfg, target="onnx", out=tmp_path / "e", input="u8", decode="graph+nms", verify=False)
    inputs = feeds(engine.manifest, 1)
    assert inputs["input"].dtype == np.uint8
    assert set(inputs) == {"input", "confidence", "iou", "window"}
    assert engine.session.run(inputs)[0].shape[1] == 7
    name = next(iter(RECURRENT))
    states = dnc.compile(
        write_network(tmp_path, "states", NETWORKS[name]), target="onnx", out=tmp_path / "s", verify=False
    )
    inputs = feeds(states.manifest, 2)
    assert len(inputs) > 1
    states.session.run(inputs)


def test_a_batch_that_does_not_fit(tmp_path: Path) -> None:
    cfg = write_network(tmp_path, "tiny", NETWORKS["tiny"])
    dnc.compile(cfg, target="onnx", out=tmp_path / "e", batch=2, verify=False)
    with pytest.raises(DncError, match="takes batches of 2, not of 1") as caught:
        Subject("e", tmp_path / "e", 1)
    assert caught.value.hint == "--batch 2, or compile it with --batch 1"


def test_an_engine_that_is_replaced_before_it_is_timed(engines: Path, tmp_path: Path) -> None:
    shutil.copytree(engines / "tiny.engine", tmp_path / "e")
    subject = Subject("e", tmp_path / "e", 1)
    (tmp_path / "e" / "model.onnx").write_bytes(b"another")
    with pytest.raises(DncError, match="was replaced or changed"):
        subject.session()


def test_threads_do_not_run_on_into_anothers_turn(engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    open_ = OnnxRunner.open

    def opened(self: OnnxRunner, folder: Path, threads: int | None = None) -> Session:
        asked.append(self.options["spin"])
        return open_(self, folder, threads)

    monkeypatch.setattr(OnnxRunner, "open", opened)
    subject = Subject("a", engines / "tiny.engine", 1)
    subject.session()
    assert (asked, subject.target.runner().options["spin"]) == (["off"], "on")


def test_all_callers_call_at_the_same_time() -> None:
    meeting = threading.Barrier(4, timeout=PATIENCE)
    with Callers(lambda: None, 4) as callers:
        # Nobody gets past it alone.
        callers._run = meeting.wait
        callers._calls = 3
        for _ in range(5):
            assert callers() > 0
    # The first bursts warm up.
    assert len(callers.latencies) == 4 * 3 * 2
    assert not any(thread.is_alive() for thread in callers._threads)


def test_a_caller_that_fails_is_heard() -> None:
    def fail() -> None:
        raise DncError("no")

    with Callers(lambda: None, 2) as callers:
        callers._run = fail
        with pytest.raises(DncError, match="no"):
            callers()
    assert not any(thread.is_alive() for thread in callers._threads)


def test_several_callers_of_an_engine(engines: Path) -> None:
    subject = Subject("tiny", engines / "tiny.engine", 1, streams=2)
    with subject.open() as run:
        seconds = [run() for _ in range(5)]
    assert all(isinstance(each, float) and each > 0 for each in seconds)
    assert subject.latencies


def test_names() -> None:
    assert unique(["a", "b", "a", "a"]) == ["a", "b", "a (2)", "a (3)"]
    assert engine_name("x/yolo.engine") == "yolo"
    assert engine_name("x/yolo") == "yolo"
