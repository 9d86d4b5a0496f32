"""Passes on networks that nobody wrote for them, and on Darknet's own results: each alone, and all of a target."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.errors import PassError
from dnc.graph.pipeline import Pipeline
from dnc.graph.verification import Verifier, feeds_for
from dnc.passes import passes
from dnc.targets import targets
from tests import goldens
from tests.random_networks import random_networks
from tests.thinning import thinned

RANDOM = settings(suppress_health_check=list(HealthCheck))


ANY_ORDER = given(text=random_networks(), seed=st.integers(0, 9), order=st.permutations(list(passes)))


@settings(RANDOM, max_examples=20)
@ANY_ORDER
def test_all_in_any_order(text: str, seed: int, order: list[str]) -> None:
    """Whatever ran before, a pass keeps what it declares. Half precision comes last: what it rounds is not exact."""
    _in_order(text, seed, order)


@pytest.mark.slow
@settings(RANDOM, max_examples=200)
@ANY_ORDER
def test_all_in_any_order_on_more(text: str, seed: int, order: list[str]) -> None:
    _in_order(text, seed, order)


def _in_order(text: str, seed: int, order: list[str]) -> None:
    built = lower(Network.parse(text).with_random_weights(seed))
    order = [name for name in order if not name.startswith("to-")]
    Pipeline([passes[name]() for name in order]).run(built, verify=Verifier(feeds_for(built, images=2, seed=seed)))


@settings(RANDOM, max_examples=6)
@given(text=random_networks(), seed=st.integers(0, 9))
def test_targets(text: str, seed: int) -> None:
    """Every target's own list, and nothing to do for a second run of it."""
    _as_targets_do(text, seed)


@pytest.mark.slow
@settings(RANDOM, max_examples=100)
@given(text=random_networks(), seed=st.integers(0, 9))
def test_targets_on_more(text: str, seed: int) -> None:
    _as_targets_do(text, seed)


def _as_targets_do(text: str, seed: int) -> None:
    for name, target in targets.items():
        if target().missing():
            continue
        built = lower(Network.parse(text).with_random_weights(seed))
        wanted = target().candidates()[0].optimizations()
        Pipeline(wanted).run(built, verify=Verifier(feeds_for(built, images=2, seed=seed)))
        again = Pipeline(wanted).run(built)
        assert [item.name for item in again if item.count] == [], name


@pytest.mark.filterwarnings("ignore::dnc.errors.DncWarning")
@pytest.mark.parametrize("name", thinned(goldens.MICRO))
def test_each_alone_on_darknet_s_networks(name: str, tmp_path: Path) -> None:
    """tests/test_golden.py compares the unchanged graph and that of the target's list with Darknet itself."""
    golden = goldens.micro(name)
    start = lower(Network.load(*golden.write(tmp_path)))
    for each in passes:
        built = start.clone()
        feeds = {**feeds_for(built, images=1), "input": golden.input[None]}
        try:
            Pipeline([passes[each]()]).run(built, verify=Verifier(feeds))
        except PassError as error:
            pytest.fail(f"{each}: {error}")
