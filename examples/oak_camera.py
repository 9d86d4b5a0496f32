"""A detector on an OAK camera: the network and the decoding of its boxes run on the device.

    dnc compile yolov3-tiny --target myriad -o yolov3-tiny.engine
    python examples/oak_camera.py yolov3-tiny.engine            # prints boxes until Ctrl-C
    python examples/oak_camera.py yolov3-tiny.engine --dry-run  # builds the pipeline; needs no camera

Needs DepthAI 2 and nothing of dnc: pip install "depthai<3"
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import depthai as dai

OUTPUT = "boxes"


def build(folder: Path) -> tuple[Any, list[str]]:
    """The pipeline, camera -> network -> boxes, and the names of the classes."""
    description = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "yolo.json").read_text(encoding="utf-8"))
    yolo = config["nn_config"]["NN_specific_metadata"]
    width, height = map(int, config["nn_config"]["input_size"].split("x"))

    pipeline = dai.Pipeline()
    camera = pipeline.create(dai.node.ColorCamera)
    camera.setPreviewSize(width, height)
    # The whole picture, stretched to the network's input as Darknet does it, not its middle.
    camera.setPreviewKeepAspectRatio(False)
    camera.setInterleaved(False)
    order = dai.ColorCameraProperties.ColorOrder
    camera.setColorOrder(order.RGB if description["color"] == "rgb" else order.BGR)

    network = pipeline.create(dai.node.YoloDetectionNetwork)
    network.setBlobPath(str(folder / "model.blob"))
    network.setNumClasses(yolo["classes"])
    network.setCoordinateSize(yolo["coordinates"])
    network.setAnchors(yolo["anchors"])
    network.setAnchorMasks(yolo["anchor_masks"])
    network.setIouThreshold(yolo["iou_threshold"])
    network.setConfidenceThreshold(yolo["confidence_threshold"])
    # What comes while the network is busy is dropped.
    network.input.setBlocking(False)
    network.input.setQueueSize(1)

    boxes = pipeline.create(dai.node.XLinkOut)
    boxes.setStreamName(OUTPUT)
    camera.preview.link(network.input)
    network.out.link(boxes.input)
    return pipeline, config["mappings"]["labels"]


def main() -> None:
    """Prints the boxes of each picture, corners in fractions of it."""
    parser = argparse.ArgumentParser(description="Boxes from an OAK camera.")
    parser.add_argument("engine", type=Path, help="an engine folder of target myriad")
    parser.add_argument("--dry-run", action="store_true", help="build the pipeline and print it, without a camera")
    arguments = parser.parse_args()

    pipeline, labels = build(arguments.engine)
    if arguments.dry_run:
        nodes = pipeline.serializeToJson()["pipeline"]["nodes"]
        print(" -> ".join(node["name"] for _, node in sorted(nodes, key=lambda item: item[0])))
        return
    with dai.Device(pipeline) as device:
        queue = device.getOutputQueue(OUTPUT, maxSize=4, blocking=False)
        while True:
            for box in queue.get().detections:
                corners = f"{box.xmin:.3f} {box.ymin:.3f} {box.xmax:.3f} {box.ymax:.3f}"
                name = labels[box.label] if labels else box.label
                print(f"{name} {box.confidence:.0%} {corners}", flush=True)


if __name__ == "__main__":
    main()
