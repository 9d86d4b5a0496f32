"""Boxes on what a camera sees, or on a video: OpenCV reads and draws, the engine works meanwhile.

    python examples/webcam.py yolov4-tiny.engine                          # the first camera, in a window; q ends
    python examples/webcam.py yolov4-tiny.engine street.mp4 -o boxes.avi  # a file into a file

Needs the runtime and OpenCV: pip install "darknet-compiler[runtime-onnx]" opencv-python
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import Any

import cv2

import dnc

GREEN = (0, 255, 0)


def frames(video: Any) -> Iterator[Any]:
    """The frames until there are no more, as OpenCV has them: BGR."""
    while True:
        read, frame = video.read()
        if not read:
            return
        yield frame


def draw(frame: Any, boxes: list[dnc.Detection]) -> None:
    """Frames and labels, onto the picture itself."""
    for box in boxes:
        left, top, right, bottom = box.pixels()
        cv2.rectangle(frame, (left, top), (right, bottom), GREEN, 2)
        text = f"{box.label} {box.confidence:.0%}"
        cv2.putText(frame, text, (left, max(top - 5, 12)), cv2.FONT_HERSHEY_SIMPLEX, 0.5, GREEN, 1, cv2.LINE_AA)


def main() -> None:
    """Runs until the video ends, or q is pressed."""
    parser = argparse.ArgumentParser(description="Boxes on a camera's pictures or a video.")
    parser.add_argument("engine", help="an engine folder or package")
    parser.add_argument("source", nargs="?", default="0", help="a video file, or the number of a camera")
    parser.add_argument("-o", "--out", help="a .avi file, in place of a window")
    parser.add_argument("-c", "--confidence", type=float, default=0.25)
    arguments = parser.parse_args()

    video = cv2.VideoCapture(int(arguments.source) if arguments.source.isdigit() else arguments.source)
    if not video.isOpened():
        sys.exit(f"cannot open {arguments.source}")
    writer = None
    count, start = 0, time.perf_counter()
    with dnc.load(arguments.engine) as engine:
        stream = engine.stream(frames(video), confidence=arguments.confidence, color="bgr", with_frames=True)
        for frame, boxes in stream:
            draw(frame, boxes)
            count += 1
            if arguments.out is not None:
                height, width = frame.shape[:2]
                if writer is None:
                    rate = video.get(cv2.CAP_PROP_FPS) or 25
                    writer = cv2.VideoWriter(arguments.out, cv2.VideoWriter.fourcc(*"MJPG"), rate, (width, height))
                writer.write(frame)
            else:
                cv2.imshow("dnc", frame)
                if cv2.waitKey(1) == ord("q"):
                    break
        stream.close()
    video.release()
    if writer is not None:
        writer.release()
    print(f"{count} frames, {count / (time.perf_counter() - start):.1f} per second")


if __name__ == "__main__":
    main()
