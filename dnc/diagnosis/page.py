"""A diagnosis as one HTML page: it reads nothing else, and opens from a file.

The page is page.html with page.css and page.js in it, and what they draw as JSON. Nothing of a diagnosis (names of
files, labels, a cfg's text) becomes markup: it stands in that JSON, in which no character ends a script, and page.js
makes text of it. A Content-Security-Policy names the page's own style and script by their digests, and lets it load
nothing.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import math
import os
from collections.abc import Sequence
from importlib import resources
from string import Template
from typing import Any

import numpy as np

from dnc import __version__
from dnc.diagnosis.report import KINDS, Diagnosis, ImageChange
from dnc.diagnosis.words import summary
from dnc.errors import ImageError, warn
from dnc.files.writing import whole_file
from dnc.runtime.images import read_image
from dnc.runtime.preprocessing import as_picture

__all__ = ["write_page"]

_SIDE = 640
"""Pixels of a picture's longer side at most: twice what its place on the page has."""
_QUALITY = 80
_PICTURES = 6 << 20
"""Bytes of all pictures together at most, as they are in the page: what is left out of 10 MB is for 100 layers."""


def write_page(diagnosis: Diagnosis, path: str | os.PathLike[str]) -> None:
    """Writes the page.

    Pictures of `diagnosis.changes` are in it, made small, the first ones first, as long as there is room for them; one
    that cannot be read any more is a warning.

    Raises:
        DncError: the file cannot be written.
    """
    values = {
        **diagnosis.to_json(),
        "summary": summary(diagnosis),
        "kinds_in_words": dict(KINDS),
        "pictures": _pictures(diagnosis.changes),
        "made": f"Made by dnc {__version__}.",
    }
    text = _page(diagnosis.network, f"{diagnosis.engine.title} against {diagnosis.against.title}", values)
    with whole_file(path) as file:
        file.write(text.encode())


def _page(network: str, title: str, values: dict[str, Any]) -> str:
    files = resources.files("dnc.diagnosis")
    template, style, script = ((files / name).read_text("utf-8") for name in ("page.html", "page.css", "page.js"))
    # ASCII, so that there are no line separators that JavaScript and HTML see differently; "<" is in strings alone.
    data = json.dumps(_finite(values), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return Template(template).substitute(
        network=html.escape(network),
        title=html.escape(title),
        style=style,
        script=script,
        style_digest=_digest(style),
        script_digest=_digest(script),
        data=data,
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _finite(value: Any) -> Any:
    """JSON values without numbers that JSON has not: null instead."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _pictures(changes: Sequence[ImageChange]) -> list[str | None]:
    """A data: URL for each image; None where there is none."""
    room = _PICTURES
    urls: list[str | None] = []
    for change in changes:
        url = None
        if room > 0:
            try:
                url = _picture(change.path)
            except ImageError as error:
                warn(error)
            room -= len(url or "")
        urls.append(url)
    return urls


def _picture(path: str) -> str:
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(as_picture(read_image(path))))
    picture.thumbnail((_SIDE, _SIDE))
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
