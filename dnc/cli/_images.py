"""Opening engines, running them on images one after the other, and writing pictures, for `detect` and `classify`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dnc.cli import progress
from dnc.errors import DncError, ImageError, warn
from dnc.evaluation.datasets import ARRAYS, SUFFIXES, is_folder, is_there
from dnc.evaluation.videos import FORMATS, Source
from dnc.files.writing import whole_file
from dnc.runtime.decoding import BoxHead
from dnc.runtime.engine import Engine, load
from dnc.runtime.images import read_image
from dnc.runtime.preprocessing import as_picture

if TYPE_CHECKING:
    from PIL.Image import Image

    from dnc.runtime.images import Pixels

__all__ = ["Seen", "in_color", "open_engine", "picture_paths", "run_images", "save_picture"]


def open_engine(path: str, threads: int | None, device: str | None, *, boxes: bool) -> Engine:
    """Opens a detector (`boxes`) or a classifier; raises DncError where it is the other, or neither, or takes no
    images."""
    options: dict[str, Any] = {} if device is None else {"device": device}
    engine = load(path, threads=threads, **options)
    heads = engine.manifest.heads
    if not heads or any(isinstance(head, BoxHead) for head in heads) != boxes:
        other = f"use `dnc {'classify' if boxes else 'detect'} {path}`"
        hint = other if heads else "its outputs come from Engine.forward()"
        raise DncError(f"this network {'has no detection layer' if boxes else 'is no classifier'}", path, hint)
    if engine.manifest.preprocessing is None:
        shape = ", ".join(map(str, engine.manifest.input_shape))
        hint = f"use forward() of dnc.load({str(engine.folder)!r}) with an array (N, {shape})"
        raise DncError("this network takes no images", engine.folder, hint)
    return engine


class Seen(NamedTuple):
    """An image and what the engine finds in it."""

    path: Path
    pixels: Pixels
    result: list[Any]
    seconds: float
    """Of preprocessing, network and decoding; not of reading the file."""


def run_images(
    engine: Engine, paths: Sequence[Path], *, skip_bad: bool, quiet: bool, exif: bool | None, **options: Any
) -> Iterator[Seen]:
    """Runs the engine on each image.

    Args:
        exif: as for `Engine.__call__`, which has the `options`.
        skip_bad: an image that cannot be read is a warning.
        quiet: results are not printed one by one, so that a terminal shows how far it is.

    Raises:
        ImageError: an image cannot be read, or none can.
    """
    good = 0
    with progress(quiet or not sys.stdout.isatty()) as report:
        report("opening the engine")
        _ = engine.session
        for number, path in enumerate(paths, 1):
            report(f"{number}/{len(paths)}  {path}")
            try:
                pixels = engine.inputs.pixels(path, exif=exif)
            except ImageError as error:
                if not skip_bad:
                    raise
                warn(error)
                continue
            good += 1
            start = time.perf_counter()
            result = engine(pixels, **options)
            yield Seen(path, pixels, result, time.perf_counter() - start)
    if not good:
        raise ImageError(f"none of the {len(paths)} images can be read")


def in_color(seen: Seen, exif: bool | None) -> Pixels:
    """The picture that an image is drawn on, (H, W, 3) or (H, W) of uint8: of a file also where the network takes it in
    gray, of an array its first three channels, or its first."""
    pixels = seen.pixels
    if seen.path.suffix.lower() in ARRAYS:
        return as_picture(pixels)
    return pixels if pixels.shape[2:] == (3,) else read_image(seen.path, exif=exif)


_DATA = frozenset({".json", ".jsonl", ".txt", ".csv"})
"""Suffixes of what is no picture and no folder of pictures either, but the boxes themselves."""


def picture_paths(out: Path, sources: Sequence[Path | Source]) -> dict[Path | Source, Path]:
    """Paths of the pictures and videos to write: `out`, or for several sources a file of the same name in the folder
    `out`.

    Raises:
        DncError: `out` is of the wrong kind, a suffix is no format that can be written, two pictures would have the
            same name, or one would replace its image.
    """
    from PIL import Image

    if out.suffix.lower() in _DATA and not is_folder(out):
        hint = f"boxes as data are printed: --json > {out.name}, or --json-lines; with -o they are drawn"
        raise DncError(f"'{out.suffix}' is no format of pictures or videos", out, hint)
    single = len(sources) == 1 and not is_folder(out)
    if not single and not is_folder(out) and (is_there(out) or out.suffix.lower() in SUFFIXES | FORMATS.keys()):
        raise DncError(f"{len(sources)} pictures cannot go into one file", out, "give a folder with -o")
    writable = {suffix for suffix, format in Image.registered_extensions().items() if format in Image.SAVE}
    taken: dict[Path, Path | Source] = {}
    for source in dict.fromkeys(sources):
        video = isinstance(source, Source)
        suffixes, usual = (FORMATS.keys(), ".mp4") if video else (writable, ".png")
        name = Path(source.file_name if isinstance(source, Source) else source.name)
        fitting = name.name if name.suffix.lower() in suffixes else f"{name.stem}{usual}"
        picture = out if single else out / fitting
        if picture.suffix.lower() not in suffixes:
            kind, known = ("video", FORMATS) if video else ("image", SUFFIXES)
            hint = f"for instance {', '.join(sorted(known))}"
            raise DncError(f"'{picture.suffix}' is no {kind} format that can be written", picture, hint)
        original = source.what if isinstance(source, Source) else source
        if isinstance(original, Path) and is_there(picture) and is_there(original) and picture.samefile(original):
            what = f"the {'video' if video else 'picture'} would replace its {'source' if video else 'image'}"
            raise DncError(what, picture, "give another name or folder with -o")
        if picture in taken:
            what = f"{taken[picture]} and {source} would have the same picture"
            raise DncError(what, picture, "run them one after the other, into different folders")
        taken[picture] = source
    return {source: picture for picture, source in taken.items()}


def save_picture(picture: Image, path: Path) -> None:
    """Writes a picture beside its place and renames it; raises DncError if that fails."""
    from PIL import Image

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # It can be drawn again, and there may be thousands.
        with whole_file(path, durable=False) as file:
            picture.save(file, Image.registered_extensions()[path.suffix.lower()], quality=90)
    except (OSError, ValueError) as error:
        hint = "is the disk full, or the folder read-only?"
        raise DncError(f"cannot write the picture: {error}", path, hint) from error
