"""What docs/explanation/privacy.md promises: commands that were not told to fetch or to connect open no connection and
ask for no name, and write to what they were told to write, to the cache and to temporary folders, whatever libraries
they load. The system's own calls are looked at, of children as well."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests import ROOT
from tests.patience import PATIENCE
from tests.videos import write_video
from tests.zoo.importer.checkpoints import zipped

pytestmark = pytest.mark.slow

Write = Callable[..., Path]

_CALLS = ("connect", "sendto", "sendmsg", "sendmmsg")
_MAKE = ("creat", "mkdir", "mkdirat", "rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat")
_WRITES = re.compile(rf"O_WRONLY|O_RDWR|O_CREAT|^(?:\d+ +)?(?:{'|'.join(_MAKE)})\(")
_FAILED = re.compile(r"= -1 E")
_DEVICES = re.compile(r"/dev/|/proc/(?:self|\d+)/(?:task/\d+/)?comm$|/sys/")


class Watched:
    """A folder with a home, a cache, a place for temporary files and one for results; runs commands there."""

    def __init__(self, place: Path) -> None:
        self.work, self.home, self.temporary = place / "work", place / "home", place / "tmp"
        for folder in (self.work, self.home, self.temporary):
            folder.mkdir()
        self.cache = self.home / ".cache" / "dnc"

    def __call__(self, *command: object) -> list[str]:
        """What a command asked of the network, and what it wrote elsewhere than it may."""
        log = self.work.parent / "log"
        told = ("ORT_DISABLE_TELEMETRY", "DNC_CACHE", "MPLCONFIGDIR", "XDG_CACHE_HOME", "CI", "TF_BUILD", "JENKINS_URL")
        environment = {name: value for name, value in os.environ.items() if name not in told}
        environment |= {"HOME": str(self.home), "TMPDIR": str(self.temporary), "PYTHONPATH": str(ROOT)}
        environment |= {"PYTHONDONTWRITEBYTECODE": "1"}
        trace = f"trace={','.join((*_CALLS, 'open', 'openat', *_MAKE))}"
        words = ["strace", "-f", "-y", "-qq", "-s", "300", "-e", trace, "-o", str(log), *map(str, command)]
        result = subprocess.run(
            words, cwd=self.work, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
        return [line for line in log.read_text(errors="replace").splitlines() if self._is_wrong(line)]

    def dnc(self, *arguments: object) -> list[str]:
        """As a call, of `dnc ARGUMENTS`."""
        return self(sys.executable, "-m", "dnc", *arguments)

    def hold(self, *commands: str) -> None:
        """Each `dnc COMMAND` asks nothing of the network and writes where it may, in the home into the cache alone."""
        for command in commands:
            assert self.dnc(*command.split()) == [], command
        assert not [path for path in self.home.iterdir() if path.name != ".cache"]

    def _is_wrong(self, line: str) -> bool:
        if "AF_INET" in line or "AF_NETLINK" in line:
            return True
        if _FAILED.search(line) or not _WRITES.search(line):
            return False
        # The last path is where something appears; a path within an open folder has it in front, as <…>.
        inside = re.findall(r'<([^>]*)>, "([^"/][^"]*)"', line)
        path = "/".join(inside[-1]) if inside else (re.findall(r'"([^"]*)"', line) or [""])[-1]
        place = Path(os.path.normpath(self.work / path))
        allowed = (self.work, self.cache, self.temporary)
        return not _DEVICES.match(path) and not any(
            place.is_relative_to(folder) or place in folder.parents for folder in allowed
        )


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    if shutil.which("strace") is None:
        pytest.skip("there is no strace")
    tried = subprocess.run(["strace", "-qq", "-o", os.devnull, "true"], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip("there is no strace that may look at processes")
    return Watched(tmp_path)


@pytest.fixture
def folder(watched: Watched, write: Write) -> Path:
    """Where commands run: a detector, a classifier, and photographs with labels."""
    from PIL import Image

    generator = np.random.default_rng(0)
    (watched.work / "images").mkdir()
    for number in range(3):
        picture = Image.fromarray(generator.integers(0, 256, (40, 50, 3), np.uint8))
        picture.save(watched.work / f"images/{number}.jpg")
        (watched.work / f"images/{number}.txt").write_text("0 0.5 0.5 0.2 0.2\n", encoding="utf-8")
    classifier = "[net]\nwidth=16\nheight=16\nchannels=3\n[convolutional]\nfilters=3\nsize=3\n[avgpool]\n[softmax]\n"
    for path in (write("tiny"), write("classifier", classifier)):
        shutil.copy(path, watched.work)
        shutil.copy(path.with_suffix(".weights"), watched.work)
    return watched.work


@pytest.mark.parametrize(("target", "library"), [("onnx", "onnxruntime"), ("openvino", "openvino"), ("tvm", "tvm")])
def test_commands_of_a_target(target: str, library: str, watched: Watched, folder: Path) -> None:
    pytest.importorskip(library)
    watched.hold(
        f"compile tiny.cfg -t {target} -o d",
        f"compile classifier.cfg -t {target} -o c",
        "detect d images/0.jpg -o boxes.jpg",
        "classify c images/0.jpg",
        "bench d --seconds 1",
    )


def test_other_commands(watched: Watched, folder: Path) -> None:
    pytest.importorskip("onnxruntime")
    watched.hold(
        "calibrate tiny.cfg --images images -o calibration.json",
        "compile tiny.cfg -t onnx --precision int8 --calibration calibration.json -o d",
        "info tiny.cfg",
        "info d",
        "explain d",
        "compare tiny.cfg",
        "diagnose tiny.cfg -t onnx --precision int8 --calibration calibration.json",
        "export tiny.cfg --for opencv -o exported",
        "package d",
        "detect d.dnc images/0.jpg --json",
        "zoo list",
        "zoo networks",
        "targets",
        "passes",
        "weights inspect tiny.cfg tiny.weights",
        "doctor --json",
    )


def test_the_watch_sees_what_it_should(watched: Watched) -> None:
    elsewhere = watched.home / "elsewhere"
    look = "import socket\ntry: socket.getaddrinfo('example.invalid', 80)\nexcept OSError: pass"
    assert watched(sys.executable, "-c", look)
    connect = "import socket\nsocket.socket(type=socket.SOCK_DGRAM).connect(('127.0.0.1', 9))"
    assert watched(sys.executable, "-c", connect)
    for code in (f"open({str(elsewhere)!r}, 'w')", f"import os; os.mkdir({str(elsewhere) + '-'!r})"):
        assert "elsewhere" in "".join(watched(sys.executable, "-c", code))
    assert watched(sys.executable, "-c", "import tempfile; tempfile.mkstemp(); open('a', 'w')") == []


def test_commands_whose_libraries_keep_things(watched: Watched, folder: Path) -> None:
    """Matplotlib's list of fonts, fontconfig's, numba's and OpenCV's caches; videos; data sets."""
    for library in ("onnxruntime", "matplotlib", "cv2"):
        pytest.importorskip(library)
    write_video(folder / "street.mp4")
    (folder / "images.txt").write_text("".join(f"images/{number}.jpg\n" for number in range(3)), encoding="utf-8")
    (folder / "obj.data").write_text("classes = 2\nvalid = images.txt\ntrain = images.txt\n", encoding="utf-8")
    watched.hold(
        "compile tiny.cfg -t onnx -o d",
        "eval d --data obj.data",
        "eval d --images images --like-darknet --json",
        "detect d street.mp4 images -o drawn --every 4",
        "detect d street.mp4 --json-lines",
        "bench d --seconds 1 --plot times.png",
        "bench d --seconds 1 --video street.mp4",
        "bench d --seconds 1 --layers --json",
        "diagnose d --data obj.data --html page.html",
        "package d --as-c",
        "package d --as-object",
        "weights random tiny.cfg -o random.weights",
        "embed --json",
    )
    assert [path.name for path in watched.cache.parent.iterdir()] == ["dnc"]


def test_imports_and_exports(watched: Watched, folder: Path) -> None:
    for library in ("onnxruntime", "openvino"):
        pytest.importorskip(library)
    state = {
        "stem.weight": np.ones((3, 3, 3, 3), np.float32),
        "stem.bias": np.zeros(3, np.float32),
    }
    zipped(folder / "net.pth", {"state_dict": state})
    watched.hold("import net.pth classifier.cfg -o imported.weights")
    programs = ("deepstream", "frigate", "opencv", "ovms", "triton", "ultralytics", "yolov5")
    watched.hold(*(f"export tiny.cfg --for {name} -o {name}" for name in programs))


def test_workers_stay_on_this_machine(watched: Watched, folder: Path) -> None:
    """They are spoken to, at 127.0.0.1 and nowhere else; no name is looked up."""
    for library in ("onnxruntime", "distributed"):
        pytest.importorskip(library)
    assert watched.dnc("compile", "tiny.cfg", "-t", "onnx", "-o", "d") == []
    said = watched.dnc("eval", "d", "--images", "images", "--workers", "2")
    assert [line for line in said if "127.0.0.1" not in line] == []
