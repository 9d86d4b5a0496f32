"""Whatever is wrong with what a user gives ends in one DncError: exit code 1, no traceback, nothing half-written."""

from __future__ import annotations

import errno
import io
import os
import random
import re
import signal
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dnc
from dnc.darknet.network import Network
from dnc.darknet.weights import Header, count, write_weights
from dnc.errors import BundleError, DncError, DncWarning, ImageError, TargetError
from tests.conftest import Result
from tests.networks import TINY
from tests.patience import PATIENCE, no_hang

Command = Callable[..., Result]
Write = Callable[..., Path]


def refuse(result: Result, *parts: str, folder: Path, left: set[str], code: int = 1) -> None:
    """One error that holds `parts`, in its fixed form; `folder` holds nothing but `left`."""
    assert result.code == code, result
    assert result.out == ""
    assert result.err.count("dnc: error: ") == 1
    assert "Traceback" not in result.err
    for part in parts:
        assert part in result.err
    assert {path.name for path in folder.iterdir()} == left


@pytest.fixture
def tiny(write: Write) -> Path:
    """tiny.cfg with tiny.weights, alone in a folder."""
    return write("tiny")


def line_of(text: str, line: str) -> tuple[str, str]:
    """How an error shows a source line."""
    number = text.split("\n").index(line) + 1
    return f"net.cfg:{number} ", f"\n  {number:>5} | {line}\n"


