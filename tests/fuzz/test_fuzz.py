"""Every fuzzer on what is right, on what once ended badly, and on some mutations, which are always the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from dnc.darknet.layers import layers
from dnc.darknet.network import Network
from dnc.errors import DncError
from tests.fuzz import fuzzers, running
from tests.fuzz.__main__ import corpus
from tests.fuzz.fuzzers import FUZZERS, Allow, Fuzzer, sealed
from tests.fuzz.mutation import Case, change
from tests.fuzz.running import Campaign, Worker
from tests.networks import NETWORKS

CASES = {"cfg": 50, "weights": 30, "engine": 30, "package": 30}
"""Others have 75; `make fuzz` goes on from there."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("runtime", "packed"))) for name in FUZZERS]
)
def test_fuzzer(name: str) -> None:
    if missing := FUZZERS[name].missing():
        pytest.skip(missing)
    campaign = Campaign(name, seed=0)
    campaign.run(corpus(name), lambda count: count < CASES.get(name, 75), lambda _: None)
    texts = [f"{key}\n{ending.text}" for key, (ending, _) in campaign.found.items()]
    assert not texts, "\n".join(texts)
    # Nothing is refused for one reason alone.
    assert campaign.new > 8


@pytest.mark.parametrize("name", sorted(set(FUZZERS) - {"package", "packed", "runtime"}))
def test_a_seed_repeats_itself(name: str) -> None:
    fuzzer = FUZZERS[name]
    seeds = fuzzer.seeds()

    def some() -> list[Case]:
        random = Random(5)
        return [fuzzer.mutate(random.choice(seeds), random.choice(seeds), random) for _ in range(30)]

    first = some()
    assert first == some()
    assert sum(case in seeds for case in first) < 10


def test_cfgs_have_every_section() -> None:
    used = {type(layer) for cfg in NETWORKS.values() for layer in Network.parse(cfg).layers}
    assert used == set(layers.values())


def test_corpus_is_of_fuzzers() -> None:
    """A case in a folder that no fuzzer has would never run."""
    assert {path.name for path in Path(fuzzers.__file__).with_name("corpus").iterdir()} <= set(FUZZERS)


class Bad(Fuzzer):
    """Does what its file says."""

    name = "bad"

    def seeds(self) -> list[Case]:
        return [{"do.txt": b"pass"}]

    def run(self, folder: Path, allow: Allow) -> None:
        with allow():
            exec((folder / "do.txt").read_text(), {"DncError": DncError})


@pytest.fixture
def bad(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """A worker that is forked, so that it has what is patched here."""
    monkeypatch.setitem(FUZZERS, "bad", Bad())
    monkeypatch.setattr(running, "METHOD", "fork")
    monkeypatch.setattr(running, "SECONDS", 1)
    worker = Worker("bad", Bad().seeds())
    yield worker
    worker.close()


@pytest.mark.parametrize(
    ("code", "kind", "key"),
    [
        ("raise DncError('no 5 of \\'x\\'')", "fine", "no 0 of ''"),
        ("1 / 0", "bug", "ZeroDivisionError"),
        ("raise DncError('x\\n' * 20_000)", "bug", "AssertionError"),
        ("bytes(3 << 30)", "memory", ""),
        ("try: bytes(3 << 30)\nexcept MemoryError as error: raise DncError('no memory') from error", "memory", ""),
        ("while True: pass", "hang", ""),
        ("sum(range(1 << 50))", "hang", ""),
        ("import signal; signal.pause()", "hang", ""),
        ("import os; os.kill(os.getpid(), 11)", "crash", "SIGSEGV"),
        ("import os; os._exit(3)", "crash", "exit 3"),
    ],
)
def test_what_ends_badly_is_told(bad: Worker, code: str, kind: str, key: str) -> None:
    """And the next case is run as if nothing had been."""
    ending = bad({"do.txt": code.encode()})
    assert (ending.kind, ending.key[: len(key)]) == (kind, key), ending
    assert bad({"do.txt": b"pass"}).kind == "fine"


def test_what_ends_badly_is_saved(tmp_path: Path, bad: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for each way, with the files of the case."""
    campaign = Campaign("bad", seed=0)
    cases = [{"do.txt": code} for code in (b"1 / 0", b"2 / 0", b"{}[1]")]
    campaign.run({str(place): case for place, case in enumerate(cases)}, lambda _: False, lambda _: None)
    assert (campaign.bad, len(campaign.found)) == (3, 2)
    places = campaign.save(tmp_path)
    assert [running.read_case(place) for place in places] == [cases[0], cases[2]]
    assert "ZeroDivisionError" in places[0].with_suffix(".txt").read_text()


def test_engines_are_sealed() -> None:
    """What is mutated gets past the digests."""
    (case, *_) = FUZZERS["engine"].seeds()
    changed = sealed({**case, "engine.json": case["engine.json"].replace(b"tiny", b"tidy")})
    assert b"tidy" in changed["engine.json"]
    assert len({case["engine.json"], changed["engine.json"]}) == 2


def test_changes_suit_the_file() -> None:
    """Most of what is changed can still be read as what it is."""
    random, right = Random(0), 0
    for _ in range(50):
        try:
            json.loads(change("a.json", b'{"a": [1, 2.5, "x"], "b": {"c": null}}', random))
            right += 1
        except (ValueError, RecursionError):
            pass
    assert right > 30
