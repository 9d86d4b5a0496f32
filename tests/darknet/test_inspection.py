"""Where a .weights file ends, and what its numbers are: against numpy on the arrays that were written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dnc.darknet.inspection import inspect_weights
from dnc.darknet.network import Network
from dnc.darknet.weights import Header, write_weights
from dnc.errors import WeightsError
from tests.networks import NETWORKS, TINY

HEADERS = [Header(), Header(0, 1, 0, 7), Header(0, 1001, 5, 3)]


def write(path: Path, network: Network, header: Header | None = None) -> bytes:
    with path.open("wb") as file:
        write_weights(file, network.layers, network.arrays, header)
    return path.read_bytes()


@pytest.mark.parametrize("header", HEADERS, ids=lambda header: f"{header.major}.{header.minor}")
@pytest.mark.parametrize("name", NETWORKS)
def test_statistics(name: str, header: Header, tmp_path: Path) -> None:
    network = Network.parse(NETWORKS[name]).with_random_weights(2)
    path = tmp_path / "a.weights"
    data = write(path, network, header)
    found = inspect_weights(path, network.layers)
    assert found.header == header
    assert found.fits
    assert (found.wanted, found.floats, found.bytes) == (network.parameters(), network.parameters(), len(data))
    wanted = [(layer.index, key, shape) for layer in network.layers for key, shape in layer.weights().items()]
    assert [(record.layer, record.name, record.shape) for record in found.arrays] == wanted
    for record in found.arrays:
        # An array of the cfg; its order in the file changes none of these numbers.
        values = network.arrays[record.layer][record.name].astype(np.float64)
        stored = np.frombuffer(data, "<f4", record.size, record.offset)
        assert np.sort(stored).tolist() == np.sort(values, None).tolist()
        assert (record.min, record.max) == (values.min(), values.max())
        # 1e-9: sums in double, in another order.
        assert [record.mean, record.std] == pytest.approx([values.mean(), values.std()], rel=1e-9, abs=1e-9)
        assert record.stored == record.size == values.size
        assert record.remarks == ""


def test_more_than_a_block(tmp_path: Path) -> None:
    text = "[net]\ninputs=1100\n[connected]\noutput=1100\nactivation=linear\n"
    network = Network.parse(text).with_random_weights(2)
    path = tmp_path / "a.weights"
    write(path, network)
    record = inspect_weights(path, network.layers).arrays[1]
    values = network.arrays[0]["weights"].astype(np.float64)
    assert record.size > 1 << 20
    assert (record.min, record.max) == (values.min(), values.max())
    # 1e-9: sums in double, in another order.
    assert [record.mean, record.std] == pytest.approx([values.mean(), values.std()], rel=1e-9, abs=1e-12)


# TINY: layer 0 has 8 biases, scales, means, variances and 216 weights, layer 1 has 14 biases and 112 weights.
ENDS = [
    (20, "the file ends at byte 20, after the header; 374 of 374 floats are missing", 0),
    (20 + 4 * 12, "within 'scales' of layer 0 [convolutional], after 4 of 8 floats; 362 of 374 floats are missing", 12),
    (20 + 4 * 32 + 3, "within 'weights' of layer 0 [convolutional], after 0 of 216 floats; 342 of 374", 32),
    (20 + 4 * 248, "before layer 1 [convolutional], as `dnc partial` leaves it for the first 1 layers; 126 of", 248),
    (20 + 4 * 248 + 1, "within 'biases' of layer 1 [convolutional], after 0 of 14 floats; 126 of", 248),
    (20 + 4 * 262, "within 'weights' of layer 1 [convolutional], after 0 of 112 floats; 112 of", 262),
    (20 + 4 * 374, "the file holds the 374 floats that the cfg wants", 374),
    (20 + 4 * 374 + 2, "the file goes on after the last layer: 2 bytes after the 374 floats of the cfg", 374),
    (20 + 4 * 374 + 80, "the file goes on after the last layer: 80 bytes after the 374 floats of the cfg", 394),
]


@pytest.mark.parametrize(("size", "text", "floats"), ENDS)
def test_where_a_file_ends(size: int, text: str, floats: int, tmp_path: Path) -> None:
    network = Network.parse(TINY).with_random_weights()
    path = tmp_path / "a.weights"
    path.write_bytes((write(path, network) + bytes(100))[:size])
    found = inspect_weights(path, network.layers)
    assert text in found.length
    assert found.floats == floats
    assert found.fits == (size == 20 + 4 * 374)
    assert sum(record.stored for record in found.arrays) == min(floats, 374)
    assert found.length in found.summary[1]
    missing = [record for record in found.arrays if record.stored < record.size]
    assert all(f"{record.size - record.stored} missing" in record.remarks for record in missing)


def test_values_that_make_no_sense(tmp_path: Path) -> None:
    network = Network.parse(TINY).with_random_weights()
    path = tmp_path / "a.weights"
    floats = np.frombuffer(write(path, network), "<f4", offset=20).copy()
    floats[0:3] = np.nan, np.inf, -np.inf
    floats[8:16] = np.nan
    floats[24:28] = -1, 0, 9e-6, 2e-5
    path.write_bytes(Header().pack() + floats.tobytes())
    found = inspect_weights(path, network.layers)
    biases, scales, _, variance, *rest = found.arrays
    assert (biases.nan, biases.infinite, biases.zeros) == (1, 2, 0)
    assert (biases.min, biases.max) == (floats[3:8].min(), floats[3:8].max())
    assert (scales.nan, scales.min, scales.max, scales.mean, scales.std) == (8, None, None, None, None)
    assert (variance.negative, variance.tiny, variance.zeros) == (1, 2, 1)
    remarks = ["1 NaN, 2 infinite", "8 NaN", "", "1 negative, 2 under 1e-05"]
    assert [record.remarks for record in found.arrays] == remarks + [""] * len(rest)
    assert found.summary[2] == (
        "1 zeros, 12 numbers that are not finite or negative variances, 2 variances under 1e-05"
    )
    # What JSON has no word for would be written as NaN.
    text = json.dumps(found.to_json(), allow_nan=False)
    assert json.loads(text)["arrays"][1]["mean"] is None


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "too short for Darknet's header"), (bytes(15), "too short"), (b"version https://git-lfs", "is text")],
)
def test_without_a_header_there_is_nothing_to_tell(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.weights"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        inspect_weights(path, Network.parse(TINY).layers)
    with pytest.raises(WeightsError, match="cannot read the weights: No such file"):
        inspect_weights(tmp_path / "none", Network.parse(TINY).layers)
