"""dnc classify"""

from __future__ import annotations

from typing import Any

import click

from dnc.cli import print_json
from dnc.cli._lists import WHOLE, exif_option
from dnc.errors import printable


@click.command(epilog="Example: dnc classify darknet19.engine dog.jpg --top 3")
@click.argument("engine", type=click.Path())
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("--top", type=WHOLE, metavar="N", default=5, show_default=True, help="How many classes to print.")
@click.option("--threads", type=WHOLE, metavar="N", help="Threads for one image; else the engine's choice.")
@click.option("--device", metavar="NAME", help="Where to run, for openvino: CPU, GPU, NPU or AUTO.")
@exif_option
@click.option("--skip-bad", is_flag=True, help="Warn about an image that cannot be read, and go on.")
@click.option("--json", "as_json", is_flag=True, help="Print a list with the classes of each image.")
def command(
    engine: str,
    images: tuple[str, ...],
    top: int,
    threads: int | None,
    device: str | None,
    exif: bool | None,
    skip_bad: bool,
    as_json: bool,
) -> None:
    """Name what images show: files, folders or quoted globs."""
    from dnc.cli._images import open_engine, run_images
    from dnc.evaluation.datasets import find_images

    loaded = open_engine(engine, threads, device, boxes=False)
    frames: list[dict[str, Any]] = []
    paths = find_images(images, skip_bad)
    for seen in run_images(loaded, paths, skip_bad=skip_bad, quiet=as_json, exif=exif, top=top):
        if as_json:
            classes = [item.to_json() for item in seen.result]
            frames.append({"frame_id": len(frames) + 1, "filename": str(seen.path), "classes": classes})
            continue
        height, width = seen.pixels.shape[:2]
        click.echo(f"{printable(str(seen.path))}: {width} x {height}, {seen.seconds * 1000:.1f} ms")
        for item in seen.result:
            click.echo(f"  {item.confidence:>6.1%}  {printable(item.label)}")
    if as_json:
        print_json(frames)
