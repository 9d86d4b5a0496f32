"""A ROS 2 node: images in, boxes out. The newest image counts: while one is at work, later ones replace each other.

    python examples/ros2_node.py yolov4-tiny.engine --ros-args -r image:=/camera/image_raw

Needs the runtime, and rclpy, sensor_msgs and vision_msgs. Outside of ROS, `Newest` is what a camera's callback wants.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
import rclpy
from rclpy.node import Node
from sensor_msgs.msg import Image
from vision_msgs.msg import Detection2D, Detection2DArray, ObjectHypothesisWithPose

import dnc

CHANNELS = {"rgb8": ("rgb", 3), "bgr8": ("bgr", 3), "mono8": ("rgb", 1)}  # Of encodings; another one ends the node.


class Newest(threading.Thread):
    """Runs `work` on the newest of what `put` was given: nothing piles up."""

    def __init__(self, work: Any) -> None:
        super().__init__()
        self._work, self._waiting, self._news = work, [], threading.Condition()
        self.start()

    def put(self, what: Any) -> None:
        """Takes the place of what waits; None ends the thread."""
        with self._news:
            self._waiting = [what]
            self._news.notify()

    def run(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._waiting)
                what = self._waiting.pop()
            if what is None:
                return
            self._work(what)


class Detector(Node):
    """Subscribes to `image`, publishes `boxes` with the time stamps of their images."""

    def __init__(self, engine: dnc.Engine) -> None:
        super().__init__("dnc")
        self.engine, self.newest = engine, Newest(self.detect)
        self.boxes = self.create_publisher(Detection2DArray, "boxes", 1)
        self.create_subscription(Image, "image", lambda image: self.newest.put((image, *CHANNELS[image.encoding])), 1)

    def detect(self, given: tuple[Image, str, int]) -> None:
        """One image, whose rows may be padded, its colors and its channels."""
        image, color, channels = given
        rows = np.frombuffer(image.data, np.uint8).reshape(image.height, image.step)[:, : image.width * channels]
        found = Detection2DArray(header=image.header)
        for box in self.engine.detect(rows.reshape(image.height, image.width, channels), color=color):
            one, guess = Detection2D(header=image.header), ObjectHypothesisWithPose()
            guess.hypothesis.class_id, guess.hypothesis.score = box.label, box.confidence
            one.results.append(guess)
            center = one.bbox.center.position
            center.x, center.y = box.center_x * image.width, box.center_y * image.height
            one.bbox.size_x, one.bbox.size_y = box.width * image.width, box.height * image.height
            found.detections.append(one)
        self.boxes.publish(found)


if __name__ == "__main__":
    rclpy.init()
    node = Detector(dnc.load(sys.argv[1]))
    try:
        rclpy.spin(node)
    finally:
        node.newest.put(None)
