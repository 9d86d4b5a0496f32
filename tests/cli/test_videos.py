"""`dnc detect` on videos: which frames are looked at, what is said of them, and what is written when."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dnc
from dnc.cli._drawing import PALETTE, draw
from dnc.errors import DncError
from dnc.evaluation.videos import Frame, Video
from dnc.runtime.decoding import Detection
from tests.cli.test_main import POSIX
from tests.cli.test_main import dnc as dnc_command
from tests.conftest import Result
from tests.patience import PATIENCE
from tests.videos import RATE, read_video, red, write_video

SURE = "0.25"
Command = Callable[..., Result]


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve frames; not to be written to."""
    return write_video(tmp_path_factory.mktemp("clip") / "street.avi")


@pytest.fixture
def detect(command: Command, engines: Path) -> Command:
    return lambda *arguments: command("detect", engines / "tiny.engine", "-c", SURE, *arguments)


def lines(result: Result) -> list[Any]:
    assert result.code == 0, result
    return [json.loads(line) for line in result.out.splitlines()]


def boxes(engines: Path, clip: Path) -> list[list[Detection]]:
    with dnc.load(engines / "tiny.engine") as engine:
        return [engine(frame, confidence=float(SURE)) for frame in read_video(clip)[0]]


def test_a_line_for_each_frame(detect: Command, engines: Path, clip: Path) -> None:
    result = detect(clip)
    assert result.code == 0
    expected = []
    for number, found in enumerate(boxes(engines, clip), 1):
        counts = Counter(box.label for box in found).items()
        expected.append(f"{clip} {number}: " + (", ".join(f"{count} {label}" for label, count in counts) or "-"))
    assert result.out.splitlines() == expected
    assert any(line.endswith("cat") or "black dog" in line for line in expected)
    assert result.err.startswith(f"dnc: {clip}: 12 frames in ")
    assert " a second, " in result.err
    assert "dropped" not in result.err
    assert "drawn" not in result.err


def test_json_lines_of_all_that_is_mixed(detect: Command, engines: Path, clip: Path, photographs: Path) -> None:
    image = photographs / "a.png"
    found = lines(detect(image, clip, str(clip.parent / "*.avi"), image, "--every", "5", "--json-lines"))
    names = [str(image), *[str(clip)] * 6, str(image)]
    assert [frame["filename"] for frame in found] == names
    assert [frame["frame_id"] for frame in found] == list(range(1, 9))
    assert [frame.get("frame") for frame in found] == [None, 1, 6, 11, 1, 6, 11, None]
    known = boxes(engines, clip)
    for frame in found[1:4]:
        expected = sorted(known[frame["frame"] - 1], key=lambda box: box.place)
        assert frame["objects"] == [box.to_json() for box in expected]
    # The whole of it in one list says the same.
    assert json.loads(detect(image, clip, clip, image, "--every", "5", "--json").out) == found
    assert lines(detect(image, "--json-lines")) == json.loads(detect(image, "--json").out)


