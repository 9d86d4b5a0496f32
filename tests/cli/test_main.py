"""`dnc` itself: what it imports, its exit codes, and the one form of its errors."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from dnc.cli import cli
from tests.conftest import Result
from tests.patience import PATIENCE

Command = Callable[..., Result]

HEAVY = "numpy onnx onnx_ir onnxruntime rich PIL dnc.darknet.network dnc.compiler.compiling".split()  # noqa: SIM905
POSIX = pytest.mark.skipif(os.name == "nt", reason="signals and pipes of POSIX")


def commands() -> list[str]:
    names = [name for name in cli.list_commands(None) if name != "zoo"]  # type: ignore[arg-type]
    return [*names, "zoo", "zoo list", "zoo fetch"]


def dnc(*arguments: object, code: str = "") -> list[str]:
    """The command line of a Python that runs `code` and then dnc."""
    argv = ["dnc", *map(str, arguments)]
    return [sys.executable, "-c", f"import sys; sys.argv = {argv!r}\n{code}\nfrom dnc.cli import main\nmain()"]


def run(*arguments: object, code: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(dnc(*arguments, code=code), capture_output=True, text=True, timeout=PATIENCE)


def test_help_loads_nothing_heavy() -> None:
    """Neither `dnc --help` nor a command's: all of them one after the other, in a process that has loaded nothing."""
    code = f"""
import contextlib, io, sys
from dnc.cli import main
for arguments in {["--help", "--version", *(f"{name} --help" for name in commands())]}:
    sys.argv = ["dnc", *arguments.split()]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        try:
            main()
        except SystemExit as ended:
            assert not ended.code, arguments
    assert said.getvalue(), arguments
    assert not set({HEAVY}) & set(sys.modules), arguments
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr


def test_the_runtime_loads_nothing_of_the_compiler() -> None:
    code = "import sys, dnc.runtime.engine; from dnc.runtime.runners import runners; list(runners); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "numpy" in loaded
    heavy = {"onnx", "onnx_ir", "onnxruntime", "rich", "click", "dnc.darknet.network", "dnc.darknet.layers"}
    assert not heavy & set(loaded)


@pytest.mark.parametrize("name", commands())
def test_every_command_has_help_with_an_example(name: str) -> None:
    result = CliRunner().invoke(cli, [*name.split(), "-h"])
    assert result.exit_code == 0
    assert f"Example: dnc {name}" in " ".join(result.output.split())


def test_every_command_is_listed_in_full() -> None:
    """Click cuts what does not fit into 80 columns."""
    assert "..." not in CliRunner().invoke(cli, ["--help"]).output.partition("Commands:")[2]


def test_error_form_and_code_1(tmp_path: Path) -> None:
    cfg = tmp_path / "yolo.cfg"
    cfg.write_text("[net]\nwidth=4\nheight=4\nchannels=8\n\n[convolutional]\nfilters=8\n groups=3\n", encoding="utf-8")
    result = run("info", cfg)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        "dnc: error: groups=3 does not divide 8 input channels and 8 filters\n"
        f"  at {cfg}:8 [convolutional] #0\n"
        "      8 | groups=3\n"
        "  hint: groups must divide both\n"
    )


def test_warning_form(tmp_path: Path) -> None:
    cfg = tmp_path / "a.cfg"
    cfg.write_text("[net]\nwidth=4\nheight=4\nchannels=3\nqwerty=1\n[avgpool]\n", encoding="utf-8")
    result = run("info", cfg)
    assert result.returncode == 0
    assert result.stderr.startswith("dnc: warning: nothing in [net] reads 'qwerty'\n  at ")
    # The last line says which files were taken.
    assert result.stderr.count("\n") == 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("detcet", "no command 'detcet': did you mean 'detect'?"),
        ("qqqq", "no command 'qqqq'\n"),
        ("_images", "no command '_images'"),
        ("detect", "Missing argument 'ENGINE'"),
        ("info a b", "unexpected extra argument"),
        ("info --jsn a", "No such option"),
        ("detect e i -c 1.5", "1.5 is not in the range"),
        ("compile a.cfg --mean x", "one number, or one per channel"),
    ],
)
def test_usage_errors_are_code_2(arguments: str, said: str, command: Command) -> None:
    result = command(*arguments.split())
    assert (result.code, result.out) == (2, "")
    assert said in result.err.replace("option: ", "option ")
    assert result.err.startswith("Usage: dnc")


def test_no_arguments_show_the_help(command: Command) -> None:
    result = command()
    assert result.code == 2
    assert "Commands:" in result.out + result.err


def test_a_bug_is_code_70_with_its_traceback() -> None:
    code = "import dnc.cli.info\ndef bug(**_): raise RuntimeError('oops')\ndnc.cli.info.command.callback = bug"
    result = run("info", "x", code=code)
    assert (result.returncode, result.stdout) == (70, "")
    assert "Traceback" in result.stderr
    *_, error, last = result.stderr.splitlines()
    assert error == "RuntimeError: oops"
    assert re.match("dnc: this is a bug of dnc; please report it (to|at) .*, with the lines above", last)


@POSIX
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_compile_leaves_nothing(number: int, code: int, engines: Path, tmp_path: Path) -> None:
    slow = (
        "import dnc.targets.onnx, pathlib, signal\n"
        "def slow(model, path):\n"
        "    pathlib.Path(path).write_bytes(b'half')\n"
        "    print('writing', flush=True)\n"
        "    signal.pause()\n"
        "dnc.targets.onnx.serialize_to = slow\n"
        # A suite that runs in the background has SIGINT ignored, and so would its children.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    )
    arguments = ("compile", engines / "tiny.cfg", "-t", "onnx", "-o", tmp_path / "out" / "e")
    with subprocess.Popen(
        dnc(*arguments, code=slow), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        assert [path.suffix for path in tmp_path.rglob("*.*") if path.is_dir()] == [".dnc-part"]
        process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    # The empty line ends that of the terminal's ^C.
    assert err.strip() == "dnc: error: interrupted; nothing unfinished is left behind"
    assert not list(tmp_path.rglob("*.*"))


@POSIX
def test_an_interrupt_counts_whatever_a_library_makes_of_it() -> None:
    code = (
        "import os, signal, dnc.cli.info\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def library(**_):\n"
        "    try: os.kill(os.getpid(), signal.SIGINT)\n"
        "    except KeyboardInterrupt: RAISE\n"
        "dnc.cli.info.command.callback = library\n"
    )
    for instead in ("raise RuntimeError('in the library')", "pass"):
        result = run("info", "x", code=code.replace("RAISE", instead))
        assert (result.returncode, result.stderr.count("\n")) == (130, 1)


@POSIX
def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    """As in `dnc info yolov3.cfg | head -1`."""
    cfg = tmp_path / "long.cfg"
    cfg.write_text("[net]\nwidth=4\nheight=4\nchannels=3\n" + "[dropout]\n" * 3000, encoding="utf-8")
    with subprocess.Popen(dnc("info", cfg), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("layer")
        process.stdout.close()
        assert process.stderr.read() == f"dnc: {cfg} without weights\n"
    assert process.returncode == 0


@POSIX
@pytest.mark.parametrize("unbuffered", ["", pytest.param("1", marks=pytest.mark.slow)])
def test_results_that_are_lost_are_an_error(unbuffered: str, tmp_path: Path) -> None:
    """On a full disk, or where stdout is closed."""
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    result: subprocess.CompletedProcess[str]
    for place, said, commands in (
        (">/dev/full", "No space left on device", ("--help", "targets --json", "info yolov3-tiny")),
        (">&-", "Bad file descriptor", ("--help", "targets")),
    ):
        for arguments in commands:
            line = f'exec "$0" -m dnc {arguments} {place}'
            result = subprocess.run(
                ["sh", "-c", line, sys.executable], env=environment, stderr=subprocess.PIPE, text=True, check=False
            )
            assert result.returncode == 1, arguments
            *_, error, hint = result.stderr.splitlines()
            assert error == f"dnc: error: cannot write the results: {said}", arguments
            assert "is the disk full" in hint


@POSIX
def test_errors_that_are_lost_keep_their_code(tmp_path: Path) -> None:
    cfg = tmp_path / "a.cfg"
    cfg.write_text("[net]\nwidth=4\nheight=4\nchannels=3\nqwerty=1\n[avgpool]\n", encoding="utf-8")
    none, warning, listed, unknown = (f"info {tmp_path}/none.cfg", 1), (f"info {cfg}", 0), ("zoo list", 0), ("infoo", 2)
    for place, tried in (
        ("2>/dev/full", (none, warning, unknown)),
        ("2>&-", (none, warning, listed, unknown)),
        ("2>&- <&-", (warning,)),
    ):
        for what, code in tried:
            command = ["sh", "-c", f'exec "$0" -m dnc {what} {place}', sys.executable]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            assert result.returncode == code, place
            assert bool(result.stdout) == (code == 0)


def test_a_label_that_the_encoding_lacks() -> None:
    """Windows' pipes are cp1252, and no label may end the program."""
    code = "import dnc.cli.info, click\ndnc.cli.info.command.callback = lambda **_: click.echo('caf\\u00e9 \\u732b')\n"
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    result = subprocess.run(dnc("info", "x", code=code), capture_output=True, env=environment)
    assert result.stdout.strip() == b"caf\xe9 \\u732b"