CHANGES = {
    # what to replace, by what, the message, the line it points at, the hint
    "section": ("[yolo]", "[yol]", "unknown section [yol]", "[yol]", "did you mean 'yolo'?"),
    "far section": ("[yolo]", "[abcdefg]", "unknown section [abcdefg]", "[abcdefg]", "--lenient passes its input on"),
    "key": ("filters=8", "filter=8", "nothing in [convolutional] reads 'filter'", "filter=8", "'filters'?"),
    "activation": ("=leaky", "=leakyy", "activation=leakyy is unknown", "activation=leakyy", "mean 'leaky'?"),
    "comment": ("=leaky", "=leaky#x", "activation=leaky#x is unknown", "activation=leaky#x", "reads relu"),
    "no value": ("filters=8", "filters=", "filters= has no value", "filters=", "give one"),
    "no number": ("filters=8", "filters=many", "filters=many is not an integer", "filters=many", "digits, or 0"),
    "hexadecimal": ("filters=8", "filters=0x10", "filters=0x10 is not an integer", "filters=0x10", "digits, or 0"),
    "not whole": ("filters=8", "filters=8.5", "filters=8.5 is not an integer", "filters=8.5", "digits, or 0"),
    "infinite": ("filters=8", "filters=1e999", "filters=1e999 is not an integer", "filters=1e999", "digits, or 0"),
    "nan": ("filters=8", "filters=nan", "filters=nan is not an integer", "filters=nan", "digits, or 0"),
    "long number": ("filters=8", f"filters={'9' * 9999}", f"filters={'9' * 57}... is too large", "", "2147483647"),
    "filters 0": ("filters=8", "filters=0", "filters=0 must be at least 1", "filters=0", ""),
    "filters 1e9": ("filters=8", "filters=1000000000", "1000000000 x 8 x 8 elements", "[convolutional]", "at most"),
    "stride 0": ("stride=2", "stride=0", "stride=0 must be at least 1", "stride=0", "divide by zero"),
    "stride 1e11": ("stride=2", "stride=100000000000", "stride=100000000000 is too large", "stride=100000000000", ""),
    "size -1": ("size=3", "size=-1", "size=-1 must be at least 1", "size=-1", ""),
    "size 1e5": ("size=3", "size=100000", "240000000032 floats", "[convolutional]", "2 GiB"),
    "padding": ("pad=1", "padding=-1", "padding=-1 must be at least 0", "padding=-1", ""),
    "padding 1e9": ("pad=1", "padding=1000000000", "8 x 1000000007 x 1000000007", "[convolutional]", "at most"),
    "groups": ("stride=2", "groups=3", "groups=3 does not divide 3 input channels and 8", "groups=3", "divide both"),
    "groups 0": ("stride=2", "groups=0", "groups=0 must be at least 1", "groups=0", ""),
    "itself": ("[yolo]", "[route]\nlayers=2\n[yolo]", "layers=2 is layer 2", "layers=2", "only earlier layers"),
    "later": ("[yolo]", "[route]\nlayers=3\n[yolo]", "layers=3 is layer 3", "layers=3", "only earlier layers"),
    "before": ("[yolo]", "[route]\nlayers=-3\n[yolo]", "layers=-3 is layer -1", "layers=-3", "only earlier layers"),
    "no layers": ("[yolo]", "[route]\n[yolo]", "[route] must say layers=", "[route]", "layers=-2"),
    "a comma": ("[yolo]", "[route]\nlayers=-1,\n[yolo]", "layers=-1, has nothing", "layers=-1,", "reads a 0"),
    "in comment": ("[yolo]", "[route]\nlayers=-1#a,b\n[yolo]", "has a comma in its comment", "layers=-1#a,b", ""),
    "shortcut": (
        "[yolo]",
        "[convolutional]\nstride=3\n[shortcut]\nfrom=0\n[yolo]",
        "layer 0 of 8 x 8 x 8 cannot be added to the previous layer of 1 x 3 x 3",
        "from=0",
        "width and height must be equal",
    ),
    "anchors": ("anchors=10,14, 23,27", "anchors=10,14,23", "3 numbers, num=2 wants 4", "anchors=10,14,23", "each"),
    "no anchors": ("anchors=10,14, 23,27\n", "", "[yolo] must say anchors=", "[yolo]", "width,height"),
    "anchor": ("anchors=10", "anchors=ten", "'ten' in anchors=ten,14,23,27 is not a number", "", "digits, or 0"),
    "huge anchor": ("anchors=10", "anchors=1e39", "anchors=1e39 is not a finite decimal number", "", "0.5"),
    "nan anchor": ("anchors=10", "anchors=nan", "anchors=nan is not a finite decimal number", "", "0.5"),
    "mask": ("mask=0,1", "mask=0,2", "mask names anchor 2, but num=2", "mask=0,2", "anchors count from 0 to 1"),
    "classes": ("classes=2", "classes=3", "has 14 filters, 2 anchors x 8 values want 16", "classes=3", "filters="),
    "width": ("width=16", "width=1000000000", "width=1000000000 must be from 1 to 65536", "width=1000000000", "typing"),
    "width 0": ("width=16", "width=0", "[net] lacks width", "width=0", "give width, height and channels"),
    "width -1": ("width=16", "width=-1", "width=-1 must be from 1 to 65536", "width=-1", "typing error"),
    "no width": ("width=16\n", "", "[net] lacks width", "[net]", "give width, height and channels"),
    "section end": ("[yolo]", "[yolo", "'[yolo' is not a section", "[yolo", "write it as [name]"),
    "after section": ("[yolo]", "[yolo]#x", "'[yolo]#x' is not a section", "[yolo]#x", "a line of its own"),
    "no option": ("mask=0,1", "mask", "a line that is neither", "", "is this a .cfg file?"),
    "dontload": ("stride=2", "dontload=1", "dontload=1 leaves this layer's weights", "dontload=1", "delete the line"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_cfg(name: str, command: Command, tiny: Path) -> None:
    """The message, the file with its line, the line itself and the hint."""
    old, new, message, line, hint = CHANGES[name]
    text = TINY.replace(old, new, 1)
    assert text != TINY
    cfg = tiny.with_name("net.cfg")
    cfg.write_text(text)
    result = command(
        "compile", "-t", "onnx", cfg, "-w", tiny.with_suffix(".weights"), "-o", tiny.with_name("net.engine")
    )
    places = line_of(text, line) if line else ("net.cfg:",)
    left = {"tiny.cfg", "tiny.weights", "net.cfg"}
    refuse(result, message, *places, "\n  hint: ", hint, folder=tiny.parent, left=left)


def _jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    return file.getvalue()


FILES = {
    "random": (random.Random(1).randbytes(5000), "not a .cfg file: it holds binary data"),
    "jpeg": (_jpeg(), "not a .cfg file: it holds binary data"),
    "weights": (Header().pack() + np.ones(100, "<f4").tobytes(), "was the .weights file given in its place?"),
    "utf-16": (TINY.encode("utf-16"), "save it as UTF-8"),
    "utf-16 without mark": (TINY.encode("utf-16-le"), "not a .cfg file"),
    "nul": (TINY.encode().replace(b"filters=8", b"filters=8\0"), "net.cfg:8\n"),
    "empty": (b"", "the file has no sections"),
    "comments": (b"# a\n; b\n\n", "the file has no sections"),
    "prose": (b"Hello, world\n", "net.cfg:1\n      1 | Hello, world\n"),
    "escapes": (b"[net]\n\xc2\x9b31m\n", "a line that is neither"),
    "huge": (b"#" * ((1 << 24) + 1), "not a .cfg file: it has more than 16 MiB"),
    "no net": (TINY.replace("[net]\n", "").encode(), "'width' stands before any section"),
    "net not first": (TINY.replace("[net]", "[maxpool]").encode(), "the first section must be [net]"),
    "only net": (TINY[: TINY.index("[conv")].encode(), "the network has no layers"),
}


@pytest.mark.parametrize("name", FILES)
def test_no_cfg(name: str, command: Command, tiny: Path) -> None:
    data, part = FILES[name]
    cfg = tiny.with_name("net.cfg")
    cfg.write_bytes(data)
    result = command(
        "compile", "-t", "onnx", cfg, "-w", tiny.with_suffix(".weights"), "-o", tiny.with_name("net.engine")
    )
    refuse(result, "net.cfg", part, "hint: ", folder=tiny.parent, left={"tiny.cfg", "tiny.weights", "net.cfg"})
    assert "\x9b" not in result.err


@pytest.mark.parametrize("path", ["missing.cfg", "a" * 300, "tiny.cfg/net.cfg"])
def test_cfg_path(path: str, command: Command, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny.parent)
    for weights in ([], ["-w", "tiny.weights"]):
        left = {"tiny.cfg", "tiny.weights"}
        refuse(command("compile", "-t", "onnx", path, *weights), "cannot read the cfg", folder=tiny.parent, left=left)


SILENT = "momentum=0.9\nlearning_rate=.001\nsteps=1,2\nburn_in=1\nmosaic=1"


def test_training_keys_are_silent(command: Command, tiny: Path) -> None:
    tiny.write_text(TINY.replace("channels=3", f"channels=3\n{SILENT}").replace("num=2", "num=2\njitter=.3\nrandom=1"))
    result = command("compile", "-t", "onnx", tiny, "-o", tiny.with_name("e"))
    assert (result.code, result.err) == (0, "")


def test_far_unknown_key_warns(command: Command, tiny: Path) -> None:
    tiny.write_text(TINY.replace("stride=2", "stride=2\nxyzzy=5"))
    result = command("compile", "-t", "onnx", tiny, "-o", tiny.with_name("e"))
    assert result.code == 0
    assert result.err == (
        "dnc: warning: nothing in [convolutional] reads 'xyzzy'\n"
        f"  at {tiny}:11 [convolutional] #0\n     11 | xyzzy=5\n  hint: Darknet ignores it too\n"
    )


def test_many_unknown_keys_are_few_warnings(command: Command, tiny: Path) -> None:
    keys = "\n".join(f"xq{number}z=1" for number in range(1000))
    tiny.write_text(TINY.replace("stride=2", f"stride=2\n{keys}"))
    result = command("compile", "-t", "onnx", tiny, "-o", tiny.with_name("e"))
    assert result.code == 0
    assert result.err.count("warning") == 51
    assert "nothing reads 950 more options" in result.err


LENIENT = {
    "section": ("[yolo]", "[yol]", "unknown section [yol]"),
    "key": ("filters=8", "filters=8\nfilter=9", "nothing in [convolutional] reads 'filter'"),
    "activation": ("=leaky", "=leakyy", "Darknet takes relu; did you mean 'leaky'?"),
    "comment": ("=leaky", "=leaky # x", "and reads relu"),
    "no value": ("stride=2", "stride=2\ngroups=", "groups= has no value"),
    "no number": ("filters=8", "filters=8x", "filters=8x is not an integer"),
    "junk": ("mask=0,1", "mask\nmask=0,1", "a line that is neither"),
    "anchors": ("anchors=10,14, 23,27", "anchors=10,14, 23", "anchors= has 3 numbers"),
    "in comment": ("[yolo]", "[route]\nlayers=1#,1\ngroups=2\n[yolo]", "layers= has a comma in its comment"),
    "after section": ("[yolo]", "[yolo]#x", "'[yolo]#x' is not a section"),
}


@pytest.mark.parametrize("name", LENIENT)
def test_lenient_warns_and_compiles(name: str, command: Command, tiny: Path) -> None:
    old, new, part = LENIENT[name]
    tiny.write_text(TINY.replace(old, new, 1))
    out = tiny.with_name("tiny.engine")
    assert command("compile", "-t", "onnx", tiny, "-o", out).code == 1
    result = command("compile", "-t", "onnx", tiny, "-o", out, "--lenient")
    assert result.code == 0
    assert "dnc: warning: " in result.err
    assert part in result.err
    assert dnc.load(out).forward(np.zeros((3, 16, 16)))[0].shape[1:] == (8, 8)


def test_lenient_activation_is_relu(tiny: Path) -> None:
    with pytest.warns(DncWarning, match="Darknet takes relu"):
        network = Network.parse(TINY.replace("=leaky", "=leekie"), lenient=True)
    assert network.layers[0].convolution.activation == "relu"  # type: ignore[attr-defined]


def _floats(path: Path) -> tuple[bytes, bytes]:
    data = path.read_bytes()
    return data[:20], data[20:]


Change = Callable[[bytes, bytes], bytes | None]
WEIGHTS: dict[str, tuple[Change, list[str]]] = {
    # by what the bytes are replaced, the messages
    "missing": (lambda head, body: None, ["cannot read the weights: No such file", "check the path"]),
    "empty": (lambda head, body: b"", ["too short for Darknet's header"]),
    "only a header": (lambda head, body: head, ["within layer 0 [convolutional]: it wants 248 floats, 0 were left"]),
    "truncated": (
        lambda head, body: head + body[:-4],
        ["within layer 1 [convolutional]: it wants 126 floats, 125 were left", "holds 373 floats, the cfg wants 374"],
    ),
    "truncated float": (lambda head, body: head + body[:-1], ["it wants 126 floats, 125 were left"]),
    "long": (lambda head, body: head + body + bytes(8), ["2 floats are left", "--cutoff N", "wants 374 floats"]),
    "long by bytes": (lambda head, body: head + body + b"ab", ["2 bytes are left"]),
    "html": (lambda head, body: b"<!DOCTYPE html><html>" + body, ["text, not weights", "a download that failed"]),
    "git-lfs": (lambda head, body: b"version https://git-lfs.github.com/spec/v1\n", ["text, not weights", "git-lfs"]),
    "nan": (lambda head, body: head + struct.pack("<f", np.nan) + body[4:], ["'biases' of layer 0", "position 0: not"]),
    "inf": (lambda head, body: head + body[:-4] + struct.pack("<f", np.inf), ["'weights' of layer 1", "position 111"]),
    "variance": (lambda head, body: head + body[:96] + struct.pack("<f", -1) + body[100:], ["a negative variance"]),
    "narrow header": (lambda head, body: struct.pack("<3iI", 0, 1, 0, 0) + body[:-4], ["125 were left"]),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights(name: str, command: Command, tiny: Path) -> None:
    change, parts = WEIGHTS[name]
    weights, other = tiny.with_suffix(".weights"), tiny.with_name("other.weights")
    data = change(*_floats(weights))
    if data is not None:
        other.write_bytes(data)
    left = {"tiny.cfg", "tiny.weights"} | ({"other.weights"} if data is not None else set())
    result = command("compile", "-t", "onnx", tiny, "-w", other, "-o", tiny.with_name("e"))
    refuse(result, *parts, "hint: ", folder=tiny.parent, left=left)
    if name in ("truncated", "nan"):
        assert "tiny.cfg:" in result.err
        assert " | [convolutional]" in result.err


def test_weights_of_another_network(command: Command, tiny: Path) -> None:
    for old, new in (("filters=8", "filters=16"), ("filters=8", "filters=4")):
        other = tiny.with_name("other.cfg")
        other.write_text(TINY.replace(old, new))
        result = command("compile", "-t", "onnx", other, "-w", tiny.with_suffix(".weights"), "-o", tiny.with_name("e"))
        refuse(result, "another", folder=tiny.parent, left={"tiny.cfg", "tiny.weights", "other.cfg"})


@pytest.mark.parametrize("name", ["only a header", "truncated", "long", "long by bytes", "nan", "inf", "variance"])
def test_lenient_weights(name: str, command: Command, tiny: Path) -> None:
    weights = tiny.with_suffix(".weights")
    data = WEIGHTS[name][0](*_floats(weights))
    assert data is not None
    weights.write_bytes(data)
    result = command("compile", "-t", "onnx", tiny, "-o", tiny.with_name("e"), "--lenient")
    assert result.code == 0
    assert result.err.startswith("dnc: warning: ")
    outputs = dnc.load(tiny.with_name("e")).forward(np.ones((3, 16, 16)))
    assert outputs[0].shape == (14, 8, 8)
    if name == "only a header":
        # All floats that are missing are 0: so are all maps but for the logistic of it.
        maps = outputs[0].reshape(2, 7, 8, 8)
        assert (maps[:, [0, 1, 4, 5, 6]] == 0.5).all()
        assert (maps[:, 2:4] == 0).all()


def test_labels(command: Command, tiny: Path) -> None:
    names = tiny.with_name("x.names")
    left = {"tiny.cfg", "tiny.weights", "x.names"}
    bad = {b"a\n": "1 labels for 2 classes", b"\xff\xfe\n": "this name is not in UTF-8", b"": "there is no name"}
    for data, part in bad.items():
        names.write_bytes(data)
        result = command("compile", "-t", "onnx", tiny, "--labels", names, "-o", tiny.with_name("e"))
        refuse(result, part, "x.names", folder=tiny.parent, left=left)
    names.unlink()
    result = command("compile", "-t", "onnx", tiny, "--labels", names, "-o", tiny.with_name("e"))
    refuse(result, "cannot read the file: No such file", folder=tiny.parent, left=left - {"x.names"})


def test_other_names_are_no_concern(command: Command, tiny: Path) -> None:
    """A file of labels that nobody asked for is passed over where it cannot be read."""
    tiny.with_name("latin.names").write_bytes(b"gar\xe7on\n")
    tiny.with_name("right.names").write_text("a\nb\n")
    assert command("compile", "-t", "onnx", tiny, "-o", tiny.with_name("e")).code == 0
    assert dnc.load(tiny.with_name("e")).labels == ("a", "b")


OPTIONS = {
    "target": (["-t", "onx"], "unknown target 'onx'", "did you mean 'onnx'?"),
    "pass": (["--skip", "fold-batchnor"], "unknown pass 'fold-batchnor'", "did you mean 'fold-batchnorm'?"),
    "cutoff": (["--cutoff", "9"], "--cutoff 9 must be from 1 to 3", "tiny.cfg"),
    "cutoff 0": (["--cutoff", "0"], "--cutoff 0 must be from 1 to 3", "tiny.cfg"),
    "mean": (["--mean", "1,2"], "mean and std", "modes:"),
    "std": (["--std", "0"], "std", "modes:"),
    "color": (["--color", "gray"], "color 'gray' does not fit 3 channels", "modes:"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name: str, command: Command, tiny: Path) -> None:
    arguments, *parts = OPTIONS[name]
    result = command("compile", "-t", "onnx", tiny, "-o", tiny.with_name("e"), *arguments)
    refuse(result, *parts, folder=tiny.parent, left={"tiny.cfg", "tiny.weights"})


USAGE = [["--frobnicate"], ["--batch", "0"], ["--mean", "x"], ["--std", "nan"], ["a", "b"], []]


@pytest.mark.parametrize("arguments", USAGE)
def test_usage(arguments: list[str], command: Command) -> None:
    assert command("compile", "-t", "onnx", *arguments).code == 2


@pytest.mark.parametrize("options", [{"batch": 0}, {"batch": -3}, {"decode": "x"}, {"input": "x"}, {"mean": ()}])
def test_options_from_python(options: dict[str, Any], tiny: Path) -> None:
    with pytest.raises(DncError):
        dnc.compile(tiny, out=tiny.with_name("e"), **options)
    assert not tiny.with_name("e").exists()


OUTPUTS = ["file/e", "/proc/e", "/proc/self/e/f", "/dev/null", "file", "full", "engine_of_another_tool", "b" * 300]


@pytest.mark.parametrize("out", OUTPUTS)
def test_output(out: str, command: Command, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the way, a file system that is read-only, something else there, a name too long."""
    folder = tiny.parent
    monkeypatch.chdir(folder)
    Path("file").write_text("mine")
    Path("full").mkdir()
    Path("full/photo.jpg").write_text("mine")
    Path("engine_of_another_tool").mkdir()
    Path("engine_of_another_tool/engine.json").write_text('{"files": {"plan": 1}}')
    Path("engine_of_another_tool/photo.jpg").write_text("mine")
    left = {path.name for path in folder.iterdir()}
    result = command("compile", "-t", "onnx", tiny, "-o", out)
    refuse(result, "in the way" if out in OUTPUTS[3:7] else "cannot write", "hint: ", folder=folder, left=left)
    assert [path.read_text() for path in sorted(folder.glob("*/photo.jpg"))] == ["mine", "mine"]


def test_folders_that_were_made_are_removed(command: Command, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("dnc.targets.onnx.Onnx.build", full)
    result = command("compile", "-t", "onnx", tiny, "-o", tiny.with_name("a") / "b" / "c")
    refuse(result, "No space left on device", "disk full", folder=tiny.parent, left={"tiny.cfg", "tiny.weights"})


@pytest.mark.parametrize("writes", range(4))
def test_disk_full(writes: int, command: Command, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The n-th write fails: of model.onnx, or of engine.json."""
    tiny.with_suffix(".names").write_text("a\nb\n")
    opened, left = io.open, writes

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")
            return super().write(data)

    def patched(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        return Full(file, "w") if mode == "wb" else opened(file, mode, *arguments, **options)

    monkeypatch.setattr(io, "open", patched)
    result = command("compile", "-t", "onnx", tiny, "-o", tiny.with_name("e"))
    names = {"tiny.cfg", "tiny.weights", "tiny.names"}
    refuse(result, "No space left on device", "is the disk full", folder=tiny.parent, left=names)


@pytest.mark.parametrize("step", ["dnc.passes.fold_batchnorm.FoldBatchNorm.rewrite", "dnc.targets.onnx.serialize_to"])
def test_interrupt(step: str, command: Command, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in a pass, and while the model is written: the old engine stays."""
    out = tiny.with_name("e")
    assert command("compile", "-t", "onnx", tiny, "-o", out).code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def interrupted(*arguments: Any) -> None:
        if step.endswith("serialize_to"):
            arguments[1].write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(step, interrupted)
    result = command("compile", "-t", "onnx", tiny, "-o", out)
    refuse(result, "interrupted", folder=tiny.parent, left={"tiny.cfg", "tiny.weights", "e"}, code=130)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_memory_runs_out(command: Command, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("dnc.targets.onnx.Onnx.build", out_of_memory)
    result = command("compile", "-t", "onnx", tiny, "-o", tiny.with_name("e"))
    refuse(result, "there is not enough memory", folder=tiny.parent, left={"tiny.cfg", "tiny.weights"})


def test_bug_is_a_traceback(command: Command, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not the user's fault is shown in full, names the pass, and leaves nothing either."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("dnc.passes.fold_batchnorm.FoldBatchNorm.rewrite", broken)
    result = command("compile", "-t", "onnx", tiny, "-o", tiny.with_name("e"))
    assert result.code == 70
    assert "Traceback" in result.err
    assert "in pass fold-batchnorm" in result.err
    assert not tiny.with_name("e").exists()


def _python(code: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, **options)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals(number: int, tiny: Path) -> None:
    """A real signal while the engine is written, which takes until it comes."""
    out = tiny.with_name("e")
    code = """
        import signal
        from dnc.cli import main
        from dnc.targets.onnx import Onnx
        build = Onnx.build
        def slowly(*arguments):
            build(*arguments)
            print("built", flush=True)
            signal.pause()
        Onnx.build = slowly
        # A suite that runs in the background has SIGINT ignored, and so would its children.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        main()
    """
    process = _python(code, "compile", tiny, "-o", out, "-t", "onnx")
    assert process.stdout is not None
    assert process.stdout.readline() == "built\n"
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=PATIENCE)
    result = Result(process.returncode, stdout, stderr)
    refuse(result, "interrupted", folder=tiny.parent, left={"tiny.cfg", "tiny.weights"}, code=128 + number)


def test_file_size_limit(tiny: Path) -> None:
    """A disk that is full after 1000 bytes, as far as the process can tell."""
    code = """
        import resource, signal
        from dnc.cli import main
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        main()
    """
    process = _python(code, "compile", tiny, "-o", tiny.with_name("e"))
    stdout, stderr = process.communicate(timeout=PATIENCE)
    result = Result(process.returncode, stdout, stderr)
    refuse(result, "File too large", "is the disk full", folder=tiny.parent, left={"tiny.cfg", "tiny.weights"})


def test_tmpfs(tiny: Path) -> None:
    """A disk that is full indeed."""
    disk = tiny.with_name("disk")
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        with pytest.raises(BundleError, match="No space left on device"):
            dnc.compile(tiny, target="onnx", out=disk / "e")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


HUGE = [
    ("width=16", "width=1000000000"),
    ("width=16\nheight=16", "width=26000\nheight=26000"),
    ("filters=8", "filters=1000000000"),
    ("filters=8\nsize=3\nstride=2", "filters=1000000000\nsize=3\nstride=16"),
    ("size=3", "size=20000"),
    ("pad=1", "padding=20000"),
    ("[yolo]", "[connected]\noutput=1000000000\n[yolo]"),
    ("[yolo]", "[lstm]\noutput=100000\n[yolo]"),
    ("[yolo]", "[implicit]\nfilters=1000000000\n[yolo]"),
    ("[yolo]", "[avgpool]\n[convolutional]\nfilters=65000\n[normalization]\n[yolo]"),
    ("[yolo]", "[local]\nsize=1000\n[yolo]"),
]


def test_huge_sizes_take_no_memory(tiny: Path) -> None:
    """300 MiB are enough to refuse, with and without --lenient."""
    code = """
        import resource, sys
        from dnc.cli import main
        import dnc.compiler.compiling
        from dnc.darknet.layers import layers
        from dnc.passes import passes
        from dnc.targets import targets
        list(layers), list(passes), list(targets)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20), used + (300 << 20)))
        for number in range(int(sys.argv.pop(1))):
            for lenient in ([], ["--lenient"]):
                sys.argv[2] = f"{number}.cfg"
                sys.argv[6:] = lenient
                try:
                    main()
                except SystemExit as exit:
                    assert exit.code == 1, sys.argv
    """
    for number, (old, new) in enumerate(HUGE):
        text = TINY.replace(old, new, 1)
        assert text != TINY
        tiny.with_name(f"{number}.cfg").write_text(text)
    left = {path.name for path in tiny.parent.iterdir()}
    arguments = [len(HUGE), "compile", "CFG", "-w", "tiny.weights", "-oe"]
    process = _python(code, *arguments, cwd=tiny.parent)
    stdout, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stdout) == (0, ""), stderr
    assert stderr.count("dnc: error: ") == 2 * len(HUGE)
    assert {path.name for path in tiny.parent.iterdir()} == left


LONG = {
    "comments": TINY + "# a comment\n" * 100_000,
    "blank": TINY + "\n" * 100_000,
    "layers": TINY[: TINY.index("[yolo]")] + "[convolutional]\nfilters=14\nsize=1\nactivation=leaky\n" * 25_000,
    "options": TINY + "".join(f"option{number}=1\n" for number in range(100_000)),
    "options of training": TINY + "".join(f"{'momentum'}=1\n" for number in range(100_000)),
    "near misses": TINY + "filterz=1\n" * 100_000,
    "options of sections": TINY[: TINY.index("[yolo]")]
    + "".join(f"[dropout]\nprobability=1\nsome_key_{number % 50}=1\n" for number in range(33_000)),
    "routes": TINY[: TINY.index("[yolo]")] + "[route]\nlayers=-1\n" * 50_000,
    "one line": TINY + "anchors_too=" + "1," * 1_000_000,
    "unknown": TINY + "[x]\n" * 100_000,
}


_SLOW = ("layers", "routes", "options of sections", "unknown")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in _SLOW)) for name in LONG])
@pytest.mark.filterwarnings("ignore::dnc.errors.DncWarning")
def test_long_cfg(name: str) -> None:
    """100,000 lines are read, or refused: nothing grows with their square."""
    for lenient in (False, True):
        with suppress(DncError), no_hang():
            Network.parse(LONG[name], lenient=lenient)


def image_bytes(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The image as a file of this kind."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def engine(tiny: Path) -> dnc.Engine:
    return dnc.compile(tiny, target="onnx", out=tiny.with_name("e"))


def test_bad_images(engine: dnc.Engine, tmp_path: Path) -> None:
    jpeg = image_bytes(Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)), "JPEG")
    bad = {
        "missing": None,
        "empty": b"",
        "text": b"hello",
        "truncated": jpeg[: len(jpeg) // 2],
        "header": jpeg[:20],
        "random": random.Random(2).randbytes(1000),
        "bomb": image_bytes(Image.new("1", (1, 1)), "PNG").replace(
            struct.pack(">II", 1, 1), struct.pack(">II", 60000, 60000)
        ),
    }
    for name, data in bad.items():
        path = tmp_path / f"{name}.jpg"
        if data is not None:
            path.write_bytes(data)
            with pytest.raises(ImageError):
                engine(data)
        with pytest.raises(ImageError) as caught:
            engine(path)
        assert f"{name}.jpg" in str(caught.value)
    with pytest.raises(ImageError):
        engine(tmp_path)
    arrays: list[Any] = [np.zeros((4, 4, 3)), np.zeros(3), np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 7), np.uint8)]
    for array in arrays:
        with pytest.raises(DncError):
            engine(array)


def test_odd_images(engine: dnc.Engine) -> None:
    """Whatever Pillow opens is read: other modes, 16 bits, several frames, one pixel."""
    gray = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    deep = Image.fromarray((np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8))
    files = {
        "cmyk": image_bytes(gray.convert("CMYK"), "JPEG"),
        "gray": image_bytes(gray, "JPEG"),
        "gray and alpha": image_bytes(gray.convert("LA"), "PNG"),
        "palette": image_bytes(gray.convert("P"), "PNG", transparency=0),
        "bits": image_bytes(gray.convert("1"), "PNG"),
        "deep": image_bytes(deep, "PNG"),
        "deep tiff": image_bytes(deep, "TIFF"),
        "floats": image_bytes(gray.convert("F"), "TIFF"),
        "integers": image_bytes(gray.convert("I"), "TIFF"),
        "ycbcr": image_bytes(gray.convert("YCbCr"), "TIFF"),
        "lab": image_bytes(gray.convert("RGB").convert("LAB"), "TIFF"),
        "animated": image_bytes(gray, "GIF", save_all=True, append_images=[gray.rotate(90)]),
        "pixel": image_bytes(Image.new("RGB", (1, 1)), "PNG"),
        "line": image_bytes(Image.new("RGB", (3000, 1)), "PNG"),
        "column": image_bytes(Image.new("RGBA", (1, 3000)), "PNG"),
        "bmp": image_bytes(gray, "BMP"),
        "ppm": image_bytes(gray, "PPM"),
        "webp": image_bytes(gray.convert("RGBA"), "WEBP"),
    }
    for name, data in files.items():
        assert isinstance(engine(data, confidence=0.01), list), name
        with Image.open(io.BytesIO(data)) as image:
            assert isinstance(engine(image), list), name


@pytest.mark.slow
def test_damaged_images() -> None:
    """Pillow raises whatever it likes on damaged files; here it is one error."""
    from dnc.runtime.images import read_image

    source = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 30, 3), np.uint8))
    kinds = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO", "PCX", "SGI", "JPEG2000", "DDS")
    generator = random.Random(3)
    for kind in kinds:
        data = image_bytes(source, kind)
        for _ in range(300):
            damaged = bytearray(data)
            for _ in range(generator.randint(1, 8)):
                damaged[int(len(damaged) * generator.random() ** 2)] = generator.randrange(256)
            if generator.random() < 0.3:
                del damaged[generator.randrange(len(damaged)) :]
            try:
                assert read_image(bytes(damaged)).dtype == np.uint8
            except ImageError:
                pass


def test_no_onnxruntime(tiny: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not installed: said so, with what to install; installed, but its libraries do not load: as well."""
    out = tiny.with_name("e")
    assert command("compile", tiny, "-o", out, "-t", "onnx").code == 0
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    result = command("compile", "-t", "onnx", tiny, "-o", tiny.with_name("f"))
    left = {"tiny.cfg", "tiny.weights", "e"}
    refuse(result, "onnxruntime, which is not installed", 'darknet-compiler[onnx]"', folder=tiny.parent, left=left)
    with pytest.raises(TargetError, match="not installed"):
        dnc.load(out)
    monkeypatch.undo()

    class Broken:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "onnxruntime":
                raise ImportError("libonnxruntime.so.1: cannot open shared object file")

    engine = dnc.load(out)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(TargetError, match="cannot be loaded: libonnxruntime"):
        engine.forward(np.zeros((3, 16, 16)))


def test_wrong_inputs(engine: dnc.Engine) -> None:
    for shape in ((), (3,), (16, 16), (3, 16, 15), (1, 3, 15, 16), (2, 2, 3, 16, 16), (16, 16, 3)):
        with pytest.raises(DncError, match=r"the engine wants \(N, 3, 16, 16\)"):
            engine.forward(np.zeros(shape))
    for nonsense in ("text", None, [[1], [1, 2]], {"a": 1}, object()):
        with pytest.raises(DncError):
            engine.forward(nonsense)


def test_every_parameter_is_counted() -> None:
    """The numbers that the messages above give."""
    assert [count(layer) for layer in Network.parse(TINY).layers] == [248, 126, 0]
    file = io.BytesIO()
    network = Network.parse(TINY).with_random_weights(0)
    write_weights(file, network.layers, network.arrays)
    assert len(file.getvalue()) == 20 + 4 * 374
    assert re.search("wants 374", str(WEIGHTS["long"][1]))
