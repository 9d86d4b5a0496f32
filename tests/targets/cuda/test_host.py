"""What the host does around the kernels of target cuda's back end tvm, on the GPU of emulator/driver.cpp, on which
everything that a GPU does later is done as late as can be: runs in flight, memory of the device that others have,
memory that is not there, and runs that nobody waits for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT
from tests.targets.cuda.emulation import environment
from tests.targets.cuda.test_engine import engine, needs_tvm

__all__ = ["engine"]

pytestmark = [pytest.mark.slow, needs_tvm]

_BEGIN = """
import ctypes, gc, sys, threading
import numpy as np
import dnc
from dnc.errors import DncError
from dnc.runtime.devices import DeviceArray
folder, image, graphs = sys.argv[1:]
image = np.load(image)[None]
feeds = [{"input": np.roll(image, turn, -1)} for turn in range(6)]
same = lambda found, wanted: len(found) == len(wanted) and all(map(np.array_equal, found, wanted))
try:
    engine = dnc.load(folder, graphs=graphs)
    session = engine.session
"""
_END = """
except DncError as error:
    print(error)
"""


def _program(folder: Path, code: str, graphs: str, **more: str) -> str:
    """What a program says, of which this is the middle."""
    indented = "".join(f"    {line}\n" for line in code.strip().splitlines())
    done = subprocess.run(
        [sys.executable, "-c", _BEGIN + indented + _END, str(folder / "e"), str(folder / "image.npy"), graphs],
        cwd=ROOT,
        env=environment(folder, **more),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


_IN_FLIGHT = """
wanted = [session.run(each) for each in feeds]
assert not same(wanted[0], wanted[1])
for each in feeds:
    session.empty(each["input"].shape, "float32")
asked = [session.submit(each) for each in feeds]
assert all(same(each.result(), right) for each, right in zip(asked, wanted))
# More than there may be under way, from pinned memory, in another order, and some of which nobody wants to know.
for turn in range(3):
    asked = []
    for number in (5, 0, 3, 1, 4, 2, 2, 5, 0, 1):
        own = session.empty(image.shape, "float32")
        own[...] = feeds[number]["input"]
        asked.append((session.submit({"input": own}, {1}), number))
        del own
        session.submit(feeds[turn])
        gc.collect()
    for pending, number in reversed(asked):
        found = pending.result(keep=False)
        assert found[0].size == 0 and np.array_equal(found[1], wanted[number][1])
# What is kept is nobody else's.
kept = session.run(feeds[3])
assert not any(map(np.shares_memory, kept, session.run(feeds[4]))) and same(kept, wanted[3])
print("right")
"""


@pytest.mark.parametrize("graphs", ["off", "on"])
@pytest.mark.parametrize("eager", ["0", "1"])
def test_runs_in_flight(engine: Path, graphs: str, eager: str) -> None:
    """Their inputs and outputs are their own, whenever the device copies them."""
    assert _program(engine, _IN_FLIGHT, graphs, EMULATED_EAGER=eager) == "right"


_THREADS = """
wanted = [session.run(each) for each in feeds]
other = dnc.load(folder, graphs=graphs)
wrong, done = [], []
def work(place):
    mine = (session, other.session)[place % 2]
    for turn in range(6):
        number = (place + turn) % 6
        wrong.append(not same(mine.run(feeds[number]), wanted[number]))
        results = engine.forward(feeds[number]["input"])
        wrong.append(not same(results, wanted[number]))
    done.append(place)
threads = [threading.Thread(target=work, args=(place,)) for place in range(8)]
for thread in threads: thread.start()
# Recording a graph meanwhile gets its turn.
third = dnc.load(folder, graphs=graphs)
assert same(third.forward(feeds[1]["input"]), wanted[1])
for thread in threads: thread.join()
print(len(done), any(wrong))
"""


@pytest.mark.parametrize("graphs", ["off", "on"])
def test_threads(engine: Path, graphs: str) -> None:
    """Eight on two engines, while a third one is opened."""
    assert _program(engine, _THREADS, graphs, EMULATED_DELAY="200") == "8 False"
