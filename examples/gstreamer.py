"""Boxes on what a GStreamer pipeline gives: cameras, RTSP, files, decoded by what the machine has for it.

    python examples/gstreamer.py yolov4-tiny.engine "v4l2src ! decodebin" --live
    python examples/gstreamer.py yolov4-tiny.engine "filesrc location=street.mp4 ! decodebin"

Needs the runtime and gst-launch-1.0: apt install gstreamer1.0-tools gstreamer1.0-plugins-base. GStreamer runs in a
process of its own, because one that it loaded libunwind into dies of the first exception that OpenVINO would catch.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

import dnc


def frames(pipeline: str, width: int, height: int, live: bool) -> Iterator[Any]:
    """Frames (height, width, 3) in RGB until the stream ends; of a live one the newest, not those that came meanwhile.

    Raises ChildProcessError where the pipeline fails, which has said why on stderr.
    """
    queue = "queue leaky=downstream max-size-buffers=1 ! " if live else ""
    form = f"videoconvert ! videoscale ! video/x-raw,format=RGB,width={width},height={height}"
    command = ["gst-launch-1.0", "-q", *shlex.split(f"{pipeline} ! {form} ! {queue}fdsink")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        try:
            while len(data := running.stdout.read(width * height * 3)) == width * height * 3:
                yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
            if running.wait():
                raise ChildProcessError(f"gst-launch-1.0 ended with {running.returncode}")
        finally:
            running.kill()


def main() -> None:
    """Prints a line for each box: the number of the frame, label, confidence and place."""
    parser = argparse.ArgumentParser(description="Boxes on a GStreamer pipeline.")
    parser.add_argument("engine", help="an engine folder or package")
    parser.add_argument("pipeline", nargs="?", default="videotestsrc num-buffers=30", help="what gives raw video")
    parser.add_argument("--size", default="640x480", help="of the frames; the width a multiple of 4")
    parser.add_argument("--live", action="store_true", help="drop frames rather than fall behind")
    parser.add_argument("-c", "--confidence", type=float, default=0.25)
    given = parser.parse_args()
    width, height = map(int, given.size.split("x"))
    count = 0
    with dnc.load(given.engine) as engine:
        read = frames(given.pipeline, width, height, given.live)
        try:
            for count, boxes in enumerate(engine.stream(read, confidence=given.confidence), 1):
                for box in boxes:
                    print(count, box.label, f"{box.confidence:.2f}", *box.pixels())
        except ChildProcessError as error:
            sys.exit(str(error))
    print(f"{count} frames")


if __name__ == "__main__":
    main()
