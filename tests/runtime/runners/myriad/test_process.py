"""What comes out of the compiler's process: a file, or one clear error. A script stands in for the real child."""

from __future__ import annotations

import errno
import json
import struct
from pathlib import Path

import numpy as np
import pytest

from dnc.runtime.runners.myriad import process
from dnc.runtime.runners.myriad.process import CompilerError, Job, Limits, check_blob, compile_blob, infer
from tests.patience import PATIENCE

GOOD = """
blob = bytes(52) + struct.pack("<II", 9709, 100) + bytes(40)
Path(request["blob"]).write_bytes(blob)
print(json.dumps({"peak": 5 << 20, "shapes": {}}))
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    return Job(tmp_path / "libraries", tmp_path / "model.onnx", Limits(seconds=PATIENCE))


def child(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `code` be the process, with `request`."""
    script = tmp_path / "child.py"
    head = "import json, os, signal, struct, sys\nfrom pathlib import Path\nrequest = json.load(sys.stdin)\n"
    script.write_text(head + code, encoding="utf-8")
    monkeypatch.setattr(process, "_CHILD", script)


def test_compile(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shaves and slices are alike, a device is never asked for, and nothing overrules that."""
    keep = "(Path(request['blob']).parent / 'request.json').write_text(json.dumps(request))"
    child(GOOD + keep, tmp_path, monkeypatch)
    config = {"MYRIAD_HW_DILATION": "YES", "MYRIAD_ENABLE_MX_BOOT": "YES"}
    peak = compile_blob(job, tmp_path / "b", {"x": "U8"}, shaves=7, config=config, dump=tmp_path / "d.dot")
    assert peak == 5 << 20

    request = json.loads((tmp_path / "request.json").read_text(encoding="utf-8"))
    assert request["config"] == {
        "MYRIAD_HW_DILATION": "YES",
        "MYRIAD_ENABLE_MX_BOOT": "NO",
        "MYRIAD_NUMBER_OF_SHAVES": "7",
        "MYRIAD_NUMBER_OF_CMX_SLICES": "7",
        "MYRIAD_THROUGHPUT_STREAMS": "1",
        "MYRIAD_DUMP_INTERNAL_GRAPH_FILE_NAME": str(tmp_path / "d.dot"),
    }
    assert (request["device"], request["precisions"]) == ("MYRIAD", {"x": "U8"})
    assert request["memory"] == Limits().memory > 0


THROWN = r"""
sys.stderr.write('terminate called after throwing an instance of "E"\n  what():  [ GENERAL_ERROR ] \n')
sys.stderr.write('/home/x/frontend.cpp:592 Failed to compile layer "y": unsupported layer type "CumSum"\n')
sys.stderr.flush()
os.abort()
"""


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (THROWN, r'^the compiler refuses the network: Failed to compile layer "y": unsupported layer type "CumSum"$'),
        ("os.kill(os.getpid(), signal.SIGKILL)", r"ended by SIGKILL\n  hint: is there too little memory\?"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "ended by SIGSEGV$"),
        ("sys.stderr.write('  what():  std::bad_alloc'); sys.stderr.flush(); os.abort()", r"ran out of memory: it may"),
        ("sys.exit('ie_core_create failed with status -1')", "the compiler failed: ie_core_create failed with status"),
        ("signal.pause()", r"more than 0\.5 s and was stopped\n  hint: --option seconds=N allows more"),
        ("Path(request['blob']).write_bytes(b'x'); print('{\"peak\": 1}')", "no blob: its magic number is 0, not 9709"),
        (GOOD.replace("bytes(40)", "bytes(39)"), "cut off: 99 of 100 bytes"),
    ],
)
def test_failures(code: str, message: str, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child(code, tmp_path, monkeypatch)
    # What hangs would do so for ever: that this ends shows that it was stopped.
    limits = Limits(seconds=0.5 if "pause" in code else PATIENCE)
    with pytest.raises(CompilerError, match=message):
        compile_blob(Job(job.libraries, job.model, limits), tmp_path / "b", {}, shaves=1)


def test_a_full_disk(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reaches whoever writes the engine, who knows the folder."""
    child('print(\'{"errno": 28, "error": "No space left on device"}\')', tmp_path, monkeypatch)
    with pytest.raises(OSError, match="No space left") as caught:
        compile_blob(job, tmp_path / "b", {}, shaves=1)
    assert caught.value.errno == errno.ENOSPC


def test_check_blob(tmp_path: Path) -> None:
    path = tmp_path / "b"
    path.write_bytes(bytes(52) + struct.pack("<II", 9709, 60))
    check_blob(path)
    for data in (b"", bytes(60), bytes(52) + struct.pack("<II", 9709, 61), bytes(52) + struct.pack("<II", 9709, 0)):
        path.write_bytes(data)
        with pytest.raises(CompilerError):
            check_blob(path)


def test_infer(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays go there and back as float32; outputs have the names that were asked for, in that order."""
    code = """
data = Path(request["feeds"]["x"]).read_bytes()
for name, file in request["results"].items():
    Path(file).write_bytes(data)
print(json.dumps({"peak": 1, "shapes": {name: [3, 2] for name in request["results"]}}))
"""
    child(code, tmp_path, monkeypatch)
    x = np.arange(6, dtype=np.float64).reshape(2, 3)
    found = infer(job, {"x": x.T}, {"b": "inner", "a": "inner"})
    assert list(found) == ["b", "a"]
    assert found["a"].dtype == np.float32
    assert np.array_equal(found["a"], x.T)
