""".weights files: both headers, the transpose flag, memory, and what is wrong with one."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from dnc.darknet.inspection import inspect_weights
from dnc.darknet.layers.base import Arrays
from dnc.darknet.network import Network
from dnc.darknet.reference import run_all
from dnc.darknet.weights import Header, count, random_arrays, read_weights, write_partial, write_weights
from dnc.errors import DncError, DncWarning, WeightsError
from tests import ROOT
from tests.networks import NETWORKS, TINY


def stored(network: Network, arrays: tuple[Arrays, ...], header: Header | None = None) -> bytes:
    file = io.BytesIO()
    write_weights(file, network.layers, arrays, header)
    return file.getvalue()


def equal(first: tuple[Arrays, ...], second: tuple[Arrays, ...]) -> bool:
    return all(
        one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
        for one, other in zip(first, second, strict=True)
    )


HEADERS = [
    Header(),
    Header(0, 1, 0, 32013312),
    Header(0, 2, 0, 2**40),
    Header(1, 0, 0, 7),
    Header(0, 1001, 0, 1),
    Header(2000, 0, 3, 1),
]


@pytest.mark.parametrize(
    ("header", "size", "transposed"),
    list(zip(HEADERS, [20, 16, 20, 20, 20, 20], [False] * 4 + [True] * 2, strict=True)),
)
def test_headers(header: Header, size: int, transposed: bool) -> None:
    """`seen` takes eight bytes from version 0.2 on; a version over 1000 is the transpose flag."""
    data = header.pack()
    assert len(data) == size
    assert Header.read(io.BytesIO(data + b"rest"), Path("x")) == header
    assert header.transposed is transposed


def test_header_bytes() -> None:
    """As Darknet writes it today, by hand."""
    assert Header(seen=5).pack() == struct.pack("<iiiQ", 0, 2, 5, 5)


@pytest.mark.parametrize("header", HEADERS, ids=lambda header: f"{header.major}.{header.minor}")
@pytest.mark.parametrize("name", NETWORKS)
def test_round_trip(name: str, header: Header, tmp_path: Path) -> None:
    """Every layer's arrays come back as they were, and go out as the same bytes."""
    network = Network.parse(NETWORKS[name])
    arrays = random_arrays(network.layers, 3)
    path = tmp_path / "a.weights"
    path.write_bytes(stored(network, arrays, header))
    read = read_weights(path, network.layers)
    assert equal(read, arrays)
    assert stored(network, read, header) == path.read_bytes()
    assert network.parameters() == (path.stat().st_size - len(header.pack())) // 4


def test_order() -> None:
    """Biases, scales, means, variances, weights of a convolution; of [connected] the weights come before the scales."""
    network = Network.parse(
        "[net]\nwidth=2\nheight=2\nchannels=1\n[convolutional]\nbatch_normalize=1\nfilters=2\n"
        "[connected]\nbatch_normalize=1\noutput=1\n"
    )
    assert [list(layer.weights()) for layer in network.layers] == [
        ["biases", "scales", "mean", "variance", "weights"],
        ["biases", "weights", "scales", "mean", "variance"],
    ]
    assert [count(layer) for layer in network.layers] == [10, 12]


def numbers(path: Path, network: Network, header: Header, start: int = 1) -> tuple[Arrays, ...]:
    """The arrays of a file that counts from `start`."""
    floats = np.arange(start, start + network.parameters(), dtype="<f4")
    path.write_bytes(header.pack() + floats.tobytes())
    return read_weights(path, network.layers)


def test_transposed_matrices(tmp_path: Path) -> None:
    """The flag reaches the fully connected layers alone."""
    network = Network.parse("[net]\ninputs=3\n[connected]\noutput=2\n")
    plain = numbers(tmp_path / "a", network, Header())[0]
    flag = numbers(tmp_path / "a", network, Header(0, 1001))[0]
    assert plain["weights"].tolist() == [[3, 4, 5], [6, 7, 8]]
    assert flag["weights"].tolist() == [[3, 5, 7], [4, 6, 8]]
    network = Network.parse("[net]\nwidth=1\nheight=1\nchannels=3\n[convolutional]\nfilters=2\n")
    assert numbers(tmp_path / "a", network, Header(0, 1001))[0]["weights"].ravel().tolist() == [3, 4, 5, 6, 7, 8]


