"""Recordings of `dnc bench --json` as one page of Markdown: for each a table, and its medians as bars.

dnc bench yolov3-tiny --target onnx,openvino,tvm --json > benchmarks/recordings/yolov3-tiny.json
python -m benchmarks.page benchmarks/recordings/*.json -o benchmarks/recorded.md
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

from dnc.bench.measure import Recording, read_recording
from dnc.bench.report import recording_report
from dnc.errors import DncError
from dnc.files.writing import whole_file

__all__ = ["page"]

_WIDTH = 40
"""Characters of the longest bar."""
_HEAD = """# Recorded speeds

Made by `python -m benchmarks.page` of what `dnc bench --json` printed on the machines named below; `dnc bench --diff`
compares one of these files with yours. Engines and other programs ran in turn on the same machine, so that ratios of
a table hold, within their intervals, even where the machine was busy; milliseconds of different tables are of different
hours.
"""


def page(recordings: Sequence[tuple[str, Recording]]) -> str:
    """The text, of recordings with their names: by machine, in the order of the names."""
    parts = [_HEAD]
    by_machine = sorted(recordings, key=lambda item: (_machine(item[1]), item[0]))
    for machine, group in itertools.groupby(by_machine, key=lambda item: _machine(item[1])):
        parts.append(f"## {machine}\n")
        for name, recording in group:
            parts += [f"### {name}\n", recording_report(recording).markdown() + "\n", _bars(recording)]
    return "\n".join(parts)


def _machine(recording: Recording) -> str:
    return str(recording.machine["cpu"])


def _bars(recording: Recording) -> str:
    """The medians of one recording, the longest as long as a line may be."""
    medians = {figures.name: figures.latency["median"] for figures in recording.figures}
    longest, room = max(medians.values()), max(map(len, medians))
    lines = [
        f"{name:<{room}}  {'█' * max(1, round(_WIDTH * median / longest)):<{_WIDTH}}  {median * 1e3:.4g} ms"
        for name, median in medians.items()
    ]
    return "```text\n" + "\n".join(lines) + "\n```\n"


def main() -> None:
    """Reads recordings, writes the page."""
    parser = argparse.ArgumentParser(description="Recordings of dnc bench as a page.")
    parser.add_argument("recordings", nargs="+", type=Path, help="what dnc bench --json printed")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the page")
    given = parser.parse_args()
    try:
        text = page([(path.stem, read_recording(path)) for path in given.recordings])
        with whole_file(given.out) as file:
            file.write(text.encode())
    except DncError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
