"""What workers cost: processor time for each image of `dnc calibrate` and `dnc eval`, in one process and on workers of
this machine.

    python -m benchmarks.cluster NET.cfg NET.weights IMAGES [--count 5000] [--workers 1,2]

The images are those of a folder with labels, over and over, under names of their own. Processor time is that of whole
processes, workers and scheduler too, so that other work on the machine changes little; that of a run on `--first`
images is taken off, which has all that is done once. What comes out is compared, byte by byte. Prints Markdown.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

DNC = [sys.executable, "-m", "dnc"]


def repeated(images: Path, folder: Path, count: int) -> Path:
    """A list of so many images, each a link with a name of its own, beside its labels."""
    originals = sorted(path for path in images.iterdir() if path.suffix == ".jpg")
    lines = []
    for number, original in zip(range(count), itertools.cycle(originals), strict=False):
        link = folder / f"{number:05d}{original.suffix}"
        if not link.exists():
            link.symlink_to(original)
            labels = Path(str(original).replace("/images/", "/labels/")).with_suffix(".txt")
            link.with_suffix(".txt").write_bytes(labels.read_bytes() if labels.exists() else b"")
        lines.append(str(link))
    file = folder.parent / f"{count}.txt"
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def processor_seconds(command: list[str], out: Path | None = None) -> float:
    """Of a process and its children, which it has waited for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    if out is None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    else:
        with out.open("wb") as file:
            subprocess.run(command, check=True, stdout=file, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    """Runs every command on all images and on the first ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cfg", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--first", type=int, default=128)
    parser.add_argument("--workers", default="1,2")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "all").mkdir()
        lists = [repeated(arguments.images.resolve(), folder / "all", n) for n in (arguments.first, arguments.count)]
        cfg, weights = str(arguments.cfg.resolve()), str(arguments.weights.resolve())
        engine = str(folder / "net.engine")
        subprocess.run(
            [*DNC, "compile", cfg, "-w", weights, "-t", "onnx", "-o", engine], check=True, stdout=subprocess.DEVNULL
        )
        ways = {"one process": []} | {f"{n} workers": ["--workers", n] for n in arguments.workers.split(",")}
        print(f"{arguments.cfg.stem}, {arguments.count} images\n")
        print("| | | once, s | each image, ms | the same bytes |\n| --- | --- | --- | --- | --- |")
        for name in ("calibrate", "eval"):
            results = []
            for way, more in ways.items():
                taken = []
                out = folder / f"{name} {way}"
                for images in lists:
                    if name == "calibrate":
                        count = str(len(images.read_text(encoding="utf-8").splitlines()))
                        words = ["calibrate", cfg, weights, str(images), "-n", count, "-o", str(out)]
                        taken.append(processor_seconds([*DNC, *words, *more]))
                    else:
                        words = ["eval", engine, "--images", str(images), "--like-darknet", "--json"]
                        taken.append(processor_seconds([*DNC, *words, *more], out))
                each = (taken[1] - taken[0]) / (arguments.count - arguments.first)
                results.append(out.read_bytes())
                once, equal = taken[0] - each * arguments.first, "yes" if results[0] == results[-1] else "NO"
                print(f"| {name} | {way} | {once:.1f} | {each * 1000:.2f} | {equal} |", flush=True)


if __name__ == "__main__":
    main()
