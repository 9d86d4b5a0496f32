"""`python -m tests.fuzz`: see tests/fuzz/__init__.py."""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

from tests import ROOT
from tests.fuzz.fuzzers import FUZZERS
from tests.fuzz.running import Campaign, Worker, read_case

FOUND = ROOT / "build" / "fuzz"
CORPUS = Path(__file__).with_name("corpus")


def corpus(name: str) -> dict[str, dict[str, bytes]]:
    """The cases that are kept, by their names."""
    folder = CORPUS / name
    return {path.name: dict(read_case(path)) for path in sorted(folder.iterdir())} if folder.is_dir() else {}


def _one(name: str, case: Path) -> int:
    worker = Worker(name, FUZZERS[name].seeds())
    try:
        ending = worker(read_case(case))
    finally:
        worker.close()
    print(f"{ending.kind}: {ending.key}\n{ending.text}")
    return ending.kind != "fine"


def _campaign(name: str, seconds: float, seed: int, cases: int | None) -> int:
    # A compiler may take longer than the cases have.
    FUZZERS[name].build()
    terminal, start = sys.stdout.isatty(), time.monotonic()
    campaign = Campaign(name, seed)

    def line() -> str:
        spent = time.monotonic() - start
        return (
            f"{name}: {campaign.count} cases in {spent:.0f} s, {campaign.new} endings, "
            f"{campaign.bad} bad in {len(campaign.found)} ways"
        )

    def go_on(count: int) -> bool:
        return count < cases if cases is not None else time.monotonic() - start < seconds

    def progress(_: Campaign) -> None:
        if terminal:
            print(f"\r{line()}\x1b[K", end="", flush=True)

    try:
        campaign.run(corpus(name), go_on, progress)
    finally:
        print(f"\r{line()}\x1b[K" if terminal else line(), flush=True)
        for place in campaign.save(FOUND):
            print(f"  {place.name}\n    python -m tests.fuzz {name} --case {place}")
    return len(campaign.found)


def main() -> int:
    """Returns 1 if a case ended badly."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="FUZZER", help=f"all of {', '.join(FUZZERS)} if none is named")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each, [60]")
    parser.add_argument("--cases", type=int, help="for each, in place of seconds: a run that can be repeated exactly")
    parser.add_argument("--seed", type=int, help="another one each time if it is not given")
    parser.add_argument("--case", type=Path, help="run this folder alone, with the one fuzzer that is named")
    told = parser.parse_args()
    unknown = set(told.names) - set(FUZZERS)
    if unknown or (told.case and len(told.names) != 1):
        parser.error(f"no fuzzer {', '.join(unknown)}" if unknown else "--case takes one fuzzer")
    if told.case:
        return _one(told.names[0], told.case)
    seed = random.SystemRandom().randrange(10**6) if told.seed is None else told.seed
    print(f"seed {seed}")
    found = 0
    for name in told.names or FUZZERS:
        missing = FUZZERS[name].missing()
        if missing:
            print(f"{name}: {missing}")
        else:
            found += _campaign(name, told.seconds, seed, told.cases)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
