"""What a terminal shows: tables that fit, what is logged, the time that is left, Ctrl-C, and completion by bash."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from dnc.cli._progress import Remaining
from dnc.tables import Table, wrapped
from tests import ROOT
from tests.cli.test_main import POSIX, dnc, on_terminal
from tests.conftest import Result
from tests.patience import PATIENCE

Command = Callable[..., Result]
Shown = Callable[[Table, int], list[str]]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shown:
    """The lines of a table on a terminal of a width."""

    def show(table: Table, columns: int) -> list[str]:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", str(columns))
        table.show()
        return [re.sub(r"\x1b[^m]*m", "", line).rstrip() for line in capsys.readouterr().out.splitlines()]

    return show


def table() -> Table:
    table = Table.of("name", "n", "what it is", right=["n"], folds=["what it is"], spare=["n"])
    table.add("first", "1", "a/long/path/of/a/file.txt and more")
    return table


def test_words_are_never_folded(shown: Shown) -> None:
    assert shown(table(), 80)[2] == "first  1  a/long/path/of/a/file.txt and more"
    head, _, first, second = shown(table(), 35)
    assert head.split() == ["name", "n", "what", "it", "is"]
    assert first.endswith(" a/long/path/of/a/file.txt")
    assert second.strip() == "and more"


def test_columns_are_left_out_before_words_are_cut(shown: Shown) -> None:
    head, _, first, second, note = shown(table(), 33)
    assert head.split() == ["name", "what", "it", "is"]
    assert first.endswith(" a/long/path/of/a/file.txt")
    assert second.strip() == "and more"
    assert note == "not shown at this width: n"


def test_rows_as_lines_where_nothing_else_fits(shown: Shown) -> None:
    assert shown(table(), 30) == [
        "first",
        "  n           1",
        "  what it is  a/long/path/of/a/file.txt",
        "              and more",
    ]


def test_a_table_without_rows_is_nothing(shown: Shown) -> None:
    assert shown(Table.of("name"), 80) == []


def test_wrapped() -> None:
    assert wrapped("one two-three four", 9, "- ") == "- one\n  two-three\n  four"


def test_what_is_logged(command: Command, engines: Path, tmp_path: Path) -> None:
    arguments = ("weights", "random", engines / "tiny.cfg", "-o", tmp_path / "a.weights")
    remark = f"dnc: {engines}/tiny.cfg with random weights\n"

    def said(*before: str, after: tuple[str, ...] = ()) -> list[str]:
        result = command(*before, *arguments, *after)
        assert result.code == 0
        return re.sub(r" +\d+\.\d{3} s ", "", result.err).splitlines()

    for quiet in (("-q",), ("--quiet",), ("--log-level", "warning"), ("--log-level", "error")):
        assert said(*quiet) == said(after=quiet) == [], quiet
    for verbose in (("-v",), ("--verbose",), ("--log-level", "debug")):
        assert said(*verbose) == said(after=verbose)
        assert f"dnc: wrote {tmp_path}/a.weights" in said(*verbose), verbose
        assert f"dnc: reading {engines}/tiny.cfg" in said(*verbose), verbose
    # The last word counts.
    assert said("-v", after=("-q",)) == []
    assert remark.startswith("dnc: ")
    # An application that uses dnc finds logging as it was.
    assert logging.getLogger("dnc").handlers == []
    assert logging.getLogger("dnc").level == logging.NOTSET
    assert logging.getLogger("dnc").propagate


def test_passes_and_times_are_logged(command: Command, engines: Path, tmp_path: Path) -> None:
    said = command("-v", "compile", engines / "tiny.cfg", "-t", "onnx", "-o", tmp_path / "e").err
    assert re.search(r"dnc: +\d+\.\d{3} s  pass 1 of \d+: eliminate-identity\n", said)
    assert re.search(r"fold-batchnorm: applied \d+ times in \d+\.\d{3} s\n", said)
    assert f"wrote {tmp_path}/e\n" in said


def test_warnings_are_logged(command: Command, tmp_path: Path) -> None:
    cfg = tmp_path / "a.cfg"
    cfg.write_text("[net]\nwidth=4\nheight=4\nchannels=3\nqwerty=1\n[avgpool]\n", encoding="utf-8")
    assert command("-q", "info", cfg).err.startswith("dnc: warning: nothing in [net] reads 'qwerty'\n  at ")
    assert command("--log-level", "error", "info", cfg).err == ""
    # Why a command ended is always said.
    assert command("--log-level", "error", "info", "no.cfg").err.startswith("dnc: error: ")


def test_time_that_is_left() -> None:
    now = 0.0
    remaining = Remaining(lambda: now)
    assert remaining("reading") == "reading"
    assert remaining("image 1 of 100  a.jpg") == "image 1 of 100  a.jpg"
    now = 1.0
    assert remaining("image 2 of 100  b.jpg") == "image 2 of 100  b.jpg"
    now = 10.0
    assert remaining("image 11 of 100  b.jpg") == "image 11 of 100 (about 1:29 left)  b.jpg"
    # Another count begins anew; other numbers of a line are no count.
    assert remaining("noise of layer 7, 1 of 5") == "noise of layer 7, 1 of 5"
    now = 4010.0
    assert remaining("noise of layer 9, 2 of 5") == "noise of layer 9, 2 of 5 (about 3:20:00 left)"
    now = 4020.0
    assert remaining("3/128  c.jpg") == "3/128  c.jpg"
    now = 4030.0
    assert remaining("4/128  c.jpg") == "4/128 (about 20:40 left)  c.jpg"


@pytest.mark.slow
@POSIX
def test_every_table_fits_80_columns(engines: Path) -> None:
    """Nothing is wider, but for words that are: paths."""
    cfg, weights = engines / "tiny.cfg", engines / "tiny.weights"
    for line in (
        *("targets", "targets myriad", "targets cuda", "passes", "passes --target tvm", "export --list", "doctor"),
        *(
            "zoo list",
            "zoo networks",
            "toolchain list",
            f"info {cfg}",
            "info yolov4",
            f"weights inspect {cfg} {weights}",
        ),
        *(f"explain {cfg} -t onnx", f"compare {cfg} -t onnx", f"bench {engines}/tiny.engine --seconds 1 --layers"),
    ):
        text = on_terminal(["sh", "-c", 'exec "$0" -m dnc "$@" 2> /dev/null', sys.executable, *line.split()], 80)[0]
        wide = [row for row in re.sub(r"\x1b[^m]*m|\r", "", text).splitlines() if len(row) > 80]
        assert [row for row in wide if len(max(row.split(), key=len)) < 40] == [], line


INTERRUPTED = {
    "bench tiny.engine": "timing",
    "bench tiny.engine --seconds 0.1 --layers": "timing the layers",
    "calibrate tiny.cfg --images IMAGES -n 3000 -o c.json": "1/3000",
    "compare tiny.cfg -t onnx": "computing",
    "doctor": "trying target",
    "eval tiny.engine --images IMAGES --allow-unlabelled": "photographs",
    "explain tiny.cfg -t onnx": "pass 2",
    "export tiny.cfg --for ultralytics -o out.onnx": "pass 2",
    "detect tiny.engine FOLDERS": "photographs",
}


@pytest.mark.slow
@POSIX
@pytest.mark.parametrize("line", INTERRUPTED)
def test_interrupted_commands(line: str, engines: Path, photographs: Path, tmp_path: Path) -> None:
    """Each ends with 130 and one line, at once, and leaves nothing."""
    words = [str(engines / word) if word.startswith("tiny.") else word for word in line.split()]
    # So many that it goes on until it is interrupted.
    many = tmp_path / "many.txt"
    many.write_text(f"{photographs}/a.png\n" * 3000)
    files = {"IMAGES": [str(many)], "FOLDERS": [str(photographs)] * 1000}
    words = [each for word in words for each in files.get(word, [word])]
    # A suite that runs in the background has SIGINT ignored, and so would its children.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = dnc("-v", *words, code=code)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True
    ) as process:
        assert process.stderr is not None
        for said in process.stderr:
            if INTERRUPTED[line] in said:
                break
        # As a terminal does, to all of its processes.
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
    rest = [said for said in err.splitlines() if said and not re.match(r"dnc: +\d+\.\d{3} s ", said)]
    assert (process.returncode, rest) == (130, ["dnc: error: interrupted; nothing unfinished is left behind"])
    assert list(tmp_path.iterdir()) == [many]


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_for_shells(shell: str, tmp_path: Path) -> None:
    """As docs/guides/terminal.md has it: the script is whole, and bash completes with it."""
    environment = {**os.environ, "_DNC_COMPLETE": f"{shell}_source"}
    (tmp_path / "dnc").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dnc "$@"\n')
    (tmp_path / "dnc").chmod(0o755)
    environment["PATH"] = f"{tmp_path}{os.pathsep}{environment['PATH']}"
    script = subprocess.run(["dnc"], env=environment, capture_output=True, text=True, check=True).stdout
    assert f"_DNC_COMPLETE={shell}_complete" in script
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"there is no {shell}")
    (tmp_path / "script").write_text(script)
    subprocess.run([program, "-n", str(tmp_path / "script")], check=True)
    if shell == "bash":
        asked = 'COMP_WORDS=(dnc compile --target op); COMP_CWORD=3; _dnc_completion dnc; echo "${COMPREPLY[@]}"'
        del environment["_DNC_COMPLETE"]
        answer = subprocess.run([program, "-c", f". {tmp_path}/script; {asked}"], env=environment, capture_output=True)
        assert answer.stdout == b"openvino\n"


def typed(program: list[str], lines: str, keys: str, folder: Path, environment: dict[str, str]) -> str:
    """What a shell shows after some lines, keys and Tab: at the end the words that it takes the line for, as <word>."""
    pty = pytest.importorskip("pty")
    own, theirs = pty.openpty()
    process = subprocess.Popen(
        program, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=environment, start_new_session=True
    )
    os.close(theirs)
    timer = threading.Timer(PATIENCE, process.kill)
    timer.start()
    shown = b""

    def wait_for(word: bytes) -> None:
        nonlocal shown
        while word not in shown and (part := os.read(own, 1 << 16)):
            shown += part

    # Linux ends a terminal whose shell has ended with EIO.
    with contextlib.suppress(OSError):
        os.write(own, f"{lines}\necho re''ady\n".encode())
        wait_for(b"ready")
        # At the beginning of the line (Ctrl-A) what prints its words, and behind its end (Ctrl-E) one more.
        os.write(own, f"{keys}\t\x01printf '<%s>' \x05 END\n".encode())
        wait_for(b"<END>")
    timer.cancel()
    process.kill()
    process.wait()
    os.close(own)
    return shown.decode(errors="replace")


@POSIX
@pytest.mark.slow
@pytest.mark.parametrize(
    ("shell", "words", "lines"),
    [
        ("bash", "--norc --noprofile -i", 'eval "$(_DNC_COMPLETE=bash_source dnc)"'),
        ("zsh", "-f -i", 'autoload -Uz compinit; compinit -D -u; eval "$(_DNC_COMPLETE=zsh_source dnc)"'),
        ("fish", "--no-config -c", "_DNC_COMPLETE=fish_source dnc | source; complete -C "),
    ],
)
def test_what_is_typed(shell: str, words: str, lines: str, tmp_path: Path) -> None:
    """In the shells themselves: values behind a space and behind =, and names that a shell would take for something."""
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"there is no {shell}")
    names = ("my net.cfg", "it's.cfg", "do$HOME.cfg", "ba`ck.cfg", 'x"y.cfg')
    for name in names:
        (tmp_path / name).touch()
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (binaries / "dnc").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dnc "$@"\n')
    (binaries / "dnc").chmod(0o755)
    environment = {**os.environ, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}
    environment |= {"TERM": "xterm", "PYTHONPATH": str(ROOT), "EDITOR": "emacs", "VISUAL": "emacs"}
    wanted = {f"dnc info {name[:2]}": name for name in names if name != 'x"y.cfg'}
    wanted |= {"dnc info x": 'x"y.cfg', "dnc info peleen": "peleenet"}
    wanted |= {"dnc compile -t open": "openvino", "dnc compile --target=open": "--target=openvino"}
    for keys, word in wanted.items():
        if shell == "fish":
            # It takes no terminal that it does not control, and tells by itself what Tab would.
            command = [program, *words.split(), f"{lines}'{keys}'"]
            answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert answer.stdout == f"{word}\n", keys
            continue
        shown = typed([program, *words.split()], lines, keys, tmp_path, environment)
        assert f"<{word}><END>" in shown, f"{keys}\n{shown}"
