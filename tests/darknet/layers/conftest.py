"""What the tests of the layers share: a network goes through the reference and through its graph, and both are held
against an oracle that the test writes out, with loops over scalars in double as Darknet's C has them in float.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from dnc.darknet.layers.base import Array, Arrays
from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.darknet.reference import run_all
from dnc.errors import CfgError
from dnc.graph.running import Running

Doubles = npt.NDArray[np.float64]
Oracle = Callable[[Sequence[Doubles], Arrays], Doubles]
"""From what the layer reads, for one image, and the layer's arrays to its output."""

IMAGE = "width=7\nheight=5\nchannels=4"


def _graph(network: Network, x: Array, batch: int | str) -> dict[str, Array]:
    """Every layer's output by onnxruntime, which must not optimize: its own fusions could hide a difference."""
    model = lower(network, batch=batch, layers=range(len(network.layers)))
    return Running(model, spin=False)({"input": x})


def _check(
    cfg: str | Network,
    oracle: Oracle,
    *,
    net: str = IMAGE,
    at: int = -1,
    batch: int = 3,
    bound: float = 1e-5,
    x: Array | None = None,
) -> Network:
    """Holds layer `at` of reference and graph against the oracle; returns the network.

    Args:
        cfg: the sections after [net]; or a network, with weights.
        oracle: what the layer computes.
        net: the options of [net].
        at: the layer.
        batch: images at a time; the graph takes them with a free and with a fixed batch size.
        bound: largest difference, relative to the largest value or 1; 1e-5 is float32 sums of up to some hundred terms.
        x: the input; normal random numbers if not given.
    """
    network = cfg if isinstance(cfg, Network) else Network.parse(f"[net]\n{net}\n{cfg}").with_random_weights(7)
    layer = network.layers[at]
    if x is None:
        x = np.random.default_rng(11).normal(0, 1, (batch, *network.input_shape)).astype(np.float32)
    values = {-1: x, **dict(run_all(network, x))}
    inputs = [values[source].astype(np.float64) for source in layer.sources]
    expected = np.stack([oracle([y[image] for y in inputs], network.arrays[at]) for image in range(len(x))])
    assert values[layer.index].shape == (len(x), *layer.shape) == expected.shape
    assert values[layer.index].dtype == np.float32
    for kind in ("reference", "N", len(x)):
        got = values[layer.index] if kind == "reference" else _graph(network, x, kind)[f"layer{layer.index:03d}"]
        finite = np.abs(expected[np.isfinite(expected)])
        largest = max(1.0, float(finite.max(initial=0)))
        np.testing.assert_allclose(got, expected, rtol=0, atol=bound * largest, err_msg=f"{kind}")
    return network


def _refused(cfg: str, message: str, line: str = "", hint: str = "", *, net: str = IMAGE) -> None:
    """Holds the whole text of the CfgError; `line` is the source line it points at, the last section's if not given."""
    text = f"[net]\n{net}\n{cfg}".rstrip("\n")
    lines = text.split("\n")
    headers = [number for number, source in enumerate(lines) if source.startswith("[")]
    number = lines.index(line, headers[-1]) if line else headers[-1]
    section, index = lines[headers[-1]], len(headers) - 2
    expected = f"{message}\n  at net.cfg:{number + 1} {section} #{index}\n  {number + 1:>5} | {lines[number]}"
    with pytest.raises(CfgError) as caught:
        Network.parse(text, "net.cfg")
    assert str(caught.value) == expected + (f"\n  hint: {hint}" if hint else "")


@pytest.fixture(scope="session")
def check() -> Callable[..., Network]:
    """See `_check`."""
    return _check


@pytest.fixture(scope="session")
def refused() -> Callable[..., None]:
    """See `_refused`."""
    return _refused
