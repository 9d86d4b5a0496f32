"""Other readers of a network, in processes of their own."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from dnc.bench.peers import Peer, Plain, check_names
from dnc.darknet.network import Network
from dnc.errors import DncError, TargetError


@pytest.fixture
def plain(engines: Path, tmp_path: Path) -> Plain:
    weights = engines / "tiny.weights"
    network = Network.load(engines / "tiny.cfg", weights)
    return Plain.write(network, weights, np.zeros((1, 3, 16, 16), np.float32), tmp_path)


@pytest.mark.parametrize(("name", "module"), [("ort", "onnxruntime"), ("openvino", "openvino")])
def test_a_peer_runs(name: str, module: str, plain: Plain, tmp_path: Path) -> None:
    if not importlib.util.find_spec(module):
        pytest.skip(f"needs {module}")
    peer = Peer(name, plain, 1, tmp_path)
    with peer.open() as run:
        seconds = [run() for _ in range(3)]
    assert all(isinstance(each, float) and each > 0 for each in seconds)
    assert peer.told["open"] > 0
    assert peer.told["version"] in peer.title
    if sys.platform == "linux":
        assert peer.told["memory"] > 1e7


def test_a_peer_that_is_not_installed(plain: Plain, tmp_path: Path) -> None:
    if importlib.util.find_spec("ncnn"):
        pytest.skip("ncnn is installed")
    with (
        pytest.raises(TargetError, match="ncnn is not installed: No module named 'ncnn'") as caught,
        Peer("ncnn", plain, 1, tmp_path).open(),
    ):
        pass
    another = "--peer ncnn=/path/to/python names another interpreter that has it"
    assert caught.value.hint == f"pip install ncnn pnnx; {another}"


def test_an_opencv_without_the_reader(plain: Plain, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    if hasattr(cv2.dnn, "readNetFromDarknet"):
        pytest.skip("this OpenCV reads Darknet's files")
    peer = Peer("opencv", plain, 1, tmp_path)
    with pytest.raises(TargetError, match="has no reader of Darknet's files") as caught, peer.open():
        pass
    assert 'pip install "opencv-python-headless<5"' in caught.value.hint


def test_a_peer_that_cannot_read_the_network(plain: Plain, tmp_path: Path) -> None:
    plain.model.write_bytes(b"no model")
    with (
        pytest.raises(TargetError, match=r"ort does not run this network: .*Protobuf"),
        Peer("ort", plain, 1, tmp_path).open(),
    ):
        pass


def test_a_peer_that_ends(plain: Plain, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho \'ready {"version": "1", "open": 1, "memory": 1}\'\nread _\nexit 7\n')
    python.chmod(0o755)
    with (
        Peer("opencv", plain, 1, tmp_path, str(python)).open() as run,
        pytest.raises(TargetError, match="opencv does not run this network: it ended with code 7"),
    ):
        run()


def test_no_interpreter(plain: Plain, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="cannot start"), Peer("ort", plain, 1, tmp_path, str(tmp_path)).open():
        pass


def test_names() -> None:
    check_names(["opencv", "ort"])
    with pytest.raises(DncError, match="no peer 'opencvv'") as caught:
        check_names(["opencvv"])
    assert caught.value.hint == "did you mean 'opencv'?"
