"""What the host does around the kernels of target cuda's back end tvm, on the GPU of emulator/driver.cpp, on which
everything that a GPU does later is done as late as can be: runs in flight, memory of the device that others have,
memory that is not there, and runs that nobody waits for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT
from tests.patience import PATIENCE
from tests.targets.cuda.emulation import environment
from tests.targets.cuda.test_engine import needs_tvm

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
    print(error, error.hint)
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
        timeout=PATIENCE,
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


_BATCHES = """
import dnc.runtime.engine
pixels = [np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8) for seed in range(5)]
found = [[engine(each, confidence=0.01)] for each in pixels]
assert engine(pixels, confidence=0.01) == [each[0] for each in found] and any(found)
assert list(engine.stream(pixels, confidence=0.01)) == engine(pixels, confidence=0.01)
# The images were prepared in pinned memory, from which the device copies.
from dnc.runtime.runners.cuda import kernels
def refuse(*_): raise AssertionError("a copy")
session._pinned = refuse
assert engine(pixels, confidence=0.01) == [each[0] for each in found]
print("right")
"""


def test_batches(engine: Path) -> None:
    """One is prepared while the one before runs; on the host, nothing is copied after it is prepared."""
    assert _program(engine, _BATCHES, "on") == "right"


_DEVICE = """
wanted = [session.run(each) for each in feeds]
left = engine.forward(feeds[0]["input"], on_device=True)
assert all(isinstance(each, DeviceArray) for each in left)
assert same([np.asarray(each) for each in left], wanted[0])
cuda = ctypes.CDLL("libcudart.so.13")
# Neither protocol asks for an attribute shape.
class Numba:
    def __init__(self, array, **more):
        self.address = ctypes.c_void_p()
        self.stream = ctypes.c_void_p()
        cuda.cudaStreamCreateWithFlags(ctypes.byref(self.stream), 1)
        assert not cuda.cudaMalloc(ctypes.byref(self.address), ctypes.c_size_t(array.nbytes))
        # It is there when its stream comes to it.
        self.array = session.empty(array.shape, array.dtype)
        self.array[...] = array
        cuda.cudaMemcpyAsync(self.address, ctypes.c_void_p(self.array.ctypes.data), ctypes.c_size_t(array.nbytes), 1,
                             self.stream)
        told = {"shape": array.shape, "typestr": array.dtype.str, "data": (self.address.value, False), "strides": None}
        self.__cuda_array_interface__ = told | {"version": 3, "stream": self.stream.value} | more
class Torch:
    def __init__(self, array):
        self.inner, self.asked = array, []
    def __dlpack_device__(self): return self.inner.__dlpack_device__()
    def __dlpack__(self, stream=None):
        self.asked.append(stream)
        return self.inner.__dlpack__(stream=stream)
for number in range(6):
    given = Numba(feeds[number]["input"])
    assert same(engine.forward(given), wanted[number])
    beside = [session.submit({"input": given}) for _ in range(3)]
    assert all(same(each.result(), wanted[number]) for each in beside)
# Outputs are inputs of another: this takes what an engine left on the device by DLPack.
from dnc.runtime.devices import borrow, is_on_device
out = Torch(left[0])
assert is_on_device(out) and not is_on_device(feeds[0]["input"])
lent = borrow(out, None)
assert out.asked == [1] and lent.shape == left[0].shape and lent.dtype == np.float32 and lent.device == 0
assert lent.address == left[0].__cuda_array_interface__["data"][0]
# A consumer's stream waits.
stream = ctypes.c_void_p()
cuda.cudaStreamCreateWithFlags(ctypes.byref(stream), 1)
again = engine.forward(feeds[3]["input"], on_device=True)[0]
again.__dlpack__(stream=stream.value)
for asked in ({"copy": True}, {"dl_device": (1, 0)}):
    try: again.__dlpack__(**asked)
    except BufferError: pass
    else: raise AssertionError(asked)
there = session.empty(again.shape, "float32")
where = ctypes.c_void_p(again.__cuda_array_interface__["data"][0])
cuda.cudaMemcpyAsync(ctypes.c_void_p(there.ctypes.data), where, ctypes.c_size_t(there.nbytes), 2, stream)
cuda.cudaStreamSynchronize(stream)
assert np.array_equal(there, wanted[3][0])
for wrong, told in (
    (Numba(feeds[0]["input"].astype("float64")), "is no array of float32"),
    (Numba(feeds[0]["input"], strides=(4, 4, 4, 4)), "do not lie one behind the other"),
    (Numba(feeds[0]["input"][:, :, 1:]), "the engine wants"),
    (Numba(feeds[0]["input"], shape=None), "cannot be taken"),
    (out, "the engine wants"),
):
    try: engine.forward(wrong)
    except DncError as error: assert told in str(error), error
    else: raise AssertionError(told)
assert same(session.run(feeds[0]), wanted[0])
print("right")
"""


@pytest.mark.parametrize("graphs", ["off", "on"])
def test_memory_of_the_device(engine: Path, graphs: str) -> None:
    """Inputs are taken from it, whose stream comes to them later, and outputs left in it."""
    assert _program(engine, _DEVICE, graphs) == "right"


_INTERRUPTED = """
import _thread
wanted = session.run(feeds[0])
for count in range(12):
    timer = threading.Timer(0.002 * count, _thread.interrupt_main)
    try:
        timer.start()
        # Python loses one that comes in a finalizer.
        for number in range(200):
            engine.forward(feeds[number % 6]["input"])
        timer.join()
        engine.forward(feeds[0]["input"])
    except KeyboardInterrupt:
        pass
    assert same(session.run(feeds[0]), wanted)
print("right")
"""


def test_interrupted(engine: Path) -> None:
    """Ctrl-C in the middle of a run, wherever that is: the next one is right."""
    assert _program(engine, _INTERRUPTED, "on", EMULATED_DELAY="100") == "right"


_TOO_LITTLE = """
wanted = session.run(feeds[0])
cuda = ctypes.CDLL("libcudart.so.13")
free, every, memory = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_void_p()
cuda.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(every))
assert not cuda.cudaMalloc(ctypes.byref(memory), free)
asked = []
try:
    for number in range(6): asked.append(session.submit(feeds[number]))
    for each in asked: each.result()
except DncError as error:
    print(error, error.hint)
cuda.cudaFree(memory)
assert same(session.run(feeds[0]), wanted)
print("right")
"""


def test_too_little_memory(engine: Path) -> None:
    """One error that says so, when an engine is opened and when it runs; afterwards it runs."""
    said = _program(engine, "print(0)", "off", EMULATED_MEMORY="16")
    assert "GPU 0 has not enough memory" in said
    assert "--option device=N" in said
    said = _program(engine, _TOO_LITTLE, "off", EMULATED_MEMORY="1024")
    assert said.startswith("GPU 0 has not enough memory: 0 of its 1 MB are free")
    assert "smaller --batch" in said
    assert said.splitlines()[-1] == "right"
