"""dnc detect"""

from __future__ import annotations

from typing import Any

import click

from dnc.cli import print_json
from dnc.cli._lists import SHARE, WHOLE, exif_option
from dnc.errors import printable


@click.command(epilog="Example: dnc detect yolov4-tiny.engine dog.jpg -o dog.detected.jpg")
@click.argument("engine", type=click.Path())
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "--confidence",
    "-c",
    type=SHARE,
    metavar="X",
    default=0.25,
    show_default=True,
    help="Leave out detections that are less sure; Darknet's -thresh.",
)
@click.option(
    "--iou",
    type=SHARE,
    metavar="X",
    default=0.45,
    show_default=True,
    help="Of two boxes that overlap more, the surer one stays; Darknet's nms.",
)
@click.option(
    "--max-candidates",
    type=WHOLE,
    metavar="N",
    help="Of the scores of an image over the confidence, take the best N; 100000 with a warning if there are more.",
)
@click.option(
    "--out", "-o", type=click.Path(), help="Draw the boxes into this file, or for several images this folder."
)
@click.option("--threads", type=WHOLE, metavar="N", help="Threads for one image; else the engine's choice.")
@click.option("--device", metavar="NAME", help="Where to run, for openvino: CPU, GPU, NPU or AUTO.")
@exif_option
@click.option("--skip-bad", is_flag=True, help="Warn about an image that cannot be read, and go on.")
@click.option("--json", "as_json", is_flag=True, help="Print what `darknet detector test -out` writes.")
def command(
    engine: str,
    images: tuple[str, ...],
    confidence: float,
    iou: float,
    max_candidates: int | None,
    out: str | None,
    threads: int | None,
    device: str | None,
    exif: bool | None,
    skip_bad: bool,
    as_json: bool,
) -> None:
    """Find objects in images: files, folders or quoted globs.

    A box is printed as its label, its confidence and the pixels left, top, right and bottom.
    """
    from pathlib import Path

    from dnc.cli._drawing import draw
    from dnc.cli._images import in_color, open_engine, picture_paths, run_images, save_picture
    from dnc.evaluation.datasets import find_images

    loaded = open_engine(engine, threads, device, boxes=True)
    paths = find_images(images, skip_bad)
    pictures = picture_paths(Path(out), paths) if out is not None else {}
    frames: list[dict[str, Any]] = []
    asked: dict[str, Any] = {
        "exif": exif,
        "confidence": confidence,
        "iou": iou,
        "max_candidates": max_candidates,
    }
    for seen in run_images(loaded, paths, skip_bad=skip_bad, quiet=as_json, **asked):
        height, width = seen.pixels.shape[:2]
        if seen.path in pictures:
            save_picture(draw(in_color(seen, exif), seen.result), pictures[seen.path])
        if as_json:
            objects = [box.to_json() for box in sorted(seen.result, key=lambda box: box.place)]
            frames.append({"frame_id": len(frames) + 1, "filename": str(seen.path), "objects": objects})
            continue
        click.echo(f"{seen.path}: {width} x {height}, {seen.seconds * 1000:.1f} ms")
        # A label comes out of the engine, which may come from anywhere.
        labels = [printable(box.label) for box in seen.result]
        longest = max(map(len, labels), default=0)
        for box, label in zip(seen.result, labels, strict=True):
            left, top, right, bottom = box.pixels()
            place = f"{left:>5} {top:>5} {right:>5} {bottom:>5}"
            click.echo(f"  {label:<{longest}} {box.confidence:>6.1%} {place}")
    if as_json:
        print_json(frames)