def on_terminal(command: list[str], columns: int, stdout: int | None = None) -> tuple[str, str]:
    """What a command writes to a terminal of this width, and to a pipe if that is its stdout."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    output = theirs if stdout is None else stdout
    with subprocess.Popen(command, stdout=output, stderr=theirs, stdin=theirs, env=environment, text=True) as process:
        os.close(theirs)
        shown = b""
        # Linux ends a terminal that nobody writes to any more with EIO.
        with contextlib.suppress(OSError):
            while block := os.read(ours, 4096):
                shown += block
        os.close(ours)
        piped = process.stdout.read() if process.stdout is not None else ""
    assert process.returncode == 0
    return shown.decode(), piped


def test_a_table_on_a_terminal(engines: Path) -> None:
    shown, _ = on_terminal(dnc("info", engines / "tiny.cfg"), 100)
    assert "─────" in shown
    assert "convolutional" in shown
    # Too narrow for its columns: aligned text, which the terminal wraps.
    shown, _ = on_terminal(dnc("info", engines / "tiny.cfg"), 50)
    assert "─────" not in shown
    assert "    0  convolutional        8  3 x 3 / 2 " in shown
    # Long text folds.
    shown, _ = on_terminal(dnc("passes"), 100)
    assert "Folds batch" in shown
    assert max(map(len, re.sub(r"\x1b[^m]*m", "", shown).splitlines())) <= 100


def test_progress_leaves_stdout_alone(engines: Path, photographs: Path) -> None:
    """Only stderr is a terminal, as in `dnc detect ... > boxes.txt`. With -q there is none."""
    arguments = ("detect", engines / "tiny.engine", photographs, "-c", "0.01")
    shown, piped = on_terminal(dnc(*arguments), 80, stdout=subprocess.PIPE)
    assert piped.count(" ms\n") == 3
    assert "\x1b" not in piped
    assert "3/3" in shown
    assert " ms" not in shown
    assert on_terminal(dnc(*arguments, "-q"), 80, stdout=subprocess.PIPE)[0] == ""


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_numbers_are_finite(number: str, command: Command, engines: Path) -> None:
    """click finds nan in every range."""
    for line in (
        "detect tiny.engine a.png -c",
        "eval tiny.engine --iou",
        "compare tiny.cfg --tolerance",
        "bench tiny.engine --seconds",
        "bench tiny.engine --images a.png --fps",
        "compile tiny.cfg --max-drop",
        "compile tiny.cfg --mean",
        "calibrate tiny.cfg --percentile",
        "import a.pth tiny.cfg -o a.weights --epsilon",
        "doctor --seconds",
    ):
        result = command(*line.split(), number)
        assert (result.code, result.out) == (2, ""), line
        assert "Invalid value for '--" in result.err, line


@pytest.mark.parametrize(
    "line",
    [
        "bench EMPTY",
        "calibrate tiny.cfg --images EMPTY",
        "compile tiny.cfg -o EMPTY",
        "detect tiny.engine a.png EMPTY",
        "diagnose tiny.engine --html EMPTY",
        "explain EMPTY",
    ],
)
def test_an_empty_path_is_not_the_current_folder(line: str, command: Command) -> None:
    result = command(*("" if word == "EMPTY" else word for word in line.split()))
    assert (result.code, result.out) == (2, "")
    assert "it is empty; is a variable not set?" in result.err
