"""[reorg] and [reorg3d] against the index arithmetic of reorg_cpu, one element at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from dnc.darknet.layers.base import Arrays
from dnc.darknet.network import Network

Doubles = npt.NDArray[np.float64]


def moved(x: Doubles, out_w: int, out_h: int, out_c: int, stride: int, forward: bool) -> Doubles:
    """reorg_cpu, for one image, flat."""
    flat, out = x.ravel(), np.full(x.size, np.nan)
    in_c = out_c // (stride * stride)
    for k, j, i in np.ndindex(out_c, out_h, out_w):
        in_index = i + out_w * (j + out_h * k)
        c2, offset = k % in_c, k // in_c
        w2, h2 = i * stride + offset % stride, j * stride + offset // stride
        out_index = w2 + out_w * stride * (h2 + out_h * stride * c2)
        if forward:
            out[out_index] = flat[in_index]
        else:
            out[in_index] = flat[out_index]
    return out


@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize(
    ("name", "stride", "shape"),
    [
        ("reorg3d", 2, (16, 4, 6)),
        ("reorg3d", 3, (81, 3, 6)),
        ("reorg3d", 1, (5, 3, 2)),
        ("reorg", 2, (8, 4, 6)),
        ("reorg", 2, (4, 2, 2)),
        ("reorg", 3, (9, 3, 6)),
        ("reorg", 1, (5, 3, 2)),
    ],
)
def test_permutation(
    name: str, stride: int, shape: tuple[int, int, int], reverse: int, check: Callable[..., Network]
) -> None:
    channels, height, width = shape
    square = stride * stride
    if reverse:
        out = channels // square, height * stride, width * stride
    else:
        out = channels * square, height // stride, width // stride

    def oracle(inputs: Sequence[Doubles], arrays: Arrays) -> Doubles:
        # reorg_layer.c gives the output's shape to reorg_cpu, reorg_old_layer.c the input's.
        c, h, w = out if name == "reorg3d" else shape
        return moved(inputs[0], w, h, c, stride, bool(reverse)).reshape(out)

    net = f"channels={channels}\nheight={height}\nwidth={width}"
    network = check(f"[{name}]\nstride={stride}\nreverse={reverse}\n", oracle, net=net, bound=0)
    assert network.layers[0].describe() == f"/ {stride}"


def test_reverse_takes_odd_sides(check: Callable[..., Network]) -> None:
    def oracle(inputs: Sequence[Doubles], arrays: Arrays) -> Doubles:
        return moved(inputs[0], 7, 5, 4, 2, True).reshape(1, 10, 14)

    check("[reorg]\nstride=2\nreverse=1\n", oracle, bound=0)


def test_old_is_not_space_to_depth() -> None:
    """The plain one keeps a pixel's channels together; the old one takes memory for what it is not."""
    x = np.broadcast_to(np.arange(8, dtype=np.float32)[:, None, None], (1, 8, 2, 4)).copy()
    first = {}
    for name in ("reorg", "reorg3d"):
        net = Network.parse(f"[net]\nwidth=4\nheight=2\nchannels=8\n[{name}]\nstride=2\n")
        first[name] = net.layers[0].reference([x], {}, {})[0, :, 0, 0].tolist()
    assert first["reorg3d"] == list(range(8)) * 4
    even, odd = [0, 0, 2, 2, 4, 4, 6, 6], [1, 1, 3, 3, 5, 5, 7, 7]
    assert first["reorg"] == even * 2 + odd * 2


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("[reorg]\nstride=2\n", "stride=2", "stride=2 does not divide 5 x 7"),
        ("[reorg3d]\nstride=2\n", "stride=2", "stride=2 does not divide 5 x 7"),
        ("[reorg]\nstride=3\n", "stride=3", "stride=3 needs a multiple of 9 channels, there are 4"),
        ("[reorg3d]\nstride=2\nreverse=1\n", "stride=2", "stride=2 needs a multiple of 16 channels, there are 4"),
    ],
)
def test_refused(text: str, line: str, message: str, refused: Callable[..., None]) -> None:
    refused(text, message, line)


def test_zero_stride_is_refused(refused: Callable[..., None]) -> None:
    message, hint = "stride=0 must be at least 1", "Darknet would crash or compute nothing"
    refused("[reorg]\nstride=0\n", message, "stride=0", hint)
