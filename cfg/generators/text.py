"""Builds the text of a .cfg: a header comment, [net], and one section after the other.

A layer is known by its position, which the method that wrote it returns. `from=` and `layers=` are written relative to
the layer that holds them (-1 is the one before), so that they stay right when a user puts something in front.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field

from dnc.darknet.network import Network

__all__ = ["YOLOV3_ANCHORS", "Cfg", "multiple_of_8"]

YOLOV3_ANCHORS = "10,13, 16,30, 33,23, 30,61, 62,45, 59,119, 116,90, 156,198, 373,326"

_WIDTH = 118


def multiple_of_8(filters: float) -> int:
    """The nearest multiple of 8, at least 8 and never below 90 %: how MobileNetV2 and its kin round widths."""
    rounded = max(8, int(filters + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * filters else rounded


@dataclass
class Cfg:
    """A network that grows; `name` is the file's without its suffix.

    The header says what `title` and `notes` do, one line or several each.
    """

    name: str
    title: str
    notes: tuple[str, ...]
    width: int
    height: int
    channels: int = 3
    _blocks: list[str] = field(default_factory=list)
    _next: int = 0

    @property
    def file(self) -> str:
        """The file's name."""
        return f"{self.name}.cfg"

    @property
    def last(self) -> int:
        """The position of the layer that was written last."""
        return self._next - 1

    def comment(self, text: str) -> None:
        """A comment before the next section."""
        self._blocks.append(f"# {text}\n")

    def section(self, kind: str, **options: object) -> int:
        """Adds any section; options that are None are left out."""
        lines = [f"{key}={value}\n" for key, value in options.items() if value is not None]
        self._blocks.append(f"[{kind}]\n{''.join(lines)}\n")
        self._next += 1
        return self.last

    def convolution(
        self,
        filters: int,
        size: int = 1,
        stride: int = 1,
        activation: str = "linear",
        *,
        batch_normalize: int = 1,
        groups: int = 1,
        padding: int | None = None,
        **options: object,
    ) -> int:
        """A [convolutional]. Without `padding` it keeps the map's size (up to the stride), as pad=1 does."""
        return self.section(
            "convolutional",
            batch_normalize=batch_normalize or None,
            filters=filters,
            groups=groups if groups > 1 else None,
            size=size,
            stride=stride,
            pad=1 if padding is None and size > 1 else None,
            padding=padding,
            **options,
            activation=activation,
        )

    def shortcut(self, *sources: int, activation: str = "linear", **options: object) -> int:
        """Adds the layers at these positions to the last one."""
        return self.section("shortcut", **{"from": self._relative(sources)}, **options, activation=activation)

    def route(self, *sources: int, groups: int | None = None, group_id: int | None = None) -> int:
        """Concatenates the layers at these positions, or part `group_id` of `groups` of their channels."""
        return self.section("route", layers=self._relative(sources), groups=groups, group_id=group_id)

    def scale_channels(self, source: int, **options: object) -> int:
        """Multiplies the layer at this position by the last one."""
        return self.section("scale_channels", **{"from": self._relative((source,))}, **options)

    def sam(self, source: int) -> int:
        """Multiplies the layer at this position by the last one, element by element."""
        return self.section("sam", **{"from": self._relative((source,))})

    def squeeze_excite(self, squeezed: int, filters: int, activation: str) -> int:
        """Squeeze and excitation (arXiv:1709.01507) of the last layer, which has so many filters."""
        source = self.last
        self.section("avgpool")
        self.convolution(squeezed, activation=activation, batch_normalize=0)
        self.convolution(filters, activation="logistic", batch_normalize=0)
        return self.scale_channels(source)

    def classifier(self, dropout: float = 0, classes: int = 1000) -> None:
        """Global mean, dropout if any, a 1x1 convolution with a bias, softmax."""
        self.comment("classifier")
        self.section("avgpool")
        if dropout:
            self.section("dropout", probability=dropout)
        self.convolution(classes, batch_normalize=0)
        self.section("softmax")

    def yolo(self, head: int, classes: int = 80, anchors: str = YOLOV3_ANCHORS, **options: object) -> None:
        """Head 0, 1 or 2, of stride 8, 16 or 32: a 1x1 convolution with a bias, and three of nine anchors."""
        self.comment(f"prediction at stride {8 << head}")
        self.convolution(3 * (classes + 5), batch_normalize=0)
        mask = ",".join(str(3 * head + anchor) for anchor in range(3))
        self.section("yolo", classes=classes, num=9, mask=mask, anchors=anchors, **options)

    def text(self, generator: str) -> str:
        """The whole file; the header gives the figures of `dnc info` and the generator's path.

        Raises:
            CfgError: it is no network.
        """
        net = f"[net]\nbatch=1\nwidth={self.width}\nheight={self.height}\nchannels={self.channels}\n\n"
        body = (net + "".join(self._blocks)).rstrip("\n") + "\n"
        network = Network.parse(body, self.file)
        flops = sum(layer.flops() for layer in network.layers) / 1e9
        figures = f"Input {self.width}x{self.height}. {flops:.3g} BFLOPs, {network.parameters():,} parameters."
        origin = f"Written by {generator} (python -m cfg.generators): do not edit."
        lines = [line for note in (self.title, *self.notes, figures, origin) for line in textwrap.wrap(note, _WIDTH)]
        return "".join(f"# {line}\n" for line in lines) + "\n" + body

    def _relative(self, sources: tuple[int, ...]) -> str:
        assert sources
        assert all(0 <= source < self._next for source in sources)
        return ",".join(str(source - self._next) for source in sources)
