"""Opens, runs and closes engines over and over, in every way there is, while nothing may pile up: memory, descriptors,
threads and files are counted.

    make soak SECONDS=3600
    python -m tests.fuzz.soak --rounds 100 --target onnx
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import dnc
from dnc.darknet.network import Network
from dnc.darknet.weights import write_weights
from dnc.errors import DncError
from dnc.runtime.package import package
from tests.networks import NETWORKS, TINY

TARGETS = {"onnx": "onnxruntime", "openvino": "openvino"}
WARM_UP = 20
"""Rounds after which libraries have made what they keep."""
MEMORY = 48 << 20
"""Bytes that a process may grow by afterwards: allocators keep some of what several threads took at once."""


_MEMORY = "[crnn]\nbatch_normalize=1\nsize=3\npad=1\noutput=14\nhidden=5\nactivation=linear\n"
_NETWORKS = {
    "tiny": TINY,
    "classifier": NETWORKS["classifier"],
    "recurrent": TINY.replace("[yolo]", f"{_MEMORY}\n[yolo]"),
}


@dataclass(frozen=True)
class Counts:
    """What a process holds."""

    memory: int
    """Bytes that are resident."""
    descriptors: int
    threads: int
    files: int
    """In the folder of the engines and in the cache."""

    @classmethod
    def now(cls, folder: Path) -> Counts:
        gc.collect()
        memory = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        descriptors, threads = (sum(1 for _ in Path(f"/proc/self/{name}").iterdir()) for name in ("fd", "task"))
        return cls(memory, descriptors, threads, sum(1 for _ in folder.rglob("*")))

    def more(self, before: Counts) -> list[str]:
        """What piled up since."""
        found = [
            f"{getattr(self, name) - getattr(before, name)} more {name}"
            for name in ("descriptors", "threads", "files")
            if getattr(self, name) > getattr(before, name)
        ]
        if self.memory > before.memory + MEMORY:
            found.append(f"{(self.memory - before.memory) / 1e6:.0f} MB more memory")
        return found


def engines(folder: Path, target: str) -> list[Path]:
    """Engines to open: a detector, a classifier and one with memory between frames, each as a folder and a package."""
    made: list[Path] = []
    for name, text in _NETWORKS.items():
        cfg = folder / f"{target}-{name}.cfg"
        cfg.write_text(text, encoding="utf-8")
        network = Network.load(cfg, lenient=True).with_random_weights(0)
        with cfg.with_suffix(".weights").open("wb") as file:
            write_weights(file, network.layers, network.arrays)
        dnc.compile(cfg, target=target, out=cfg.with_suffix(".engine"), lenient=True, verify=False).close()
        made += [cfg.with_suffix(".engine"), package(cfg.with_suffix(".engine"), cfg.with_suffix(".dnc"))]
    return made


def use(path: Path) -> None:
    """One engine: opened, run on arrays, images, streams, threads and asyncio, and closed."""
    image = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
    with dnc.load(path, threads=1) as engine:
        engine.forward(np.zeros(engine.manifest.input_shape, np.float32))
        expected = repr(engine(image))
        assert [repr(each) for each in engine.stream([image] * 3, workers=2)][:1] == [expected]
        abandoned = engine.stream(iter([image] * 9), workers=2)
        next(abandoned)
        abandoned.close()
        with ThreadPoolExecutor(3) as pool:
            found = [*pool.map(engine, [image] * 6), *asyncio.run(_both(engine, image))]
        # What has a memory sees another frame each time.
        assert engine.manifest.states or set(map(repr, found)) == {expected}
    try:
        engine(image)
    except DncError:
        return
    raise AssertionError("a closed engine runs")


async def _both(engine: dnc.Engine, image: np.ndarray) -> list[object]:
    classifier = any(isinstance(each, dnc.Classification) for each in engine(image))
    run = engine.classify_async if classifier else engine.detect_async
    return list(await asyncio.gather(run(image), run(image)))


def soak(target: str, go_on: Callable[[int], bool], progress: Callable[[str], None]) -> list[str]:
    """What piled up; nothing, if all is well."""
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(scratch)
        os.environ["DNC_CACHE"] = str(folder / "cache")
        paths = engines(folder, target)
        before = None
        rounds = 0
        while before is None or go_on(rounds):
            use(paths[rounds % len(paths)])
            rounds += 1
            if rounds == WARM_UP:
                before = Counts.now(folder)
            progress(f"{target}: {rounds} rounds")
        after = Counts.now(folder)
        progress(
            f"{target}: {rounds} rounds, {(after.memory - before.memory) / 1e6:+.1f} MB, {after.threads} threads\n"
        )
        return after.more(before)


def main() -> int:
    """Returns 1 if something piled up."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets together [60]")
    parser.add_argument("--rounds", type=int, help="for each target, in place of seconds")
    parser.add_argument("--target", choices=TARGETS, action="append", help="these alone")
    told = parser.parse_args()
    targets = told.target or [target for target, library in TARGETS.items() if find_spec(library)]
    found = []
    for target in targets:
        end = time.monotonic() + told.seconds / len(targets)

        def go_on(rounds: int, end: float = end) -> bool:
            return rounds < told.rounds if told.rounds else time.monotonic() < end

        def progress(text: str) -> None:
            if sys.stdout.isatty() or text.endswith("\n"):
                print(f"\r{text}" if sys.stdout.isatty() else text, end="", flush=True)

        found += [f"{target}: {text}" for text in soak(target, go_on, progress)]
    print("\n".join(found) or "nothing piled up")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
