"""dnc.toml."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Result

Command = Callable[..., Result]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Writes the file; the current folder is below its own."""
    (tmp_path / "below" / "it").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "below" / "it")

    def write(text: str) -> Path:
        path = tmp_path / "dnc.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_options_of_a_project(write: Callable[[str], Path], command: Command, engines: Path) -> None:
    path = write('[compile]\ntarget = "onnx"\nskip = ["fold-batchnorm"]\nverify = false\nwidth = 64\n')
    result = command("compile", engines / "tiny.cfg", "--json")
    assert result.code == 0
    assert f"dnc: {path} gives --target=onnx, --width=64, --skip=fold-batchnorm, --verify=false\n" in result.err
    manifest = json.loads(result.out)
    assert (manifest["target"], manifest["input_shape"][-1]) == ("onnx", 64)
    assert "fold-batchnorm" not in {item["name"] for item in manifest["passes"]}


def test_the_command_line_wins(write: Callable[[str], Path], command: Command, engines: Path) -> None:
    write("[info]\nwidth = 64\nheight = 32\njson = true\n")
    assert json.loads(command("info", engines / "tiny.cfg").out)["input"] == [3, 32, 64]
    assert json.loads(command("info", engines / "tiny.cfg", "--width", 32).out)["input"] == [3, 32, 32]
    for arguments in (("--no-config", "info", engines / "tiny.cfg"), ("info", "--no-config", engines / "tiny.cfg")):
        assert command(*arguments).out.startswith("layer")


def test_the_nearest_file_is_taken(write: Callable[[str], Path], command: Command, engines: Path) -> None:
    path = write("[info]\nwidth = 64\n")
    nearer = path.parent / "below" / "dnc.toml"
    nearer.write_text("[info]\nheight = 32\njson = true\n")
    result = command("info", engines / "tiny.cfg")
    assert f"dnc: {nearer} gives --height=32, --json=true\n" == result.err
    assert json.loads(result.out)["input"] == [3, 32, 16]


def test_paths_are_relative_to_the_file(write: Callable[[str], Path], command: Command, engines: Path) -> None:
    path = write('[info]\nweights = "no.weights"\n')
    result = command("info", engines / "tiny.cfg")
    assert (result.code, f"  at {path.parent / 'no.weights'}\n" in result.err) == (1, True)


def test_tables_within_tables_and_levels(write: Callable[[str], Path], command: Command, engines: Path) -> None:
    write('log-level = "warning"\n[compile.option]\nprecision = "fp16"\n[zoo.list]\njson = true\n[compile]\ntune = 3\n')
    result = command("compile", engines / "tiny.cfg", "-t", "onnx")
    # What it gives besides is said in the error alone.
    assert (result.code, result.err.splitlines()[0]) == (1, "dnc: error: target onnx has no kernels to tune")
    listed = command("zoo", "list")
    assert listed.err == ""
    assert json.loads(listed.out)[0]["name"] == "yolov3-tiny"
    # The command line has a level of its own.
    assert " gives --json=true" in command("zoo", "list", "--log-level", "info").err


