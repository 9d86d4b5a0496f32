"""The files of `dnc calibrate`: what was named, by kind, the images to measure on, and other programs' tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dnc.darknet.cfg import find_cfg
from dnc.darknet.network import Network
from dnc.errors import CalibrationError
from dnc.evaluation.datasets import SUFFIXES, images, is_data_file, is_folder, is_there, read_data
from dnc.files.reading import check_foreign, open_regular
from dnc.quantization.calibration import Calibration
from dnc.quantization.tables import write_darknet, write_tensorrt

__all__ = ["choose_images", "data_beside", "export", "sort_files"]

_COUNT = 100
"""Images, where nobody says how many."""


def sort_files(files: Sequence[str]) -> dict[str, str]:
    """Sorts files by kind: "cfg", "weights", "data", "images".

    Raises CalibrationError if two are of one kind, or there is no such file.
    """
    by_kind: dict[str, str] = {}
    for file in files:
        kind = _kind(file)
        if kind in by_kind:
            raise CalibrationError(f"{by_kind[kind]} and {file} are both {kind}", hint="give one of each kind")
        by_kind[kind] = file
    return by_kind


def _kind(file: str) -> str:
    """Kind of a file, by its suffix or else by its contents."""
    check_foreign(file, CalibrationError)
    suffix = Path(file).suffix.lower()
    if suffix in (".cfg", ".weights", ".data"):
        return suffix[1:]
    if is_folder(file) or suffix in SUFFIXES:
        return "images"
    if not is_there(file):
        if find_cfg(file) != Path(file):
            return "cfg"
        raise CalibrationError("there is no such file", file, "a .cfg, .weights, .data, or a list or folder of images")
    try:
        with open_regular(file) as stream:
            start = stream.read(4096)
    except OSError as error:
        raise CalibrationError(f"cannot read the file: {error.strerror or error}", file) from error
    if b"\0" in start:
        return "weights"
    lines = [line.strip() for line in start.splitlines() if line.strip() and not line.strip().startswith((b"#", b";"))]
    return "cfg" if lines and lines[0].startswith(b"[") else "images"


def data_beside(cfg: Path, network: Network) -> list[str]:
    """NAME.data beside the cfg, else the only .data file there; raises CalibrationError where there is none, or it is
    for another number of classes."""
    own = cfg.with_suffix(".data")
    beside = [own] if own.is_file() else sorted(cfg.parent.glob("*.data"))
    if len(beside) != 1:
        what = "no images are named, and there is no .data file" if not beside else "several .data files are"
        raise CalibrationError(f"{what} beside the cfg", cfg, "name a .data file, or --images with a list or a folder")
    classes = read_data(beside[0]).classes
    heads = [head for layer in network.layers if (head := layer.head()) is not None]
    if heads and classes is not None and classes != heads[-1].classes:
        what = f"the .data file beside the cfg has {classes} classes, the network {heads[-1].classes}"
        raise CalibrationError(what, beside[0], "name the right one, or this one if its images will do")
    return [str(beside[0])]


def choose_images(
    sources: Sequence[str], key: str | None, count: int | None, seed: int | None, skip_bad: bool
) -> list[Path]:
    """The images of lists, folders and globs: of .data files the list `key`, else train where all have one.

    Args:
        count: how many; None: 100, or as many as there are.
        seed: draws them at random; None: the first.
    """
    if key is None:
        lists = [read_data(source).options for source in sources if is_data_file(source)]
        key = "train" if all("train" in options for options in lists) else "valid"
    limit = min(_COUNT, len(images(sources, key=key, skip_bad=skip_bad))) if count is None else count
    return images(sources, key=key, limit=limit, seed=seed, skip_bad=skip_bad)


def export(form: str, target: str, calibration: Calibration, network: Network, version: str) -> None:
    """Writes the file `target` for Darknet, or for a TensorRT of this version."""
    if form == "darknet":
        write_darknet(calibration, network, target)
    else:
        write_tensorrt(calibration, target, version)
