#!/usr/bin/env python3
"""Asks an OpenVINO Model Server what is in images: python3 client.py [--url URL] IMAGE...

Image files are sent as they are. Boxes are printed with left, top, right and bottom in fractions of the image.
"""

import argparse
import json
import struct
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

NAME = "network"
THRESHOLDS = {"confidence": 0.25, "iou": 0.45}
LABELS = Path(__file__).with_name("labels.txt")


def ask(url: str, image: bytes, thresholds: dict[str, float]) -> list[list[float]]:
    """The rows of the model's output for one image file."""
    body = struct.pack("<I", len(image)) + image
    given = {"shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(body)}}
    inputs = [{"name": "image", **given}]
    for name, value in thresholds.items():
        body += struct.pack("<f", value)
        inputs.append({"name": name, "shape": [1], "datatype": "FP32", "parameters": {"binary_data_size": 4}})
    header = json.dumps({"inputs": inputs}).encode()
    kinds = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(header))}
    place = f"{url.rstrip('/')}/v2/models/{urllib.parse.quote(NAME)}/infer"
    try:
        with urllib.request.urlopen(urllib.request.Request(place, header + body, kinds)) as answer:
            [output] = json.load(answer)["outputs"]
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{place}: {error.code} {error.read().decode(errors='replace')}") from error
    except urllib.error.URLError as error:
        raise SystemExit(f"{place}: {error.reason}") from error
    width, data = output["shape"][1], output["data"]
    return [data[start : start + width] for start in range(0, len(data), width)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--url", default="http://localhost:8000")
    for name, value in THRESHOLDS.items():
        parser.add_argument(f"--{name}", type=float, default=value)
    options = vars(parser.parse_args())
    labels = LABELS.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    for path in options["images"]:
        print(f"{path}:")
        rows = ask(options["url"], path.read_bytes(), {name: options[name] for name in THRESHOLDS})
        if not THRESHOLDS:
            for score, label in sorted(zip(rows[0], labels, strict=True), key=lambda pair: -pair[0])[:5]:
                print(f"  {label} {score:.4f}")
            continue
        for _, number, confidence, x, y, w, h in rows:
            sides = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
            print(f"  {labels[int(number)]} {confidence:.4f}", *(f"{side:.4f}" for side in sides))


if __name__ == "__main__":
    main()