def test_flipped(tmp_path: Path) -> None:
    """flipped=1: (channels * size * size, filters)."""
    network = Network.parse("[net]\nwidth=1\nheight=1\nchannels=3\n[convolutional]\nfilters=2\nflipped=1\n")
    assert numbers(tmp_path / "a", network, Header())[0]["weights"][:, :, 0, 0].tolist() == [[3, 5, 7], [4, 6, 8]]


def _base(array: npt.NDArray[np.float32]) -> object:
    base: object = array
    while getattr(base, "base", None) is not None and not isinstance(base, np.memmap):
        base = base.base  # type: ignore[attr-defined]
    return base


@pytest.mark.parametrize("header", [Header(), Header(0, 1, 0, 0), Header(0, 1001)])
def test_arrays_are_views_of_the_file(header: Header, tmp_path: Path) -> None:
    network = Network.parse(NETWORKS["yolo1"])
    path = tmp_path / "a.weights"
    path.write_bytes(stored(network, random_arrays(network.layers, 0), header))
    for own in read_weights(path, network.layers):
        for array in own.values():
            assert isinstance(_base(array), np.memmap)
            assert not array.flags.writeable
            assert array.dtype == np.float32


def test_shared_weights_are_read_once(tmp_path: Path) -> None:
    network = Network.parse(NETWORKS["convolutions"])
    path = tmp_path / "a.weights"
    path.write_bytes(stored(network, random_arrays(network.layers, 0)))
    arrays = read_weights(path, network.layers)
    assert arrays[3] is arrays[2]
    assert count(network.layers[3]) == 0


def test_partial(tmp_path: Path) -> None:
    """--cutoff: the first layers' weights out of a longer file."""
    network = Network.parse(TINY)
    path = tmp_path / "a.weights"
    path.write_bytes(stored(network, random_arrays(network.layers, 0)))
    (own,) = read_weights(path, network.layers[:1], partial=True)
    assert equal((own,), random_arrays(network.layers, 0)[:1])
    with pytest.raises(WeightsError, match="126 floats are left"):
        read_weights(path, network.layers[:1])
    path.write_bytes(path.read_bytes()[:-1])
    assert len(read_weights(path, network.layers[:1], partial=True)) == 1
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(WeightsError, match="it wants 248 floats, 5 were left"):
        read_weights(path, network.layers[:1], partial=True)


def test_cutoff_loads_the_same_numbers(tmp_path: Path) -> None:
    cfg = tmp_path / "a.cfg"
    cfg.write_text(TINY)
    network = Network.load(cfg)
    cfg.with_suffix(".weights").write_bytes(stored(network, random_arrays(network.layers, 0)))
    whole = Network.load(cfg, cfg.with_suffix(".weights"))
    part = Network.load(cfg, cfg.with_suffix(".weights"), cutoff=2)
    assert equal(part.arrays, whole.arrays[:2])
    assert len({part.digest, whole.digest, network.digest}) == 3


def test_short_file_under_lenient(tmp_path: Path) -> None:
    """What is missing is 0, once warned about, from the middle of an array on."""
    network = Network.parse(TINY)
    path = tmp_path / "a.weights"
    path.write_bytes(stored(network, random_arrays(network.layers, 0))[: 20 + 4 * 100])
    with pytest.warns(DncWarning, match="within layer 0") as caught:
        arrays = read_weights(path, network.layers, lenient=True)
    assert len(caught) == 1
    whole = random_arrays(network.layers, 0)
    flat = arrays[0]["weights"].ravel()
    assert np.array_equal(flat[:68], whole[0]["weights"].ravel()[:68])
    assert not flat[68:].any()
    assert not any(array.any() for array in arrays[1].values())


def test_values_under_lenient(tmp_path: Path) -> None:
    network = Network.parse(TINY)
    path = tmp_path / "a.weights"
    data = bytearray(stored(network, random_arrays(network.layers, 0)))
    data[20:24] = struct.pack("<f", float("nan"))
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=r"'biases' of layer 0 .* holds nan at position 0: not a finite number"):
        read_weights(path, network.layers)
    with pytest.warns(DncWarning, match="holds nan"):
        assert np.isnan(read_weights(path, network.layers, lenient=True)[0]["biases"][0])


