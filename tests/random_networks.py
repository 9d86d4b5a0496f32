"""Random but valid networks in Darknet's language, for hypothesis: what passes look for, in every combination."""

from __future__ import annotations

from hypothesis import strategies as st

__all__ = ["random_networks"]

_ACTIVATIONS = ("linear", "leaky", "relu", "relu6", "swish", "mish", "logistic", "hard_mish", "tanh", "elu", "gelu")


class _Writer:
    """Writes sections, and knows what each layer's output is."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.channels, self.side = draw(st.sampled_from([1, 3, 4])), draw(st.integers(5, 12))
        self.text = f"[net]\nwidth={self.side}\nheight={self.side}\nchannels={self.channels}\n"
        self.shapes: list[tuple[int, int]] = []

    def section(self, name: str, **options: object) -> None:
        self.text += f"[{name}]\n" + "".join(f"{key}={value}\n" for key, value in options.items())
        self.shapes.append((self.channels, self.side))

    def flag(self) -> int:
        return self.draw(st.integers(0, 1))

    def convolutional(self) -> None:
        draw, channels = self.draw, self.channels
        kind = draw(st.sampled_from(["dense", "dense", "pointwise", "depthwise", "multiplier", "grouped", "xnor"]))
        size = 1 if kind == "pointwise" else draw(st.integers(1, min(4, self.side)))
        divisors = [number for number in range(2, channels) if channels % number == 0]
        groups, filters = 1, 4 * draw(st.integers(1, 6))
        if kind in ("depthwise", "multiplier"):
            groups, filters = channels, channels * (2 if kind == "multiplier" else 1)
        elif kind == "grouped" and divisors:
            groups = draw(st.sampled_from(divisors))
            filters = groups * draw(st.integers(1, 4))
        padded = self.flag() * (size > 1)
        stride = draw(st.sampled_from([1, 1, 2])) if not (kind == "xnor" and size == 1) else 1
        self.channels, self.side = filters, (self.side + 2 * (size // 2) * padded - size) // stride + 1
        self.section(
            "convolutional",
            filters=filters,
            size=size,
            stride=stride,
            pad=padded,
            groups=groups,
            batch_normalize=self.flag(),
            activation=draw(st.sampled_from(_ACTIVATIONS)),
            **({"xnor": 1} if kind == "xnor" else {}),
        )

    def maxpool(self) -> None:
        size, stride = self.draw(st.sampled_from([(2, 2), (2, 1), (3, 1), (5, 1), (3, 2)]))
        self.side = (self.side - 1) // stride + 1
        self.section("maxpool", size=size, stride=stride)

    def pyramid(self) -> None:
        """SPP: pools of one input, concatenated with it."""
        channels = self.channels
        sizes = self.draw(st.lists(st.sampled_from([3, 5, 7, 9, 13]), min_size=1, max_size=3))
        for number, size in enumerate(sizes):
            if number:
                self.section("route", layers=-2 * number)
            self.section("maxpool", size=size, stride=1)
        own = -2 * len(sizes)
        if len(self.shapes) + own < 0:
            return
        self.channels = channels * (len(sizes) + 1)
        self.section("route", layers=",".join(map(str, [*range(-1, own, -2), own])))

    def same(self) -> int | None:
        """An earlier layer of the present size, by its index."""
        found = [index for index, shape in enumerate(self.shapes[:-1]) if shape == (self.channels, self.side)]
        return self.draw(st.sampled_from(found)) if found else None

    def route(self) -> None:
        found = [index for index, (_, side) in enumerate(self.shapes) if side == self.side]
        chosen = self.draw(st.lists(st.sampled_from(found), min_size=1, max_size=3)) if found else []
        if not chosen:
            return
        self.channels = sum(self.shapes[index][0] for index in chosen)
        groups = 2 if self.flag() and all(self.shapes[index][0] % 2 == 0 for index in chosen) else 1
        self.channels //= groups
        self.section("route", layers=",".join(map(str, chosen)), groups=groups, group_id=self.flag() * (groups - 1))

    def shortcut(self) -> None:
        index = self.same()
        if index is not None:
            self.section("shortcut", **{"from": index}, activation=self.draw(st.sampled_from(_ACTIVATIONS[:3])))

    def squeeze(self) -> None:
        """Squeeze and excitation."""
        channels, side, first = self.channels, self.side, len(self.shapes) - 1
        if first < 0:
            return
        self.side = 1
        self.section("avgpool")
        self.section("convolutional", filters=channels, activation="logistic")
        self.side = side
        self.section("scale_channels", **{"from": first}, activation="linear")

    def split(self) -> None:
        """Two pointwise convolutions of one input, concatenated: the cross stage of CSP networks."""
        filters, activation = 4 * self.draw(st.integers(1, 4)), self.draw(st.sampled_from(_ACTIVATIONS[:6]))
        normalize, channels = self.flag(), self.channels
        for number in range(2):
            if number:
                self.channels = channels
                self.section("route", layers=-2)
            self.channels = filters
            self.section("convolutional", filters=filters, size=1, batch_normalize=normalize, activation=activation)
        self.channels = 2 * filters
        self.section("route", layers="-1,-3")

    def upsample(self) -> None:
        if self.side <= 8:
            self.side *= 2
            self.section("upsample", stride=2)

    def batchnorm(self) -> None:
        self.section("batchnorm")

    def dropout(self) -> None:
        self.section("dropout", probability=0.5)


@st.composite
def random_networks(draw: st.DrawFn) -> str:
    """The text of a cfg of 2 to 10 blocks."""
    writer = _Writer(draw)
    kinds = (
        *("convolutional", "convolutional", "convolutional", "maxpool", "pyramid", "route", "shortcut", "squeeze"),
        *("split", "upsample", "batchnorm", "dropout"),
    )
    for kind in ["convolutional", *draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=9))]:
        if writer.channels <= 96 and writer.side >= 2:
            getattr(writer, kind)()
    return writer.text
