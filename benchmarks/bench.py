"""Can `dnc bench` be trusted? Comparisons whose outcome is known, again and again.

    python benchmarks/bench.py NET… [--times 10] [--seconds 20] [--threads 2] [--pairs 20] [--record 8]

NET is a .cfg file or the name of a network of cfg/, compiled for target onnx.

    equal       an engine and a copy of it: the interval of their ratio should contain 1
    5 % slower  an engine and one that waits busily after each run for 5 % of its time: the interval should lie above 1
    noise       two recordings, one after the other, --diff --fail-above 5%: should pass
    loaded      the same, where during the second one another process computes half of the time: should pass
    slowed      the second one of an engine that is 15 % slower: should fail

Prints Markdown, and every ratio to stderr.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import dnc
from dnc.bench.difference import compare_recordings
from dnc.bench.measure import Recording, measure
from dnc.bench.prepare import weights_or_random
from dnc.bench.subject import Subject
from dnc.bench.timing import CONFIDENCE
from dnc.darknet.cfg import find_cfg
from dnc.runtime.timing import Ratio, Run

_LOAD = """
import time
while True:
    end = time.monotonic() + 1
    while time.monotonic() < end: pass
    time.sleep(1)
"""


@dataclass
class Slowed(Subject):
    """An engine that takes longer than it has to."""

    by: float = 0.0

    @contextmanager
    def open(self) -> Iterator[Run]:
        """Waits for a share of what each run took."""
        with super().open() as run:

            def slower() -> None:
                start = time.perf_counter()
                run()
                end = time.perf_counter()
                while time.perf_counter() < end + self.by * (end - start):
                    pass

            yield slower


@contextmanager
def load() -> Iterator[None]:
    """Runs another process that computes, for one second of two."""
    process = subprocess.Popen([sys.executable, "-c", _LOAD])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def compile_engine(name: str, folder: Path) -> Path:
    """An engine of the network, with random weights if there are no others."""
    cfg = find_cfg(name)
    return dnc.compile(cfg, weights_or_random(cfg, folder), "onnx", folder / f"{cfg.stem}.engine", verify=False).folder


def compared(folder: Path, by: float, arguments: argparse.Namespace) -> Ratio:
    """The ratio of an engine that is slower by some share to one that is not."""
    first = Subject("first", folder, arguments.threads)
    second = Slowed("second", folder, arguments.threads, by=by)
    timings = measure([first, second], seconds=arguments.seconds, extras=False).timings
    return timings.quiet().ratio("second", "first", CONFIDENCE)


def recorded(folder: Path, by: float, arguments: argparse.Namespace) -> Recording:
    """A recording as `dnc bench --json` makes it, by way of its JSON."""
    subject = Slowed("engine", folder, arguments.threads, by=by)
    return Recording.from_json(measure([subject], seconds=arguments.record, extras=False).to_json())


def main() -> None:
    """A row for each network and kind of comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+")
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--record", type=float, default=8.0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    outcomes: list[tuple[str, float, Callable[[Ratio], bool]]] = [
        ("equal", 0.0, lambda ratio: ratio.low <= 1 <= ratio.high),
        ("5 % slower", 0.05, lambda ratio: ratio.low > 1),
    ]
    print("| network | comparison | as it should be | ratios | half width, median |\n| --- | --- | --- | --- | --- |")
    for name in arguments.networks:
        with tempfile.TemporaryDirectory() as scratch:
            folder = compile_engine(name, Path(scratch))
            for what, by, right in outcomes:
                row(name, what, [compared(folder, by, arguments) for _ in range(arguments.times)], right)
            for what, by, busy, right in (
                ("noise", 0.0, nullcontext, lambda ratio: ratio.low <= 1.05),
                ("loaded", 0.0, load, lambda ratio: ratio.low <= 1.05),
                ("slowed", 0.15, nullcontext, lambda ratio: ratio.low > 1.05),
            ):
                ratios = []
                for _ in range(arguments.pairs):
                    old = recorded(folder, 0.0, arguments)
                    with busy():
                        new = recorded(folder, by, arguments)
                    (difference,) = compare_recordings(old, new, ("old", "new"), 0.05)
                    ratios.append(difference.ratio)
                    print(what, difference, *difference.notes, file=sys.stderr, flush=True)
                row(name, what, ratios, right)


def row(name: str, what: str, ratios: list[Ratio], right: Callable[[Ratio], bool]) -> None:
    """A line of the table."""
    if not ratios:
        return
    for ratio in ratios:
        print(name, what, ratio, file=sys.stderr)
    values = sorted(ratio.value for ratio in ratios)
    widths = sorted((ratio.high - ratio.low) / 2 for ratio in ratios)
    good = sum(map(right, ratios))
    span = f"{values[0]:.3f} to {values[-1]:.3f}"
    print(f"| {name} | {what} | {good} of {len(ratios)} | {span} | {widths[len(widths) // 2]:.3f} |", flush=True)


if __name__ == "__main__":
    main()
