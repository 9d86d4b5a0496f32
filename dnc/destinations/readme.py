"""README.md of an export: what is in the folder, how it is run, and what the numbers that it has mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dnc.destinations.base import Export
from dnc.runtime.decoding import BoxHead
from dnc.runtime.preprocessing import Preprocessing

__all__ = ["README", "cropped", "preparation", "readme", "suppression"]

README = "README.md"


def readme(
    export: Export,
    reader: str,
    files: Mapping[str, str],
    command: str,
    notes: Sequence[str] = (),
    *,
    thresholds: str = "",
) -> str:
    """The text of README.md.

    Args:
        reader: the program that reads the folder, by the name that people know it by.
        files: what is in each file, by its path in the folder.
        command: what runs it, in the folder: lines of a shell or, where they begin with `>>> `, of Python.
        notes: whatever else is to be known, a sentence or two each.
        thresholds: how boxes are chosen, where that is not by the export's thresholds and the IoU alone.
    """
    listed = "\n".join(f"| `{name}` | {text} |" for name, text in files.items())
    language, code = ("python", command.replace(">>> ", "")) if command.startswith(">>> ") else ("sh", command)
    facts = [f"Images: {preparation(export.preprocessing())}."]
    if thresholds:
        facts.append(thresholds)
    elif not export.is_classifier:
        facts.append(f"Thresholds: confidence {export.confidence:g}, IoU {export.iou:g}.")
        facts += suppression(export)
    bullets = "\n".join(f"- {fact}" for fact in (*facts, *notes))
    return f"""# {export.name} for {reader}

| file | what it is |
| --- | --- |
{listed}

```{language}
{code}
```

{bullets}
"""


def suppression(export: Export) -> list[str]:
    """Where the cfg's suppression is not the one by IoU that the programs have."""
    heads = export.manifest.heads
    kind, _ = heads[-1].nms if heads and isinstance(heads[-1], BoxHead) else ("default", 0.0)
    if kind not in ("greedynms", "diounms"):
        return []
    return [
        f"Suppression: Darknet's nms_kind={kind} of this network subtracts the distance of the centers from the IoU. "
        f"By IoU alone, neighbours of one class are suppressed that Darknet keeps: a higher threshold keeps more."
    ]


def cropped(export: Export, reader: str) -> list[str]:
    """What is to be known of a program that cuts out the largest square where the network takes less."""
    p = export.preprocessing()
    if p.crop >= 1:
        return []
    return [f"{reader} keeps the whole short side, of which the network was trained on {p.crop:g}."]


def preparation(preprocessing: Preprocessing) -> str:
    """How an image becomes the network's input, in words."""
    p = preprocessing
    size = f"{p.width} x {p.height} pixels"
    fitted = {
        "resize": f"stretched to {size}, without keeping the ratio of the sides",
        "resize-half-pixel": f"stretched to {size} as cv2.resize does, without keeping the ratio of the sides",
        "letterbox": f"brought to {size} with the ratio of the sides kept, in the middle of gray (half of white)",
        "center-crop": f"the middle of the image, its short side brought to {p.short_side} pixels and cut to {size}",
    }[p.mode]
    colors = {"rgb": "RGB", "bgr": "BGR", "gray": "gray"}[p.color]
    if p.channels not in (1, 3):
        colors = f"{p.channels} channels"
    low, factor = [f"{_numbers(values)}" for values in (p.mean, p.std)]
    plain = set(p.mean) == {0.0} and set(p.std) == {1.0}
    unit = f"pixel / {1 / p.scale:.4g}"
    return f"{fitted}; {colors}; {unit}" if plain else f"{fitted}; {colors}; ({unit} - {low}) / {factor}"


def _numbers(values: Sequence[float]) -> str:
    texts = [f"{value:.6g}" for value in values]
    return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
