"""Errors: their text, their places, their hints."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import pytest

from dnc import errors
from dnc.errors import CfgError, DncError, Where, close_match

WHERE = Where("nets/a.cfg", 12, "yolo", 3, "classes=x")


def test_text() -> None:
    """The four parts, those that there are."""
    assert str(DncError("it broke")) == "it broke"
    assert str(DncError("it broke", Path("a/b"))) == "it broke\n  at a/b"
    assert str(DncError("it broke", hint="mend it")) == "it broke\n  hint: mend it"
    assert str(CfgError("it broke", WHERE, "mend it")) == (
        "it broke\n  at nets/a.cfg:12 [yolo] #3\n     12 | classes=x\n  hint: mend it"
    )


def test_text_is_safe_to_print() -> None:
    """Whatever a file or a server said of itself."""
    error = DncError("a\x1b[1m\rb\nc\udce7", Where("x\x07", 3, text="d\x7f"), "e" * 5000)
    assert str(error) == f"a\ufffd[1m\ufffdb\nc\udce7\n  at x\ufffd:3\n      3 | d\ufffd\n  hint: {'e' * 992}"


@pytest.mark.parametrize(
    ("where", "text"),
    [
        (Where("a.cfg"), "a.cfg"),
        (Where("a.cfg", 1), "a.cfg:1"),
        (Where("a.cfg", 1, "net"), "a.cfg:1 [net]"),
        (Where("a.cfg", 7, "conv", 0), "a.cfg:7 [conv] #0"),
    ],
)
def test_where(where: Where, text: str) -> None:
    assert str(where) == text


@pytest.mark.parametrize("file", ["/home/me/a.cfg", "a.cfg", "..\\nets\\a.cfg", "C:\\a.cfg"])
def test_short_where_is_the_same_on_every_machine(file: str) -> None:
    assert Where(file, 7, "conv", 0).short == "a.cfg:7 [conv] #0"


def test_short_where_is_utf_8() -> None:
    """Bytes of a file's name that are no UTF-8 come as lone surrogates."""
    assert Where("gar\udce7on.cfg", 1).short == "gar?on.cfg:1"


def test_all_are_dnc_errors() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert {kind.__name__ for kind in kinds} == {
        *("DncError", "CfgError", "WeightsError", "ImageError", "PassError", "TargetError", "BundleError"),
        *("ZooError", "DestinationError", "DncWarning"),
    } | {kind.__name__ for kind in kinds if kind.__name__ in ("CalibrationError", "DatasetError")}
    assert all(issubclass(kind, DncError) for kind in kinds if not issubclass(kind, Warning))


def test_pickle() -> None:
    """Errors of a process pool arrive whole."""
    error = pickle.loads(pickle.dumps(CfgError("it broke", WHERE, "mend it")))
    assert isinstance(error, CfgError)
    assert str(error) == str(CfgError("it broke", WHERE, "mend it"))


def test_close_match() -> None:
    known = ["maxpool", "avgpool", "route"]
    assert close_match("maxpol", known) == "did you mean 'maxpool'?"
    assert close_match("xyz", known) == ""
    assert close_match("szie", ["size", "groups"], 0.8) == "did you mean 'size'?"
    assert close_match("clases", ["scales", "classes"], 0.8) == "did you mean 'classes'?"
    assert close_match("maxpol", known, cutoff=0.99) == ""
    assert close_match("", []) == ""
    assert close_match("avgpol", iter(known)) == "did you mean 'avgpool'?"


@pytest.mark.parametrize(
    ("word", "known", "hint"),
    [
        ("onnyx", ["onnx", "tvm"], "did you mean 'onnx'?"),
        ("SILU", ["selu", "swish"], "did you mean 'swish'?"),
        ("tpu", ["cpu"], "none"),
        # Another number is another version, not a typing error.
        ("yolov8", ["yolov3", "yolov4"], ""),
        ("yolov3tiny", ["yolov3-tiny", "yolov4-tiny"], "did you mean 'yolov3-tiny'?"),
    ],
)
def test_hints_do_not_mislead(word: str, known: list[str], hint: str) -> None:
    assert close_match(word, known, meant={"silu": "swish", "tpu": "none"}) == hint


def test_no_addresses() -> None:
    """Neither in the words of a library nor in place of a file."""
    error = DncError("cannot identify image file <_io.BytesIO object at 0x7fd8>", io.BytesIO())
    assert str(error) == "cannot identify image file BytesIO\n  at an object of BytesIO"
    assert str(DncError("no image", b"\0" * 9)) == "no image\n  at 9 bytes of data"


@pytest.mark.parametrize(
    ("urls", "origin", "told"),
    [
        ([], None, "to whoever you have dnc from (this copy names no address)"),
        (["Homepage, https://a.example"], "file:///tmp/dnc.whl", "to whoever you have dnc from (this copy names no"),
        ([], "https://a.example/dnc.git", "to whoever publishes https://a.example/dnc.git, which dnc was"),
        (["Issues, https://a.example/issues"], "https://b.example/dnc.git", "at https://a.example/issues,"),
    ],
)
def test_where_bugs_are_told(
    urls: list[str], origin: str | None, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the address that the installation's metadata has; a folder of somebody's machine is none."""
    folder = tmp_path / "darknet_compiler-1.0.dist-info"
    folder.mkdir()
    lines = ["Metadata-Version: 2.4", "Name: darknet-compiler", *(f"Project-URL: {each}" for each in urls)]
    (folder / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if origin is not None:
        (folder / "direct_url.json").write_text(json.dumps({"url": origin}), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert errors.how_to_report("the cfg").startswith(f"please report it {told}")
    assert errors.how_to_report("the cfg").endswith(", with the cfg")
