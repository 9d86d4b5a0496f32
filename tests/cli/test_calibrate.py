"""dnc calibrate: Darknet's words, files in any order, what is found and what is said where something is missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dnc.darknet.network import Network
from dnc.quantization.calibration import Calibration
from tests.conftest import Result

Command = Callable[..., Result]


def _files(folder: Path) -> list[str]:
    return Calibration.read(folder / "tiny.calibration.json").images["files"]  # type: ignore[no-any-return]


def test_darknets_words(command: Command, folder: Path) -> None:
    result = command("calibrate", "obj.data", "tiny.cfg", "tiny.weights", "-input_calibration", 2)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("tiny.calibration.json: tiny, 4 asymmetric ranges by norm on 2 images, in ")
    found = Calibration.read(folder / "tiny.calibration.json")
    found.check(Network.load("tiny.cfg", "tiny.weights"))
    assert list(found.ranges) == ["input", "layer000", "layer001", "layer002"]
    assert (found.images["source"], found.images["files"]) == ("obj.data", ["a.png", "b.png"])


@pytest.mark.parametrize(
    "arguments",
    [
        ("tiny.weights", "tiny.cfg", "obj.data"),
        ("tiny.cfg",),
        ("tiny.cfg", "--data", "obj.data"),
        ("tiny.cfg", "train.txt"),
        ("tiny.cfg", "--images", "train.txt", "-w", "tiny.weights"),
        ("net", "blob", "list", "-n", "3"),
        ("net", "blob", "obj.data", "--images", "3"),
        ("tiny.cfg", "--images", "a.png", "--images", "[b-c].png"),
    ],
)
def test_files_in_any_form(command: Command, folder: Path, arguments: tuple[str, ...]) -> None:
    """By suffix, else by contents; what is not named is found beside the cfg."""
    for name, copy in (("tiny.cfg", "net"), ("tiny.weights", "blob"), ("train.txt", "list")):
        shutil.copy(folder / name, folder / copy)
    result = command("calibrate", *arguments, "-o", "tiny.calibration.json")
    assert (result.code, result.err) == (0, "")
    assert _files(folder) == ["a.png", "b.png", "c.png"]


def test_lists_and_samples(command: Command, folder: Path) -> None:
    assert command("calibrate", "tiny.cfg", "--list", "valid").code == 0
    assert _files(folder) == ["d.png"]
    assert command("calibrate", "tiny.cfg", "-n", 2, "--seed", 1).code == 0
    drawn = _files(folder)
    assert len(drawn) == 2
    assert command("calibrate", "tiny.cfg", "-n", 2, "--seed", 1).code == 0
    assert _files(folder) == drawn == sorted(drawn)


def test_json_and_options(command: Command, folder: Path) -> None:
    options = ("--method", "percentile", "--percentile", "99", "--asymmetric", "--mean", "0.5")
    result = command("calibrate", "tiny.cfg", *options, "--json", "-o", "x.json")
    assert (result.code, result.err) == (0, "")
    values = json.loads(result.out)
    assert [values.pop(key) for key in ("file", "cfg", "weights")] == ["x.json", "tiny.cfg", "tiny.weights"]
    assert values == json.loads((folder / "x.json").read_text(encoding="utf-8"))
    assert (values["method"], values["symmetric"]) == ("percentile 99", False)
    assert values["preprocessing"]["mean"] == [0.5]
    assert -0.5 <= values["ranges"]["input"]["low"] < 0


NOTE = ", with symmetric ranges of the same histograms"
TABLES = ("--export", "darknet", "t.txt", "--export", "darknet", "t.cfg", "--export", "tensorrt", "cache")


def test_tables(command: Command, folder: Path) -> None:
    """Symmetric ranges of the same images, beside the calibration, which stays as it was asked for. What is exported
    and imported again has the same thresholds, as far as the table has them."""
    assert command("calibrate", "tiny.cfg", "-o", "alone.json").code == 0
    assert command("calibrate", "tiny.cfg", "--symmetric", "-o", "symmetric.json").code == 0
    result = command("calibrate", "tiny.cfg", *TABLES, "--tensorrt", "10.3.0")
    assert (result.code, result.err) == (0, "")
    lines = [f"  darknet: t.txt{NOTE}", f"  darknet: t.cfg{NOTE}", f"  tensorrt: cache{NOTE}"]
    assert result.out.splitlines()[1:] == lines
    assert (folder / "tiny.calibration.json").read_bytes() == (folder / "alone.json").read_bytes()
    assert not Calibration.read(folder / "tiny.calibration.json").symmetric
    own = Calibration.read(folder / "symmetric.json")
    assert (folder / "cache").read_text(encoding="utf-8").startswith("TRT-100300-EntropyCalibration2\ninput: ")
    for table, names in (("t.txt", 2), ("t.cfg", 2), ("cache", 4), ("symmetric.json", 4)):
        result = command("calibrate", "tiny.cfg", "--import", table, "-o", "again.json")
        assert (result.code, result.err) == (0, "")
        found = Calibration.read(folder / "again.json")
        assert len(found.ranges) == names
        assert all(entry.threshold == own.ranges[name].threshold for name, entry in found.ranges.items())


def test_tables_of_a_calibration_that_is_there(command: Command, folder: Path) -> None:
    """A symmetric one loses nothing; of the ranges of an asymmetric one the farther ends are taken, which is said."""
    for form, note in (("--symmetric", ""), ("--asymmetric", ", with the farther end of each range on both sides")):
        assert command("calibrate", "tiny.cfg", form, "-o", "x.json").code == 0
        result = command("calibrate", "tiny.cfg", "--import", "x.json", "--export", "tensorrt", "cache", "-o", "y.json")
        assert result.out.splitlines()[1:] == [f"  tensorrt: cache{note}"]
        assert (folder / "y.json").read_bytes() == (folder / "x.json").read_bytes()


@pytest.mark.parametrize("out", ["t.txt", "same/../t.txt"])
def test_two_tables_in_one_file(command: Command, folder: Path, out: str) -> None:
    (folder / "same").mkdir()
    result = command("calibrate", "tiny.cfg", "-o", out, "--export", "darknet", "t.txt")
    assert (result.code, "two results would be written to one file" in result.err) == (1, True)
    assert not (folder / "t.txt").exists()


@pytest.mark.parametrize("wrong", [["-o", "none/t.json"], ["--export", "darknet", "none/t.txt"], ["-o", "."]])
def test_places_are_looked_at_before_images(command: Command, folder: Path, wrong: list[str]) -> None:
    """So nothing is measured in vain, and no calibration is written whose table cannot be."""
    before = sorted(folder.iterdir())
    result = command("calibrate", "tiny.cfg", "--images", "gone.txt", *wrong)
    assert result.code == 1
    assert f"  at {wrong[-1]}\n" in result.err
    assert sorted(folder.iterdir()) == before


def test_import_says_where_ranges_come_from(command: Command, folder: Path) -> None:
    (folder / "t.txt").write_text("input_calibration = 15.8, 40, 16", encoding="utf-8")
    result = command("calibrate", "tiny.cfg", "--import", "t.txt")
    assert result.out.startswith("tiny.calibration.json: tiny, 2 symmetric ranges by darknet from t.txt, in ")


def test_fewer_images_than_wanted_are_all_taken(command: Command, folder: Path) -> None:
    result = command("calibrate", "obj.data", "tiny.cfg", "tiny.weights", "-input_calibration", "100")
    assert (result.code, " on 3 images" in result.out) == (0, True)
    assert "warning: 100 images are wanted, but there are 3\n" in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tiny.cfg", "-n", "0"), "0 images are wanted"),
        (("obj.data", "tiny.weights"), "the .cfg is missing"),
        (("tiny.cfg", "other.cfg"), "tiny.cfg and other.cfg are both cfg"),
        (("tiny.cfg", "none.weights"), "none.weights"),
        (("tiny.cfg", "nothing"), "there is no such file"),
        (("tiny.cfg", "--images", "empty.txt"), "there are no images in this list"),
        (("tiny.cfg", "--images", "bad.txt"), "there is no such image"),
        (("tiny.cfg", "--import", "train.txt"), "this is no table of ranges"),
        (("tiny.cfg", "--import", "other.json"), "belongs to another network"),
        (("lonely/tiny.cfg", "tiny.weights"), "no images are named, and there is no .data file beside the cfg"),
        (("lonely/tiny.cfg", "obj.data"), "no weights beside the cfg"),
        (("tiny.cfg", "--export", "tensorrt", "cache", "--tensorrt", "11.0.0"), "TensorRT 11 reads no"),
    ],
)
def test_what_is_wrong_is_said(command: Command, folder: Path, arguments: tuple[str, ...], message: str) -> None:
    (folder / "empty.txt").write_text("\n", encoding="utf-8")
    (folder / "bad.txt").write_text("a.png\nnone.png\n", encoding="utf-8")
    (folder / "lonely").mkdir()
    shutil.copy(folder / "tiny.cfg", folder / "lonely" / "tiny.cfg")
    shutil.copy(folder / "tiny.cfg", folder / "other.cfg")
    Calibration("f" * 64, "kl", True, {}, {}, {}).write(folder / "other.json")
    result = command("calibrate", *arguments)
    assert (result.code, result.out) == (1, "")
    assert message in result.err


def test_several_data_files(command: Command, folder: Path) -> None:
    shutil.copy(folder / "obj.data", folder / "other.data")
    result = command("calibrate", "tiny.cfg")
    assert (result.code, "several .data files are beside the cfg" in result.err) == (1, True)
    shutil.copy(folder / "obj.data", folder / "tiny.data")
    assert command("calibrate", "tiny.cfg").code == 0


def test_a_damaged_image_in_the_middle(command: Command, folder: Path) -> None:
    (folder / "b.png").write_bytes(b"\x89PNG no image")
    result = command("calibrate", "tiny.cfg")
    assert (result.code, result.out) == (1, "")
    assert "b.png" in result.err
    assert "--skip-bad leaves it out" in result.err
    assert not (folder / "tiny.calibration.json").exists()
    result = command("calibrate", "tiny.cfg", "--skip-bad")
    assert (result.code, "b.png" in result.err) == (0, True)
    assert _files(folder) == ["a.png", "c.png"]


def test_ctrl_c_leaves_what_was_there(command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "tiny.calibration.json").write_text("old", encoding="utf-8")
    before = sorted(folder.iterdir())

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dnc.quantization.histograms.Histogram.add", interrupted)
    result = command("calibrate", "tiny.cfg")
    assert (result.code, "interrupted" in result.err) == (130, True)
    assert sorted(folder.iterdir()) == before
    assert (folder / "tiny.calibration.json").read_text(encoding="utf-8") == "old"
