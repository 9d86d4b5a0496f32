"""Videos, cameras and streams: what names one, and what is read of it, in which order."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dnc.errors import DncError, DncWarning, ImageError
from dnc.evaluation.videos import Frame, Source, Video, frames
from dnc.runtime.images import Pixels
from tests.patience import PATIENCE
from tests.videos import RATE, read_video, red, write_video


class Fake:
    """A video of so many frames of one pixel, each its number; a live one gives none before it is allowed to."""

    name = "fake"
    rate = 25.0

    def __init__(self, length: int, *, live: bool = False, count: int = 0, fails_at: int = 0) -> None:
        self.live, self.count, self.stalls = live, count, live
        self.pace = 0.0
        self.closed = threading.Event()
        self.skipped: list[int] = []
        self._length, self._fails_at, self._number = length, fails_at, 0

    def read(self) -> Pixels | None:
        if self._number == self._length:
            return None
        self._number += 1
        if self._number == self._fails_at:
            raise DncError("torn")
        return np.full((1, 1, 3), self._number, np.uint8)

    def skip(self) -> bool:
        if self._number == self._length:
            return False
        self._number += 1
        self.skipped.append(self._number)
        return True

    def close(self) -> None:
        self.closed.set()


def of(video: Fake, every: int = 1) -> Iterator[Frame]:
    return frames(video, every)  # type: ignore[arg-type]


def test_an_opencv_that_takes_text_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """4.5 does; where a name is no text, it says so by an exception."""
    cv2 = pytest.importorskip("cv2")
    clip, capture = write_video(tmp_path / "a.avi"), cv2.VideoCapture

    def older(*what: object) -> object:
        if any(isinstance(each, bytes) for each in what):
            raise cv2.error("Can't convert object to 'str' for 'filename'")
        return capture(*what)

    monkeypatch.setattr(cv2, "VideoCapture", older)
    assert Video(clip).read() is not None
    assert len(read_video(clip)[0]) == 12
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.avi"))
    try:
        odd.write_bytes(clip.read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    with pytest.raises(ImageError, match="the video cannot be read"):
        Video(odd)


def test_what_names_a_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.MP4", "a.jpg", "7"):
        Path(name).touch()
    os.mkfifo("pipe.jpg")
    assert Source.named("0") == Source(0)
    assert Source.named("7") is None
    assert Source.named("a.MP4") == Source(Path("a.MP4"))
    assert Source.named("pipe.jpg") == Source(Path("pipe.jpg"))
    assert Source.named("rtsp://host/1") == Source("rtsp://host/1")
    for other in ("a.jpg", "*.mp4", str(tmp_path), "absent.mp4", "c:/a.jpg", "x" * 5000):
        assert Source.named(other) is None


def test_how_a_source_is_called() -> None:
    source = Source("rtsp://me:secret@camera.local:554/live/1?quality=low")
    assert str(source) == "rtsp://camera.local:554/live/1?quality=low"
    assert source.file_name == "camera.local-554-live-1-quality-low"
    assert (str(Source(2)), Source(2).file_name) == ("camera 2", "camera-2")
    assert (str(Source(Path("x/a.mp4"))), Source(Path("x/a.mp4")).file_name) == (str(Path("x/a.mp4")), "a.mp4")


@pytest.mark.parametrize(("every", "expected"), [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [1, 4, 7]), (9, [1])])
def test_every_frame_in_its_order(every: int, expected: list[int]) -> None:
    video = Fake(7)
    found = list(of(video, every))
    assert [frame.number for frame in found] == expected
    assert [int(frame.pixels[0, 0, 0]) for frame in found] == expected
    assert set(video.skipped) == {*range(1, 8)} - {*expected}
    assert video.closed.is_set()


def test_a_file_waits_and_what_is_live_does_not() -> None:
    """Nobody takes a frame until the camera has given all: the newest four are left."""
    camera = Fake(20, live=True)
    ahead = of(camera)
    first = next(ahead)
    assert camera.closed.wait(PATIENCE)
    rest = [frame.number for frame in ahead]
    found = [first.number, *rest]
    assert found[-4:] == [17, 18, 19, 20]
    assert len(found) <= 5
    assert [frame.number for frame in of(Fake(20))] == list(range(1, 21))


def test_who_stops_early_closes_the_video() -> None:
    video = Fake(1000)
    ahead = frames(video)  # type: ignore[arg-type]
    assert next(ahead).number == 1
    ahead.close()
    assert video.closed.is_set()
    assert [thread.name for thread in threading.enumerate() if thread.name == "dnc-video"] == []


def test_what_is_wrong_is_told_behind_the_frames_before() -> None:
    ahead = of(Fake(9, fails_at=4))
    assert [next(ahead).number for _ in range(3)] == [1, 2, 3]
    with pytest.raises(DncError, match="torn"):
        next(ahead)
    with pytest.raises(DncError, match="no frame"):
        list(of(Fake(0)))


def test_a_video_that_breaks_off_is_a_warning() -> None:
    with pytest.warns(DncWarning, match="ends after 7 of 12 frames"):
        assert len(list(of(Fake(7, count=12)))) == 7
    # Counts may be guesses.
    assert len(list(of(Fake(7, count=8)))) == 7


def test_videos_need_opencv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DncError, match="need OpenCV") as caught:
        Video(tmp_path / "a.avi")
    assert "darknet-compiler[video]" in caught.value.hint


def test_a_video(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", 3)
    video = Video(path)
    assert (video.rate, video.pace, video.count, video.live, video.stalls) == (RATE, 0.0, 3, False, False)
    first = video.read()
    assert first is not None
    assert first.shape == (48, 64, 3)
    # In RGB, though OpenCV gives blue first.
    assert red(first) == 0
    assert video.skip()
    third = video.read()
    assert third is not None
    assert red(third) == 2
    assert video.read() is None
    assert not video.skip()
    video.close()


def test_videos_that_cannot_be_opened(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    with pytest.raises(DncError, match="no such video"):
        Video(tmp_path / "none.avi")
    (tmp_path / "bad.avi").write_bytes(b"no video")
    with pytest.raises(DncError, match="cannot be read"):
        Video(tmp_path / "bad.avi")
    with pytest.raises(DncError, match="stream cannot be opened") as caught:
        Video("rtsp://me:secret@localhost:1/a")
    assert "secret" not in str(caught.value)


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    """No frame is dropped, and nobody knows how many there are."""
    path = write_video(tmp_path / "a.avi", 12)
    pipe = tmp_path / "pipe.avi"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(path.read_bytes()), daemon=True)
    writer.start()
    video = Video(pipe)
    assert not video.live
    assert video.stalls
    assert [red(frame.pixels) for frame in frames(video)] == list(range(12))
    writer.join(PATIENCE)


def test_a_file_that_is_torn(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", 100)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.warns(DncWarning, match="of 100 frames"):
        found = list(frames(Video(path)))
    assert 20 < len(found) < 80
    assert len(read_video(path)[0]) == len(found)
