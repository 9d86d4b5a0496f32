"""Pictures of the explanation, drawn as SVG from recordings in docs/_data: no picture is a file that somebody made.

Each has a white ground, so that it is read on dark pages too. At a phone's width they are two thirds as large, in which
their text can still be read.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

__all__ = ["boxes", "flow", "noise", "pages", "roofline"]

DOCS = Path(__file__).resolve().parents[1]
PHOTOGRAPH = DOCS.parent / "dnc/graph/photograph.jpg"
WIDTH, SIZE = 540, 17
INK, GRAY, LIGHT, BLUE, ORANGE, GREEN = "#222222", "#6b6b6b", "#e4e4e4", "#1f5fbf", "#c4511d", "#2e7d4f"


def pages() -> Mapping[str, str]:
    """The pictures by their places."""
    drawn = {"flow": flow(), "roofline": roofline(_data("roofline")), "noise": noise(_data("noise"))}
    drawn["boxes"] = boxes(_data("boxes"), PHOTOGRAPH.read_bytes())
    return {f"explanation/pictures/{name}.svg": text for name, text in drawn.items()}


def _data(name: str) -> Any:
    return json.loads((DOCS / "_data" / f"{name}.json").read_text("utf-8"))


def _picture(height: float, title: str, parts: Iterable[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" height="{height:g}" '
        f'role="img" font-family="system-ui, sans-serif" font-size="{SIZE}"><title>{escape(title)}</title>'
    )
    return "\n".join([head, f'<rect width="{WIDTH}" height="{height:g}" rx="8" fill="white"/>', *parts, "</svg>", ""])


def _text(x: float, y: float, text: str, color: str = INK, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}"{more}>{escape(text)}</text>'


def _line(points: Sequence[tuple[float, float]], color: str, width: float = 2, more: str = "") -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{width:g}"{more}/>'


def _dot(x: float, y: float, color: str, said: str) -> str:
    shape = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}" fill-opacity="0.65">'
    return f"{shape}<title>{escape(said)}</title></circle>"


_BOLD = ' font-weight="bold"'
_STEPS = (
    ("net.cfg, net.weights", "what Darknet trained", GRAY),
    ("Network", "each section a layer; weights mapped, not copied", BLUE),
    ("graph", "ONNX operators, as Darknet computes", BLUE),
    ("passes", "fewer and faster operators, compared with before", BLUE),
    ("engine folder", "the target's own files, and engine.json", ORANGE),
    ("boxes, classes", "preprocess, run, decode: numpy and one library", GREEN),
)
_BETWEEN = ("read", "lower", "rewrite", "build", "dnc.load")


def flow() -> str:
    """From the files of Darknet to boxes, a box for each stage."""
    parts, high, gap, middle = [], 58, 34, WIDTH // 2
    for number, (name, what, color) in enumerate(_STEPS):
        top = 14 + number * (high + gap)
        box = f'x="20" y="{top}" width="{WIDTH - 40}" height="{high}" rx="6"'
        parts.append(f'<rect {box} fill="{color}" fill-opacity="0.12" stroke="{color}"/>')
        parts += [_text(middle, top + 24, name, color, more=_BOLD), _text(middle, top + 47, what)]
        if number < len(_BETWEEN):
            end = top + high + gap
            parts.append(_line([(middle, end - gap), (middle, end - 7)], GRAY))
            parts.append(f'<path d="M{middle - 6} {end - 8} h12 L{middle} {end} Z" fill="{GRAY}"/>')
            parts.append(_text(middle + 14, end - 12, _BETWEEN[number], GRAY, "start"))
    return _picture(14 + len(_STEPS) * (high + gap) - gap + 14, "From Darknet's files to boxes", parts)


class _Axes:
    """A frame with scales along both sides, each linear or by powers of ten."""

    left, right, top, bottom = 80, 20, 20, 60

    def __init__(self, height: float, x: tuple[float, float], y: tuple[float, float], powers: bool = False) -> None:
        self.height, self.x_range, self.y_range, self.powers = height, x, y, powers

    def _share(self, value: float, ends: tuple[float, float]) -> float:
        low, high = ends
        if self.powers:
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)

    def x(self, value: float) -> float:
        return self.left + self._share(value, self.x_range) * (WIDTH - self.left - self.right)

    def y(self, value: float) -> float:
        return self.height - self.bottom - self._share(value, self.y_range) * (self.height - self.top - self.bottom)

    def frame(self, xs: Iterable[float], ys: Iterable[float], x_name: str, y_name: str) -> list[str]:
        right, low = WIDTH - self.right, self.height - self.bottom
        parts = [_line([(self.left, self.y(value)), (right, self.y(value))], LIGHT, 1) for value in ys]
        parts += [_line([(self.x(value), self.top), (self.x(value), low)], LIGHT, 1) for value in xs]
        parts += [_text(self.left - 8, self.y(value) + 5, f"{value:g}", GRAY, "end") for value in ys]
        parts += [_text(self.x(value), low + 20, f"{value:g}", GRAY) for value in xs]
        parts.append(_text((self.left + right) / 2, self.height - 12, x_name))
        turned = f' transform="rotate(-90 18 {(self.top + low) / 2:.0f})"'
        return [*parts, _text(18, (self.top + low) / 2, y_name, more=turned)]


def roofline(data: Mapping[str, Any]) -> str:
    """The speed of each section over its operations for a byte, below what the machine can do."""
    compute, bandwidth = data["peaks"]["compute"] / 1e9, data["peaks"]["bandwidth"] / 1e9
    axes = _Axes(440, (0.05, 100), (0.1, 1000), powers=True)
    corner = compute / bandwidth
    parts = axes.frame(
        (0.1, 1, 10, 100),
        (0.1, 1, 10, 100, 1000),
        "operations for each byte that is moved",
        "billion operations a second",
    )
    parts.append(_line([(axes.x(x), axes.y(min(x * bandwidth, compute))) for x in (0.05, corner, 100)], ORANGE, 3))
    parts.append(_text(axes.x(0.06), axes.y(0.17), f"memory: {bandwidth:.0f} GB/s", ORANGE, "start"))
    parts.append(
        _text(axes.x(100) - 6, axes.y(compute) - 10, f"arithmetic: {compute:.0f} billion a second", ORANGE, "end")
    )
    for where, seconds, operations, size in data["rows"]:
        if operations:
            x, y = operations / size, operations / seconds / 1e9
            color = BLUE if "[convolutional]" in where else GRAY
            parts.append(_dot(axes.x(min(max(x, 0.05), 100)), axes.y(min(max(y, 0.1), 1000)), color, where))
    parts.append(_text(WIDTH - 30, 366, "blue: convolutions", BLUE, "end"))
    return _picture(440, "Roofline: the sections of yolo-fastest-1.1", parts)


def noise(data: Mapping[str, Any]) -> str:
    """What rounding to 8 bits adds in each layer, and what has gathered there, in dB beside the signal."""
    rows = data["rows"]
    axes = _Axes(400, (0, max(row[0] for row in rows)), (-60, 0))
    parts = axes.frame(range(0, 131, 20), range(-60, 1, 10), "section of the cfg", "noise, dB beside the signal")
    for place, color, name, y in ((2, ORANGE, "gathered up to here", 44), (1, BLUE, "of this layer alone", 352 - 24)):
        points = [(axes.x(row[0]), axes.y(row[place])) for row in rows if row[place] is not None]
        parts += [_line(points, color), _text(WIDTH - 30, y, name, color, "end")]
    return _picture(400, "Noise over depth: yolo-fastest-1.1 in 8 bits", parts)


def boxes(data: Mapping[str, Any], photograph: bytes) -> str:
    """Boxes in float32 and in 8 bits on the photograph that dnc verifies graphs with."""
    width, height = data["size"]
    wide, gap = (WIDTH - 60) / 2, 20
    scale = wide / width
    image = f"data:image/jpeg;base64,{base64.b64encode(photograph).decode()}"
    parts = []
    for side, (name, found) in enumerate(data["boxes"].items()):
        left = gap + side * (wide + gap)
        parts.append(_text(left + wide / 2, 26, name, more=_BOLD))
        parts.append(f'<image href="{image}" x="{left}" y="38" width="{wide:.1f}" height="{height * scale:.1f}"/>')
        for label, confidence, (x, y, right, bottom), color in _named(found):
            rectangle = f'x="{left + x * scale:.1f}" y="{38 + y * scale:.1f}" width="{(right - x) * scale:.1f}"'
            parts.append(
                f'<rect {rectangle} height="{(bottom - y) * scale:.1f}" fill="none" stroke="{color}" stroke-width="3"/>'
            )
            said = f"{label} {confidence:.1%}"
            at = f'x="{left + x * scale:.1f}" y="{38 + y * scale:.1f}" width="{9.5 * len(said) + 6}" height="22"'
            parts += [
                f'<rect {at} fill="{color}"/>',
                _text(left + x * scale + 4, 54 + y * scale, said, "white", "start"),
            ]
    return _picture(38 + height * scale + gap, "Boxes in float32 and in 8 bits", parts)


def _named(found: Iterable[Sequence[Any]]) -> Iterable[tuple[str, float, Sequence[float], str]]:
    """Boxes with the color of their class."""
    colors = {"person": BLUE, "tie": ORANGE}
    return [(label, confidence, box, colors.get(label, GREEN)) for label, confidence, box in found]