def test_position_in_a_large_array(tmp_path: Path) -> None:
    """Checked block by block, the position counts from the array's start."""
    network = Network.parse("[net]\ninputs=2000\n[connected]\noutput=1000\n")
    path = tmp_path / "a.weights"
    floats = np.zeros(network.parameters(), "<f4")
    floats[1000 + 1_500_000] = np.inf
    path.write_bytes(Header().pack() + floats.tobytes())
    with pytest.raises(WeightsError, match=r"'weights' of layer 0 .* holds inf at position 1500000"):
        read_weights(path, network.layers)


def test_random_arrays() -> None:
    """The same for a seed, whatever else is drawn; another seed, other numbers; all usable."""
    network = Network.parse(NETWORKS["convolutions"])
    first, again = random_arrays(network.layers, 5), random_arrays(network.layers, 5)
    assert equal(first, again)
    assert not equal(first, random_arrays(network.layers, 6))
    for own in first:
        for name, array in own.items():
            assert array.dtype == np.float32
            assert np.isfinite(array).all()
            assert not name.endswith("variance") or (array > 0).all()
    # The numbers are part of tests and of benchmarks' digests.
    assert float(first[0]["weights"].sum()) == pytest.approx(-2.65216, abs=1e-3)


def test_random_arrays_of_a_residual_network() -> None:
    """Sums of many branches stay within float16, whatever stands between a branch's weights and its sum."""
    branch = (
        "[convolutional]\nbatch_normalize={}\nfilters=8\nsize=3\npad=1\nactivation={}\n{}"
        "[shortcut]\nfrom=-{}\nactivation=linear\n"
    )
    kinds = (branch.format(1, "leaky", "", 2), branch.format(0, "linear", "[dropout]\nprobability=.1\n", 3))
    first = "[net]\nwidth=6\nheight=6\nchannels=8\n[maxpool]\nsize=1\nstride=1\n"
    network = Network.parse(first + "".join(kinds) * 24).with_random_weights()
    x = np.random.default_rng(0).random((1, 8, 6, 6), np.float32)
    largest = max(float(np.abs(output).max()) for _, output in run_all(network, x))
    # Each sum as large as what it adds would make it 2 ** 24.
    assert 0.1 < largest < 100


def test_dontloadscales(tmp_path: Path) -> None:
    """Darknet's initial values, the variance 0 among them, and nothing of it in the file."""
    network = Network.parse(
        "[net]\nwidth=1\nheight=1\nchannels=3\n[convolutional]\nbatch_normalize=1\ndontloadscales=1\nfilters=2\n"
    )
    own = numbers(tmp_path / "a", network, Header())[0]
    assert (own["scales"].tolist(), own["mean"].tolist(), own["variance"].tolist()) == ([1, 1], [0, 0], [0, 0])
    assert network.parameters() == 8


def test_writing_checks_shapes() -> None:
    network = Network.parse(TINY)
    arrays = random_arrays(network.layers, 0)
    wrong = ({**arrays[0], "biases": arrays[0]["biases"][:3]}, *arrays[1:])
    with pytest.raises(WeightsError, match=r"'biases' has shape \(3,\), not \(8,\)"):
        stored(network, wrong)


