"""Puts what a page takes for granted into the current folder: `python -m tests.docs.stage THING…`.

NAME.cfg           with NAME.weights and NAME.names: a tiny detector with random weights, whatever NAME is; or
NAME.cfg=NETWORK   a network of cfg/, or of tests/networks.py
NAME.engine        such a network as an engine of target onnx
NAME.jpg           a photograph
NAME.data          lists of 100 images, their labels and the names of the classes
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests import ROOT
from tests.networks import NETWORKS, REMEMBERING

NAMES = ["person", "tie"]
IMAGES = 100
PHOTOGRAPH = ROOT / "dnc" / "graph" / "photograph.jpg"


def dnc(*arguments: object) -> None:
    """Runs a command."""
    subprocess.run(["dnc", *map(str, arguments)], check=True)


def network(path: Path, name: str) -> None:
    """A cfg, its weights and its names."""
    zoo = ROOT / "cfg" / f"{name}.cfg"
    path.write_text(zoo.read_text("utf-8") if zoo.exists() else {**NETWORKS, **REMEMBERING}[name or "tiny"], "utf-8")
    if not zoo.exists():
        path.with_suffix(".names").write_text("\n".join([*NAMES, ""]), "utf-8")
    dnc("weights", "random", path, "-o", path.with_suffix(".weights"))


def engine(path: Path, name: str) -> None:
    """An engine."""
    cfg = path.with_suffix(".cfg")
    network(cfg, name)
    dnc("compile", cfg, "--target", "onnx", "-o", path)


def data(path: Path) -> None:
    """A .data file, and what it names."""
    folder = path.with_suffix("")
    folder.mkdir(exist_ok=True)
    for index in range(IMAGES):
        shutil.copy(PHOTOGRAPH, folder / f"{index}.jpg")
        (folder / f"{index}.txt").write_text(f"0 0.5 0.5 0.{index % 5 + 5} 0.9\n", "utf-8")
    images = Path(f"{path.stem}.txt")
    images.write_text("".join(f"{folder.absolute() / f'{index}.jpg'}\n" for index in range(IMAGES)), "utf-8")
    names = path.with_suffix(".names")
    names.write_text("\n".join([*NAMES, ""]), "utf-8")
    path.write_text(f"classes={len(NAMES)}\ntrain={images}\nvalid={images}\nnames={names}\n", "utf-8")


def main() -> None:
    """Stages what the command line names."""
    for thing in sys.argv[1:]:
        name, _, of = thing.partition("=")
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        match path.suffix:
            case ".cfg":
                network(path, of)
            case ".engine":
                engine(path, of)
            case ".data":
                data(path)
            case ".jpg":
                shutil.copy(PHOTOGRAPH, path)
            case _:
                sys.exit(f"{thing}: there is no such thing to put here")


if __name__ == "__main__":
    main()