def test_usage_errors_name_the_file(write: Callable[[str], Path], command: Command, engines: Path) -> None:
    path = write('[eval]\ndata = "obj.data"\n')
    result = command("eval", engines / "tiny.engine", "--images", "a.png")
    assert (result.code, result.out) == (2, "")
    assert result.err.splitlines()[-1].startswith(f"{path} gives --data=")


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("[compile]\ntarget = 'onnx'\nbatsch = 1\n", 3, "dnc compile has no option 'batsch'\n"),
        ("[compile]\ntarget = 'onnx'\nbatsch = 1\n", 3, "did you mean 'batch'?"),
        ("\n[compil]\n", 2, "did you mean 'compile'?"),
        ("compile = 3\n", 1, "its options stand below [compile]"),
        ("[zoo]\nfetch = 3\n", 2, "its options stand below [zoo.fetch]"),
        ("[zoo.fetch]\nforced = true\n", 2, "dnc zoo fetch has no option 'forced'"),
        ("[compile]\n\nbatch = 1.5\n", 3, "'batch': '1.5' is not a valid integer"),
        ("[compile]\nbatch = 0\n", 2, "'batch': 0 is not in the range"),
        ("[compile]\nbatch = true\n", 2, "'batch' is text or a number"),
        ("[compile]\nverify = 'no'\n", 2, "'verify' is true or false"),
        ("[compile]\nmean = 'x'\n", 2, "'mean': one number, or one per channel"),
        ("[compile]\n# target = 3\noption.precision = [1]\n", 3, "'option' is text or a number"),
        ("[bench]\npeer = 'ncnn=/bin/sh'\n", 2, "'peer' is for the command line alone"),
        ("[embed]\nflags = true\n", 2, "'flags' is for the command line alone"),
        ("version = true\n", 1, "dnc has no option 'version'"),
        ("log-level = 'loud'\n", 1, "'log-level': 'loud' is not one of"),
        ("[compile\n", 1, "no TOML"),
        ("[compile]\r\ntarget = 'onnx'\r\nbatsch = 1\r\n", 3, "no option 'batsch'"),
        ("\ncompile = { target = 'onnx', batsch = 1 }\n", 2, "no option 'batsch'"),
        ("[[compile]]\n", 1, "its options stand below [compile]"),
        ("[compile]\nverify = true\nno-verify = true\n", 3, "'no-verify' says again what another key says"),
        ("[compile]\nbatch = 0x" + "f" * 5000, 2, "'batch' has a number with too many digits"),
        ("[compile]\nskip = [[0x" + "f" * 5000 + "]]", 2, "'skip' has a number with too many digits"),
        ("[compile]\nlabels = 'a'\nout = \"a\\u0000b\"\n", 3, "'out' is text or a number"),
        ("[compile]\ntarget = 1979-05-27\n", 2, "'target' is text or a number"),
        ('[compile]\n"\\u001b[31mx" = 1\n', 1, "no option '\ufffd[31mx'"),
        ("[detect]\nconfidence = nan\n", 2, "'confidence': nan is no finite number"),
        ("[bench]\nseconds = inf\n", 2, "'seconds': inf is no finite number"),
        ("no-config = true\n", 1, "'no-config' is for the command line alone"),
        ("[calibrate]\nexport = ['a', 'b']\n", 2, "'export' is for the command line alone"),
        ("[bench]\nvideo = 'rtsp://127.0.0.1:1/a'\n", 2, "an address for 'video' is for the command line alone"),
        ("[compile]\ntarget = 'onnx'\nout = ''\n", 3, "it is empty"),
        ("[package]\ncc = './cc'\n", 2, "'cc' is for the command line alone"),
        ("[eval]\nscheduler = 'tcp://a:1'\n", 2, "'scheduler' is for the command line alone"),
        ("[bench]\nremote = 'a:1'\n", 2, "'remote' is for the command line alone"),
        ("[diagnose]\nagainst = 'a.engine'\n", 2, "'against' is for the command line alone"),
        ("[compile.option]\ncc = './cc'\n", 1, "'cc' of --option is for the command line alone"),
        ("[compile]\noption = ['precision=fp16', 'compiler=./nvcc']\n", 2, "'compiler' of --option is"),
        ("[export.option]\nruntime = './a.so'\n", 1, "'runtime' of --option is"),
    ],
)
def test_what_is_wrong_has_its_line(
    text: str, line: int, said: str, write: Callable[[str], Path], command: Command
) -> None:
    path = write(text)
    result = command("targets")
    assert (result.code, result.out) == (1, "")
    assert said in result.err
    assert f"  at {path}:{line}\n" in result.err
    # Help comes all the same.
    assert command("compile", "--help").code == 0


def test_a_file_that_is_none(write: Callable[[str], Path], command: Command) -> None:
    path = write("")
    for content, answer in (
        (b"\xff", "cannot read the file"),
        ("[info]\n".encode("utf-16"), "cannot read the file"),
        (b"a = " + b"9" * 5000, "a number has too many digits"),
        (b"#" * (2 << 20), "cannot read the file"),
        (b"a = " + b"[" * 100_000, "nests too deep"),
    ):
        path.write_bytes(content)
        result = command("targets")
        assert (result.code, answer in result.err) == (1, True), result.err


def test_a_byte_order_mark(write: Callable[[str], Path], command: Command, engines: Path) -> None:
    write("\ufeff[info]\r\nwidth = 64\r\njson = true\r\n")
    assert json.loads(command("info", engines / "tiny.cfg").out)["input"][2] == 64


def test_what_has_the_name_and_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "dnc.toml"

    def refused() -> None:
        result = command("targets")
        assert (result.code, result.out) == (1, "")
        assert result.err.startswith("dnc: error: cannot read the file: ")
        assert command("--no-config", "targets").code == 0

    path.mkdir()
    refused()
    path.rmdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(path)
        refused()
        path.unlink()
    for target in ("dnc.toml", "absent", os.devnull):
        path.symlink_to(target)
        refused()
        path.unlink()


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs POSIX")
def test_files_of_other_users(
    write: Callable[[str], Path], command: Command, engines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the current folder they are passed over; in it, whoever went there wants it."""
    path = write("[info]\njson = true\n")
    lstat = Path.lstat

    def elsewhere(self: Path) -> os.stat_result:
        found = lstat(self)
        return os.stat_result((*found[:4], 4321, *found[5:])) if self == path else found

    monkeypatch.setattr(Path, "lstat", elsewhere)
    result = command("info", engines / "tiny.cfg")
    assert result.out.startswith("layer")
    assert result.err.startswith(f"dnc: warning: the file is not taken: it is another user's\n  at {path}\n")
    monkeypatch.chdir(path.parent)
    assert json.loads(command("info", engines / "tiny.cfg").out)