@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".mov", ".mp4", ".webm"])
def test_what_is_drawn(suffix: str, detect: Command, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / f"out{suffix}"
    result = detect(clip, "-o", out)
    assert (result.code, result.out) == (0, ""), result
    assert result.err.splitlines()[-1].endswith(f" boxes; drawn into {out}, without sound")
    assert list(out.parent.iterdir()) == [out]
    frames, rate = read_video(out)
    assert rate == pytest.approx(RATE, rel=0.01)
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 12
    for drawn, frame in zip(frames, read_video(clip)[0], strict=True):
        # What was drawn, in the colors of the classes: no frame is so green.
        assert np.abs(drawn.astype(int) - frame).max() > 60
    colors = np.array(PALETTE[:2])
    pixels = np.concatenate(frames).reshape(-1, 1, 3).astype(int)
    assert (np.abs(pixels - colors).sum(axis=2) < 90).any(axis=0).all()


def test_fewer_frames_take_as_long(detect: Command, clip: Path, tmp_path: Path) -> None:
    assert detect(clip, "--every", "4", "-o", tmp_path / "a.avi", "-c", "0.99").code == 0
    frames, rate = read_video(tmp_path / "a.avi")
    assert rate == pytest.approx(RATE / 4)
    assert [red(frame) for frame in frames] == [0, 4, 8]


def test_several_go_into_a_folder(detect: Command, clip: Path, photographs: Path, tmp_path: Path) -> None:
    other = clip.with_name("other.ts")
    other.write_bytes(clip.read_bytes())
    assert detect(clip, photographs / "a.png", other, "--every", "9", "-o", tmp_path / "drawn", "--json").code == 0
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["a.png", "other.mp4", "street.avi"]
    other.unlink()


def interrupted(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """The fifth frame is where somebody presses Ctrl-C, or something fails."""
    from dnc.cli import _videos

    count = 0

    def failing(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == 5:
            raise error
        return draw(*arguments)

    monkeypatch.setattr(_videos, "draw", failing)


@pytest.mark.parametrize("suffix", [".avi", ".mp4"])
def test_ctrl_c_leaves_a_video(
    suffix: str, detect: Command, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(monkeypatch, KeyboardInterrupt())
    out = tmp_path / f"out{suffix}"
    result = detect(clip, "-o", out)
    assert result.code == 130
    told, last = filter(None, result.err.splitlines())
    assert told.startswith(f"dnc: {clip}: 4 frames in ")
    assert f"drawn into {out}" in told
    assert last.startswith("dnc: error: interrupted")
    assert list(tmp_path.iterdir()) == [out]
    assert len(read_video(out)[0]) == 4


def test_an_error_leaves_what_was_there(
    detect: Command, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(monkeypatch, DncError("torn"))
    out = tmp_path / "out.avi"
    out.write_bytes(b"old")
    result = detect(clip, "-o", out)
    assert (result.code, result.err) == (1, "dnc: error: torn\n")
    assert list(tmp_path.iterdir()) == [out]
    assert out.read_bytes() == b"old"


@pytest.mark.parametrize("suffix", [".avi", ".mp4"])
def test_a_full_disk(suffix: str, detect: Command, clip: Path, tmp_path: Path) -> None:
    """OpenCV says nothing of it. A file that may not grow does as well as a disk."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    try:
        result = detect(clip, "-o", tmp_path / f"out{suffix}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.code == 1
    assert "cannot write the video" in result.err
    assert "is the disk full" in result.err
    assert list(tmp_path.iterdir()) == []


def test_results_without_a_place(engines: Path, clip: Path, tmp_path: Path) -> None:
    """They are told apart from the video."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full")
    command = [sys.executable, "-m", "dnc", "detect", str(engines / "tiny.engine"), str(clip), "--json-lines"]
    with full.open("wb") as stdout:
        options: dict[str, Any] = {"stdout": stdout, "stderr": subprocess.PIPE, "text": True, "timeout": PATIENCE}
        result = subprocess.run([*command, "-o", str(tmp_path / "out.avi")], **options)
    assert result.returncode == 1
    assert "cannot write the results" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be(detect: Command, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(detect(clip, "-o", tmp_path / "file" / "out.avi"), 1, "cannot write the video", "read-only")


def test_frames_whose_size_changes(
    detect: Command, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Video.read
    count = 0

    def smaller(self: Video) -> Any:
        nonlocal count
        pixels = read(self)
        count += 1
        return pixels if pixels is None or count < 8 else pixels[:24]

    monkeypatch.setattr(Video, "read", smaller)
    result = detect(clip, "-o", tmp_path / "out.avi")
    assert result.code == 0
    assert result.err.count("dnc: warning: ") == 1
    assert "the frames are 64 x 24 from here on: they are scaled to 64 x 48" in result.err
    assert [frame.shape for frame in read_video(tmp_path / "out.avi")[0]] == [(48, 64, 3)] * 12


def test_what_a_camera_dropped_takes_its_time(
    detect: Command, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames 1, 2 and 5 were taken, so that there are five pictures at the camera's rate."""
    from dnc.cli import _videos

    class Camera(Video):
        def __init__(self, what: object) -> None:
            assert what == 0
            super().__init__(clip)
            self.live = True

    def three(video: Video, every: int) -> Iterator[Frame]:
        return (Frame(number, np.zeros((48, 64, 3), np.uint8)) for number in (1, 2, 5))

    monkeypatch.setattr(_videos, "Video", Camera)
    monkeypatch.setattr(_videos, "frames", three)
    result = detect("0", "-o", tmp_path / "out.avi")
    assert result.code == 0
    assert result.err.startswith("dnc: camera 0: 3 frames in ")
    assert " a second (2 dropped), " in result.err
    assert len(read_video(tmp_path / "out.avi")[0]) == 5


class Backwards:
    """Stands in for the package trackers: the detections come back in reverse, those of even places followed."""

    told: dict[str, Any] = {}

    def __init__(self, **options: Any) -> None:
        type(self).told = options
        self._frame = 0

    def update(self, detections: Any) -> Any:
        self._frame += 1
        found = detections[np.arange(len(detections))[::-1]]
        places = np.arange(len(detections))[::-1]
        found.tracker_id = np.where(places % 2 == 0, 100 * self._frame + places, -1)
        return found


def test_tracks(detect: Command, engines: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("supervision")
    monkeypatch.setitem(sys.modules, "trackers", types.SimpleNamespace(ByteTrackTracker=Backwards))
    found = lines(detect(clip, "--every", "2", "--track", "--json-lines"))
    assert Backwards.told["frame_rate"] == pytest.approx(RATE / 2)
    for number, (frame, known) in enumerate(zip(found, boxes(engines, clip)[::2], strict=True), 1):
        order = sorted(range(len(known)), key=lambda place: known[place].place)
        ids = [100 * number + place if place % 2 == 0 else None for place in order]
        assert [item.get("track_id") for item in frame["objects"]] == ids
        assert [item["confidence"] for item in frame["objects"]] == [known[place].confidence for place in order]
    first = boxes(engines, clip)[0]
    text = detect(clip, "--track").out.splitlines()[0]
    assert text.startswith(f"{clip} 1: {first[0].label} #100")


def test_tracks_of_the_real_package(detect: Command, clip: Path) -> None:
    pytest.importorskip("trackers")
    found = lines(detect(clip, "--track", "--json-lines"))
    ids = [item["track_id"] for frame in found for item in frame["objects"] if "track_id" in item]
    assert ids
    assert all(isinstance(track, int) and track >= 0 for track in ids)


def refused(result: Result, code: int, *parts: str) -> None:
    assert result.code == code, result
    assert "Traceback" not in result.err
    for part in parts:
        assert part in result.err


def test_what_cannot_be(detect: Command, clip: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = photographs / "a.png"
    refused(detect(clip, "--json", "--json-lines"), 2, "give one of --json and --json-lines")
    refused(detect(image, "--every", "2"), 2, "--every is for videos")
    refused(detect(image, "--track"), 2, "--track is for videos")
    refused(detect(image, "absent.mp4"), 1, "there is no such video", "at absent.mp4")
    # Beyond OpenCV's 32 bits; and what is no address after all.
    refused(detect("9" * 20), 1, "the camera cannot be opened", f"at camera {'9' * 20}")
    refused(detect("rtsp://me:secret@[::1"), 1, "the stream cannot be opened", "at rtsp://[::1")
    refused(detect(clip, "-o", clip), 1, "would replace its source")
    refused(detect(clip, "-o", clip.with_name("x.xyz")), 1, "'.xyz' is no video format", ".avi, ")
    refused(detect(clip, image, "-o", clip.with_name("x.mp4")), 1, "2 pictures cannot go into one file")
    monkeypatch.setitem(sys.modules, "trackers", None)
    refused(detect(clip, "--track"), 1, "--track needs the package trackers", "pip install trackers")
    monkeypatch.setitem(sys.modules, "cv2", None)
    refused(detect(clip, "--skip-bad"), 1, "need OpenCV", "darknet-compiler[video]")


def test_a_bad_video_is_passed_over_if_asked(detect: Command, clip: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    refused(detect(bad, clip), 1, "the video cannot be read", f"at {bad}")
    result = detect(bad, clip, "--skip-bad", "--json-lines")
    assert len(lines(result)) == 12
    assert "dnc: warning: the video cannot be read" in result.err


def test_names_that_a_terminal_would_obey(detect: Command, clip: Path, photographs: Path, tmp_path: Path) -> None:
    video, image = tmp_path / "\x1b[2J.avi", tmp_path / "\x1b[2J.png"
    video.write_bytes(clip.read_bytes())
    image.write_bytes((photographs / "a.png").read_bytes())
    result = detect(video, image)
    assert (result.code, "\x1b" in result.out + result.err) == (0, False)
    assert result.out.startswith(f"{tmp_path}/\ufffd[2J.avi 1: ")


@POSIX
@pytest.mark.slow
def test_a_closed_pipe_is_an_error_where_something_is_drawn(engines: Path, clip: Path, tmp_path: Path) -> None:
    """As in `dnc detect … -o out.avi | head -1`: who asked for a file should know that there is none."""
    command = dnc_command("detect", engines / "tiny.engine", *[clip] * 40, "--json-lines", "-o", tmp_path / "drawn")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 1
    assert "nobody reads the results any more, and not all is drawn" in said


@POSIX
def test_names_that_are_no_utf_8(detect: Command, clip: Path, tmp_path: Path) -> None:
    """OpenCV crashes if it is given them as text."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    video = folder / "street.avi"
    video.write_bytes(clip.read_bytes())
    result = detect(video, "-o", folder / "drawn.mp4")
    assert (result.code, result.out) == (0, ""), result
    assert len(read_video(folder / "drawn.mp4")[0]) == 12
