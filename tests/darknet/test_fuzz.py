"""Whatever is done to a cfg or to weights, the front end and lowering end in a DncError or in success: never in another
exception, in a hang, or in memory running out.

DNC_FUZZ=20000 sets the number of examples, chosen at random then; by default they are few and always the same.
"""

from __future__ import annotations

import io
import math
import os
import resource
import signal
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dnc
from dnc.darknet.layers import layers
from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.darknet.weights import Header, random_arrays, read_weights, write_weights
from dnc.errors import DncError
from dnc.graph.pipeline import Pipeline
from dnc.passes import passes
from tests.networks import NETWORKS

_EXAMPLES = int(os.environ.get("DNC_FUZZ", "0"))
_SECONDS = 2.0
_MEMORY = 3 << 30


def _settings(examples: int) -> settings:
    return settings(
        max_examples=_EXAMPLES or examples,
        derandomize=not _EXAMPLES,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


NUMBERS = (
    [str(number) for number in (*range(-3, 9), 16, 32, 255, 1000, 65535, 65536, 10**5, 10**6, 10**9, -(10**9))]
    + [str(2**power + more) for power in (31, 32, 63, 64) for more in (-1, 0)]
    + ["1e999", "-1e999", "1e-999", "nan", "inf", "0x10", "", "1.5", "1e3", "-0", "+1", "9" * 5000, "1,2", "1,", ","]
    + ["0.5", "1e38", "4e38", "-1e38", "1e-45", "\uff11", "\xb2", "1_0", " 1 # 2", "a", "\0", "1;2", "#"]
)
_LINES = [line for cfg in NETWORKS.values() for line in cfg.split("\n")]
_SECTIONS = [f"[{section}" for cfg in NETWORKS.values() for section in cfg.split("\n[")[1:]]
_MORE = "antialiasing share_index stretch sway xnor bin_output dilation groups group_id stride_x stride_y out_channels"
KEYS = sorted({line.partition("=")[0] for line in _LINES if "=" in line} | set(_MORE.split()))
NAMES = sorted({*layers, "net", "network", "", "x", "conv_lstm "})
VALUES = ["leaky", "mish", "softmax", "relu", "per_channel", "none", "greedynms", "cornersnms", "avg_relu", "\x1b[1m"]
KINDS = ["value", "key", "delete", "double", "swap", "bytes", "section", "cut", *["number", "new", "splice"] * 2]


@st.composite
def mutations(draw: st.DrawFn) -> tuple[str, int, Any]:
    """One change of a list of lines: what, where, and by what."""
    kind = draw(st.sampled_from(KINDS))
    place = draw(st.integers(0, 200))
    chosen: Any = None
    if kind in ("number", "new"):
        chosen = draw(st.sampled_from(KEYS)), draw(st.one_of(st.sampled_from(NUMBERS), st.integers(-70, 70).map(str)))
    elif kind in ("swap", "cut"):
        chosen = draw(st.integers(0, 200))
    elif kind == "value":
        chosen = draw(st.sampled_from(VALUES))
    elif kind == "key":
        chosen = draw(st.one_of(st.sampled_from(KEYS), st.text(max_size=5)))
    elif kind == "bytes":
        chosen = draw(st.binary(min_size=1, max_size=6)).decode("latin-1")
    elif kind == "splice":
        chosen = draw(st.sampled_from(_SECTIONS))
    elif kind == "section":
        chosen = draw(st.sampled_from(NAMES))
    return kind, place, chosen


def mutate(cfg: str, changes: list[tuple[str, int, Any]]) -> str:
    """The text after the changes."""
    lines = cfg.split("\n")
    for kind, place, chosen in changes:
        if not lines:
            break
        options = [number for number, line in enumerate(lines) if "=" in line] or [0]
        option = options[place % len(options)]
        key, _, value = lines[option].partition("=")
        at = place % len(lines)
        if kind == "number":
            lines[option] = f"{key}={chosen[1]}"
        elif kind == "value":
            lines[option] = f"{key}={chosen}"
        elif kind == "key":
            lines[option] = f"{chosen}={value}"
        elif kind == "new":
            lines.insert(option, f"{chosen[0]}={chosen[1]}")
        elif kind == "delete":
            del lines[at]
        elif kind == "double":
            lines.insert(at, lines[at])
        elif kind == "swap":
            other = chosen % len(lines)
            lines[at], lines[other] = lines[other], lines[at]
        elif kind == "bytes":
            cut = place % (len(lines[at]) + 1)
            lines[at] = lines[at][:cut] + chosen + lines[at][cut:]
        elif kind in ("splice", "section"):
            headers = [number for number, line in enumerate(lines) if line.startswith("[")] or [0]
            header = headers[place % len(headers)]
            if kind == "section":
                lines[header] = f"[{chosen}]"
            else:
                lines[header:header] = chosen.split("\n")
        elif kind == "cut":
            low, high = sorted((at, chosen % len(lines)))
            del lines[low : min(high, low + 12)]
    return "\n".join(lines)


@contextmanager
def bounded() -> Iterator[None]:
    """Fails on what takes longer than two seconds of the processor, or three GiB; a DncError and success are fine."""

    def hang(*_: object) -> None:
        raise TimeoutError("hangs")

    old_limit = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, old_limit[1]))
    old_handler = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, 20 * _SECONDS)
    # Of this thread: ONNX Runtime's own spin for a while after they have worked.
    start = time.thread_time()
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    except DncError as error:
        _check_message(str(error))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old_handler)
        resource.setrlimit(resource.RLIMIT_AS, old_limit)
    assert time.thread_time() - start < _SECONDS