def test_nothing_is_swallowed(tmp_path: Path) -> None:
    """A right file gives no warning."""
    network = Network.parse(TINY)
    path = tmp_path / "a.weights"
    path.write_bytes(stored(network, random_arrays(network.layers, 0)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_weights(path, network.layers, lenient=True)


COMPILE = """
import sys, time
import dnc.compiler.compiling
def peak():
    # Not getrusage's ru_maxrss, which a process inherits from the one that started it.
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
start = peak()
dnc.compiler.compiling.compile(sys.argv[1], target="onnx", out=sys.argv[2])
print(start * 1024, peak() * 1024, time.process_time())
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "seconds"), [("yolov3", 150), ("yolov3-tiny", 40)])
def test_memory_and_time_of_compiling(name: str, seconds: float, tmp_path: Path) -> None:
    """In a process of its own, with all libraries: peak memory of a large network under 2.2 times its weights' file,
    which is mapped; ten times the processor time that it takes.
    """
    cfg = tmp_path / f"{name}.cfg"
    cfg.write_bytes((ROOT / "cfg" / cfg.name).read_bytes())
    network = Network.load(cfg).with_random_weights(0)
    with cfg.with_suffix(".weights").open("wb") as file:
        write_weights(file, network.layers, network.arrays)
    size = cfg.with_suffix(".weights").stat().st_size
    del network
    command = [sys.executable, "-c", COMPILE, str(cfg), str(tmp_path / "e")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    start, peak, time = map(float, result.stdout.split())
    print(f"{name}: {size / 1e6:.0f} MB, before {start / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB, {time:.1f} s")
    # The mapped pages of the file count; for a small network its largest layer, a few times over, is much of the rest.
    assert name != "yolov3" or peak < 2.2 * size
    assert time < seconds


@pytest.mark.parametrize("name", NETWORKS)
def test_write_partial(name: str, tmp_path: Path) -> None:
    """The first layers' floats behind a new header; of as many layers as there are, all of them."""
    network = Network.parse(NETWORKS[name]).with_random_weights(4)
    source, out = tmp_path / "a.weights", tmp_path / "out"
    for header in (Header(seen=5), Header(0, 1, 0, 5)):
        data = stored(network, network.arrays, header)[len(header.pack()) :]
        for number in range(1, len(network.layers) + 1):
            floats = sum(count(layer) for layer in network.layers[:number])
            # What stands behind the layers, or is missing there, does not matter.
            for behind in (data, data[: 4 * floats]):
                source.write_bytes(header.pack() + behind)
                write_partial(source, network.layers, out, number)
                assert out.read_bytes() == Header().pack() + data[: 4 * floats]


def test_write_partial_of_transposed_weights_is_not_transposed(tmp_path: Path) -> None:
    """As Darknet, which turns matrices when it reads them and writes the usual header."""
    network = Network.parse(NETWORKS["vector"]).with_random_weights(4)
    source, out = tmp_path / "a.weights", tmp_path / "out"
    source.write_bytes(stored(network, network.arrays, Header(0, 1002)))
    write_partial(source, network.layers, out, len(network.layers))
    assert out.read_bytes() == stored(network, network.arrays)


def test_write_partial_refuses(tmp_path: Path) -> None:
    network = Network.parse(TINY).with_random_weights(4)
    source, out = tmp_path / "a.weights", tmp_path / "out"
    whole = stored(network, network.arrays)
    source.write_bytes(whole)
    for number in (-1, 0, 4):
        with pytest.raises(WeightsError, match=f"the first {number} layers: the cfg has 3"):
            write_partial(source, network.layers, out, number)
    with pytest.raises(WeightsError, match="would replace the weights by a part of them"):
        write_partial(source, network.layers, source, 1)
    with pytest.raises(DncError, match="cannot write the file"):
        write_partial(source, network.layers, tmp_path / "none" / "out", 1)
    source.write_bytes(whole[:-4])
    with pytest.raises(WeightsError, match="the weights end within layer 1"):
        write_partial(source, network.layers, out, 2)
    with pytest.raises(WeightsError, match="cannot read the weights"):
        write_partial(tmp_path / "b.weights", network.layers, out, 2)
    assert not out.exists()
    out.write_bytes(b"old")
    write_partial(source, network.layers, out, 1)
    assert len(out.read_bytes()) == 20 + 4 * 248


def floats_of(network: Network) -> npt.NDArray[np.float32]:
    return np.frombuffer(stored(network, network.arrays), "<f4", offset=20).copy()


BATCH_NORM = "[net]\nwidth=2\nheight=2\nchannels=1\n"
KINDS = {
    # The section of three filters, and where its variances begin.
    "convolutional": ("[convolutional]\nfilters=3\nbatch_normalize=1\n", 9),
    "batchnorm": ("[convolutional]\nfilters=3\n[batchnorm]\n", 3 + 3 + 9),
    "connected": ("[connected]\noutput=3\nbatch_normalize=1\n", 3 + 12 + 6),
}
LOWEST = float(np.float32(-1e-5))


@pytest.mark.parametrize("kind", KINDS)
def test_variances_that_darknet_takes(kind: str, tmp_path: Path) -> None:
    """As long as a root is left of variance + 1e-5; the float32 next to -1e-5 leaves one in double, as a
    [convolutional] is folded, and none in float32."""
    section, at = KINDS[kind]
    network = Network.parse(BATCH_NORM + section).with_random_weights(1)
    path, floats = tmp_path / "a.weights", floats_of(network)

    def read(*variances: float, lenient: bool = False) -> list[str]:
        floats[at : at + 3] = variances
        path.write_bytes(Header().pack() + floats.tobytes())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            arrays = read_weights(path, network.layers, lenient=lenient)
        assert arrays[-1]["variance"].tolist() == floats[at : at + 3].tolist()
        return [str(warning.message) for warning in caught]

    assert read(1, 0, -0.0) == []
    (warning,) = read(1, -7e-44, -1e-6)
    assert f"2 variances are below zero, in layer {len(network.layers) - 1} [{kind}] -1e-06" in warning
    (warning,) = read(-9.9999e-6, 1, 1)
    assert "1 variance is below zero" in warning
    for variance in (-1.0000001e-5, -1.1e-5, -1.0):
        with pytest.raises(WeightsError, match="at position 1: a negative variance, which gives no number"):
            read(1, variance, 1)
        assert len(read(1, variance, 1, lenient=True)) == 1
    if kind == "convolutional":
        assert len(read(1, LOWEST, 1)) == 1
    else:
        with pytest.raises(WeightsError, match="a negative variance, which gives no number"):
            read(1, LOWEST, 1)


def test_a_part_keeps_variances_as_they_are(tmp_path: Path) -> None:
    network = Network.parse(TINY).with_random_weights(1)
    floats = floats_of(network)
    floats[24:26] = -7e-44, -1e-6
    (tmp_path / "a.weights").write_bytes(Header().pack() + floats.tobytes())
    with pytest.warns(DncWarning, match="2 variances are below zero"):
        write_partial(tmp_path / "a.weights", network.layers, tmp_path / "out", 1)
    assert (tmp_path / "out").read_bytes() == Header().pack() + floats[:248].tobytes()


def test_weights_of_another_network_are_told_by_their_length(tmp_path: Path) -> None:
    """Before any of their values, which make no sense."""
    network = Network.parse(TINY)
    path = tmp_path / "a.weights"
    path.write_bytes(Header().pack() + np.full(15, -1, "<f4").tobytes())
    with pytest.raises(WeightsError, match="are 25 times too short: they end within layer 0") as caught:
        read_weights(path, network.layers)
    assert "holds 15 floats, the cfg wants 374" in caught.value.hint
    path.write_bytes(Header().pack() + np.full(24 * 374, -1, "<f4").tobytes())
    with pytest.raises(WeightsError, match="8602 floats are left, the file is 24 times too long"):
        read_weights(path, network.layers)


SEEN = 32013312
MISFITS = {
    # What is written before the floats, the message, and whether the floats are cut off behind.
    "a narrow number": (struct.pack("<3iI", 0, 2, 5, SEEN), "4 bytes too short.*version 0.2 has 8 bytes .* here are 4"),
    "a wide number": (struct.pack("<3iQ", 0, 1, 0, SEEN), "4 bytes too long.*version 0.1 has 4 bytes .* here are 8"),
    "no number": (struct.pack("<3i", 0, 2, 5), "8 bytes too short.*ends without the number"),
    "no header": (b"", "fit but for their header: there is none"),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_another_header(kind: str, tmp_path: Path) -> None:
    """Says what is wrong, and how to mend it: which then fits."""
    header, message = MISFITS[kind]
    network = Network.parse(TINY).with_random_weights(1)
    path = tmp_path / "it's.weights"
    path.write_bytes(header + floats_of(network).tobytes())
    with pytest.raises(WeightsError, match=message) as caught:
        read_weights(path, network.layers)
    command = caught.value.hint.removeprefix("write it anew: ")
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    assert equal(read_weights(tmp_path / "mended.weights", network.layers), network.arrays)
    assert "but not behind such a header" in inspect_weights(path, network.layers).length


@pytest.mark.parametrize("lost", [4, 8, 20])
def test_a_usual_header_is_not_what_is_wrong(lost: int, tmp_path: Path) -> None:
    """A file that is cut off by as much as headers differ."""
    network = Network.parse(TINY).with_random_weights(1)
    path = tmp_path / "a.weights"
    for header in (Header(), Header(0, 2, 5, SEEN), Header(0, 1, 0, SEEN)):
        path.write_bytes(stored(network, network.arrays, header)[:-lost])
        with pytest.raises(WeightsError, match="the weights end within layer 1"):
            read_weights(path, network.layers)


def test_never_waits_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(WeightsError, match="it is a pipe or a device, not a file"):
        read_weights(tmp_path / "pipe", Network.parse(TINY).layers)
