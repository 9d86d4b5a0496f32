"""dnc detect"""

from __future__ import annotations

from typing import Any

import click

from dnc.cli import print_json
from dnc.cli._lists import SHARE, WHOLE, exif_option
from dnc.errors import printable


@click.command(epilog="Example: dnc detect yolov4-tiny.engine dog.jpg street.mp4 -o detected")
@click.argument("engine", type=click.Path())
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
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
    "--out", "-o", type=click.Path(), help="Draw the boxes into this file, or for several sources this folder."
)
@click.option("--every", type=WHOLE, metavar="N", help="Of a video, look at the first frame and every N-th after it.")
@click.option("--track", is_flag=True, help="Follow the objects of a video, with the package trackers.")
@click.option("--threads", type=WHOLE, metavar="N", help="Threads for one image; else the engine's choice.")
@click.option("--device", metavar="NAME", help="Where to run, for openvino: CPU, GPU, NPU or AUTO.")
@exif_option
@click.option("--skip-bad", is_flag=True, help="Warn about an image or video that cannot be read, and go on.")
@click.option("--json", "as_json", is_flag=True, help="Print what `darknet detector test -out` writes.")
@click.option(
    "--json-lines", is_flag=True, help="Print an object a line for each image or frame, as soon as it is there."
)
def command(
    engine: str,
    sources: tuple[str, ...],
    confidence: float,
    iou: float,
    max_candidates: int | None,
    out: str | None,
    every: int | None,
    track: bool,
    threads: int | None,
    device: str | None,
    exif: bool | None,
    skip_bad: bool,
    as_json: bool,
    json_lines: bool,
) -> None:
    """Find objects in images, videos and what cameras see.

    SOURCE is a file, a folder of images, a quoted glob, the number of a camera, or an address (rtsp://…, http://…).

    A box is printed as its label, its confidence and the pixels left, top, right and bottom; a frame of a video, if
    nothing is drawn, as a line of what is in it. Ctrl-C ends a video or a camera: what was drawn so far is a file.
    """
    import json
    from itertools import count, groupby
    from pathlib import Path

    from dnc.cli._drawing import draw
    from dnc.cli._images import Seen, in_color, open_engine, picture_paths, run_images, save_picture
    from dnc.cli._videos import Looked, find_sources, look, tracking
    from dnc.errors import DncError, ImageError, warn
    from dnc.evaluation.videos import Source

    if as_json and json_lines:
        raise click.UsageError("give one of --json and --json-lines")
    loaded = open_engine(engine, threads, device, boxes=True)
    found = find_sources(sources, skip_bad)
    if not any(isinstance(source, Source) for source in found) and (track or every is not None):
        raise click.UsageError(f"{'--track' if track else '--every'} is for videos and cameras, of which there is none")
    begin = tracking(confidence) if track else None
    pictures = picture_paths(Path(out), found) if out is not None else {}
    asked: dict[str, Any] = {"confidence": confidence, "iou": iou, "max_candidates": max_candidates, "exif": exif}
    machine = as_json or json_lines
    frames: list[dict[str, Any]] = []
    ids = count(1)

    def put(source: object, fields: dict[str, Any]) -> None:
        frame = {"frame_id": next(ids), "filename": str(source), **fields}
        click.echo(json.dumps(frame)) if json_lines else frames.append(frame)

    def show_image(seen: Seen) -> None:
        if seen.path in pictures:
            save_picture(draw(in_color(seen, exif), seen.result), pictures[seen.path])
        if machine:
            put(seen.path, {"objects": [box.to_json() for box in sorted(seen.result, key=lambda box: box.place)]})
            return
        height, width = seen.pixels.shape[:2]
        click.echo(f"{printable(str(seen.path))}: {width} x {height}, {seen.seconds * 1000:.1f} ms")
        # A label comes out of the engine, which may come from anywhere.
        labels = [printable(box.label) for box in seen.result]
        longest = max(map(len, labels), default=0)
        for box, label in zip(seen.result, labels, strict=True):
            left, top, right, bottom = box.pixels()
            place = f"{left:>5} {top:>5} {right:>5} {bottom:>5}"
            click.echo(f"  {label:<{longest}} {box.confidence:>6.1%} {place}")

    def look_at(source: Source) -> None:
        out = pictures.get(source)
        drawn = out is not None and not machine

        def show(looked: Looked) -> None:
            if machine:
                put(source, looked.to_json())
            elif not drawn:
                click.echo(f"{printable(str(source))} {looked.number}: {looked}")

        try:
            look(loaded, source, show, every=every or 1, begin=begin, out=out, quiet=machine or drawn, **asked)
        except ImageError as error:
            if not skip_bad:
                raise
            warn(error)

    try:
        for _, group in groupby(found, key=type):
            part = list(group)
            for source in part:
                if isinstance(source, Source):
                    look_at(source)
            images = [source for source in part if isinstance(source, Path)]
            for seen in run_images(loaded, images, skip_bad=skip_bad, quiet=machine, **asked) if images else ():
                show_image(seen)
        if as_json:
            print_json(frames)
    except BrokenPipeError as error:
        if out is None:
            raise
        raise DncError("nobody reads the results any more, and not all is drawn", out) from error