def _check_message(text: str) -> None:
    assert len(text) < 2000
    assert text.replace("\n", "").isprintable()


def _small(network: Network, most: int = 2_000_000) -> bool:
    elements = sum(math.prod(layer.shape) for layer in network.layers) + math.prod(network.input_shape)
    return network.parameters() + elements < most


_CHANGES = st.lists(mutations(), min_size=1, max_size=4)


@_settings(500)
@given(name=st.sampled_from(sorted(NETWORKS)), changes=_CHANGES, lenient=st.booleans(), batch=st.sampled_from(["N", 2]))
def test_cfg(name: str, changes: list[tuple[str, int, Any]], lenient: bool, batch: int | str) -> None:
    """Parsing; where that succeeds, lowering and all passes."""
    text = mutate(NETWORKS[name], changes)
    with bounded():
        network = Network.parse(text, "net.cfg", lenient=lenient)
        assert all(min(layer.shape) > 0 for layer in network.layers)
        if network.parameters() < 5_000_000:
            model = lower(network.with_random_weights(0), batch=batch)
            Pipeline([each() for each in passes.values() if not each.__abstractmethods__]).run(model)


@_settings(200)
@given(data=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace"))))
def test_any_bytes(data: bytes) -> None:
    """No cfg at all, and a cfg whose tail is anything."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.cfg"
        for start in (b"", NETWORKS["tiny"].encode()):
            path.write_bytes(start + data)
            for lenient in (False, True):
                with bounded():
                    Network.load(path, lenient=lenient)


@_settings(80)
@given(
    name=st.sampled_from(sorted(NETWORKS)),
    changes=_CHANGES,
    lenient=st.booleans(),
    decode=st.sampled_from(["host", "host", "graph", "graph+nms"]),
    input=st.sampled_from(["f32", "f32", "u8"]),
    keep=st.booleans(),
)
def test_compile(
    name: str, changes: list[tuple[str, int, Any]], lenient: bool, decode: str, input: str, keep: bool
) -> None:
    """The whole compiler, and a run of the engine, on an array and on an image."""
    text = mutate(NETWORKS[name], changes)
    with tempfile.TemporaryDirectory() as folder, bounded():
        cfg = Path(folder) / "net.cfg"
        cfg.write_bytes(text.encode("utf-8", "replace"))
        network = Network.load(cfg, lenient=lenient)
        if not _small(network):
            return
        with cfg.with_suffix(".weights").open("wb") as file:
            write_weights(file, network.layers, random_arrays(network.layers, 1))
        engine = dnc.compile(
            cfg, out=cfg.with_name("e"), target="onnx", lenient=lenient, decode=decode, input=input, keep_layers=keep
        )
        if input == "f32":
            engine.forward(np.ones(network.input_shape))
        engine(np.zeros((5, 7, 3), np.uint8), confidence=0.9)


@_settings(150)
@given(
    name=st.sampled_from(sorted(NETWORKS)),
    cut=st.integers(-40, 40),
    flips=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 7)), max_size=6),
    header=st.one_of(st.none(), st.tuples(*[st.integers(-(2**31), 2**31 - 1)] * 3)),
    lenient=st.booleans(),
    run=st.booleans(),
)
def test_weights(
    name: str, cut: int, flips: list[tuple[int, int]], header: tuple[int, int, int] | None, lenient: bool, run: bool
) -> None:
    """Cut off, longer, flipped bits, another header."""
    network = Network.parse(NETWORKS[name])
    file = io.BytesIO()
    write_weights(file, network.layers, random_arrays(network.layers, 0), Header(*header) if header else None)
    data = bytearray(file.getvalue())
    for place, bit in flips:
        data[place % len(data)] ^= 1 << bit
    data = data[:cut] if cut < 0 else data + bytes(range(cut))
    with tempfile.TemporaryDirectory() as folder, bounded():
        cfg = Path(folder) / "net.cfg"
        cfg.write_text(NETWORKS[name])
        cfg.with_suffix(".weights").write_bytes(data)
        arrays = read_weights(cfg.with_suffix(".weights"), network.layers, lenient=lenient)
        assert [sorted(own) for own in arrays] == [sorted(own) for own in random_arrays(network.layers, 0)]
        if run:
            engine = dnc.compile(cfg, out=cfg.with_name("e"), target="onnx", lenient=lenient)
            engine.forward(np.ones(network.input_shape))
            engine(np.zeros((5, 7, 3), np.uint8))


@pytest.mark.parametrize("name", NETWORKS)
def test_seeds_are_right(name: str) -> None:
    """What is mutated is right to begin with, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = Network.parse(NETWORKS[name])
        lower(network.with_random_weights(0))


def test_seeds_have_every_section() -> None:
    used = {type(layer) for cfg in NETWORKS.values() for layer in Network.parse(cfg).layers}
    assert used == set(layers.values())
