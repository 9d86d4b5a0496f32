"""Recordings of `dnc bench --json` as one page of Markdown: by machine what came out, then each network.

python -m benchmarks.page benchmarks/recordings/*.json -o benchmarks/recorded.md

The page says with which commands the recordings are made.
"""

from __future__ import annotations

import argparse
import itertools
import math
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from dnc.bench.machine import describe
from dnc.bench.measure import Figures, Recording, read_recording
from dnc.bench.report import markdown
from dnc.errors import DncError
from dnc.files.writing import whole_file
from dnc.runtime.timing import Ratio
from dnc.tables import Column, Table

__all__ = ["page"]

_WIDTH = 18
"""Characters of the longest bar: with its name and its number a line fits a phone."""
_PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "int8", "mixed")
_HEAD = """# Recorded speeds

dnc beside OpenCV and ncnn, the other programs that read Darknet's networks; [Engines for CPUs](cpu.md) has ONNX Runtime
and OpenVINO as they come, and CPUs with less. Every table is made of a file of
[benchmarks/recordings](recordings), as `dnc bench --json` printed it. To record these on your machine, with
a Python that has OpenCV and one that has ncnn:

```sh
AGAINST="--against opencv,ncnn --peer opencv=PYTHON --peer ncnn=PYTHON"
cd benchmarks/recordings

# with trained weights, also in fewer bits, calibrated on 100 images
for net in MobileNetV2-YOLOv3-Nano-coco yolo-fastest-1.1 yolov3-tiny; do
  dnc calibrate coco.data $net.cfg $net.weights \\
    -input_calibration 100 -o $net.calibration.json
  dnc bench $net.cfg --weights $net.weights \\
    --target onnx,openvino,tvm --precision fp32,bf16,int8 \\
    --calibration $net.calibration.json $AGAINST --seconds 40 --json > $net.json
done

# with random ones, which take as long
for net in efficientnet-b0 efficientnet-b0-xnor enet-coco mixnet-m yolov4-tiny yolov7-tiny; do
  dnc bench $net --target onnx,openvino,tvm $AGAINST --seconds 30 --json > $net.json
done

cd ../..
python -m benchmarks.page benchmarks/recordings/*.json -o benchmarks/recorded.md
```

`dnc bench --diff` compares one of these files with yours. Engines and other programs ran in turn, so that ratios
within a network hold, within their intervals, even where the machine was busy; milliseconds of different networks are
of different minutes. What fewer bits cost in accuracy: [INT8](int8.md).
"""
_MEANS = """The others compute in float32. The means are over networks that all of them run. Of dnc the fastest target
counts, here with the interval of each ratio: above 1 dnc is ahead, below it is **behind**, and where the interval
contains 1, the two cannot be told apart.
"""


def page(recordings: Sequence[tuple[str, Recording]]) -> str:
    """The text, of recordings with their names: by machine, in the order of the names."""
    parts = [_HEAD]
    by_machine = sorted(recordings, key=lambda item: (_machine(item[1]), item[0].lower()))
    for machine, group in itertools.groupby(by_machine, key=lambda item: _machine(item[1])):
        networks = list(group)
        # The first one's load is not the others'.
        facts = {name: value for name, value in networks[0][1].machine.items() if name != "load"}
        common = set.intersection(*(set(recording.notes) for _, recording in networks))
        lines = [*describe(facts), *(note for note in networks[0][1].notes if note in common)]
        parts += [f"## {machine}\n", "  \n".join(lines) + "\n", *_summary(networks)]
        for name, recording in networks:
            parts += [f"### {name}\n", _about(recording, common), _bars(recording), _table(recording)]
    return "\n".join(parts)


def _machine(recording: Recording) -> str:
    """The processor as the system names it, with LLVM's name where an engine tells it: generations share the first."""
    told = (re.search(r"\(([\w-]+), TVM\)", figures.device) for figures in recording.figures)
    names = {found[1].replace("znver", "Zen ") for found in told if found}
    return " ".join([str(recording.machine["cpu"]), *(f"({name})" for name in sorted(names))])


def _summary(networks: Sequence[tuple[str, Recording]]) -> list[str]:
    """How many times as fast as the fastest other program dnc's fastest engine is, by precision: means, and each."""
    precisions = [each for each in _PRECISIONS if any(_best(recording, each) for _, recording in networks)]
    others = max(len(_peers(recording)) for _, recording in networks)
    found: dict[str, dict[str, Ratio]] = {each: {} for each in precisions}
    every = Table.of("network", "fastest other, fp32", *precisions)
    for name, recording in networks:
        peer = _fastest(_peers(recording))
        if peer is None:
            continue
        cells = [name, f"{_short(peer)}, {_ms(peer)} ms"]
        for precision in precisions:
            best = _best(recording, precision)
            cells.append("")
            if best is not None:
                faster = _ratio(recording, peer, best)
                cells[-1] = f"{best.target or _short(best)} {_told(faster)}"
                if len(_peers(recording)) == others:
                    found[precision][name] = faster
        every.add(*cells)
    means = Table.of("dnc in", "networks", "times as fast as the fastest other, geometric mean", "behind")
    for precision, ratios in found.items():
        if ratios:
            mean = math.exp(math.fsum(math.log(ratio.value) for ratio in ratios.values()) / len(ratios))
            behind = ", ".join(name for name, ratio in ratios.items() if ratio.value < 1)
            means.add(precision, str(len(ratios)), f"{mean:.2f}", f"**{behind}**" if behind else "")
    if not means.rows:
        return []
    return [markdown(means) + "\n", _MEANS, markdown(every) + "\n"]


def _peers(recording: Recording) -> list[Figures]:
    return [figures for figures in recording.figures if figures.kind == "peer"]


def _best(recording: Recording, precision: str) -> Figures | None:
    engines = (figures for figures in recording.figures if figures.kind == "engine")
    return _fastest(figures for figures in engines if _precision(figures) == precision)


def _fastest(several: Iterable[Figures]) -> Figures | None:
    return min(several, key=lambda figures: figures.latency["median"], default=None)


def _precision(figures: Figures) -> str:
    """As `dnc bench` names engines that it compiled in several."""
    last = figures.name.split()[-1]
    return last if last in _PRECISIONS else "fp32"


def _short(figures: Figures) -> str:
    """Without the network, which stands above, and without the version of another program."""
    if figures.kind == "peer":
        return figures.name.split()[0]
    return figures.name.removeprefix(Path(str(figures.network["cfg"])).stem).strip() or figures.name


def _ratio(recording: Recording, figures: Figures, base: Figures) -> Ratio:
    return recording.timings.quiet().ratio(figures.name, base.name, recording.confidence)


def _told(faster: Ratio) -> str:
    return _plain(faster) if faster.value >= 1 else f"**{_plain(faster)}, behind**"


def _plain(ratio: Ratio) -> str:
    return f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def _ms(figures: Figures) -> str:
    return f"{figures.latency['median'] * 1e3:.3g}"


def _about(recording: Recording, common: Collection[str]) -> str:
    """What the figures hold for, but for the notes that stand above."""
    network, timings = recording.figures[0].network, recording.timings
    facts = [f"{network['bflops']:.3g} billion operations"] if "bflops" in network else []
    facts += [f"{network['parameters'] / 1e6:.3g} million parameters"] if "parameters" in network else []
    facts.append(f"{recording.settings.threads} threads, opened {timings.openings} times, {timings.rounds} rounds")
    facts += [f"recorded {recording.made['at'][:10]}"] if "at" in recording.made else []
    return "  \n".join(["; ".join(facts), *(note for note in recording.notes if note not in common)]) + "\n"


def _bars(recording: Recording) -> str:
    """The medians of one recording, the fastest first, the longest as long as a line may be."""
    figures = sorted(recording.figures, key=lambda one: one.latency["median"])
    longest, room = figures[-1].latency["median"], max(len(_short(one)) for one in figures)
    lines = []
    for one in figures:
        bar = "█" * max(1, round(_WIDTH * one.latency["median"] / longest))
        lines.append(f"{_short(one):<{room}} {bar:<{_WIDTH}} {_ms(one)} ms")
    return "```text\n" + "\n".join(lines) + "\n```\n"


def _table(recording: Recording) -> str:
    """A row for each engine and other program, whose ratio to the fastest of these is told."""
    peer = _fastest(_peers(recording))
    titles = ["ms, median", "p99", "start-up, ms", "MB"] + ([f"times as fast as {_short(peer)}"] if peer else [])
    table = Table([Column("engine"), *(Column(title, right=True) for title in titles)])
    for figures in recording.figures:
        latency = figures.latency
        cells = [figures.name if figures.kind == "peer" else _short(figures)]
        cells += [f"{_ms(figures)} ({latency['low'] * 1e3:.3g} to {latency['high'] * 1e3:.3g})"]
        cells += [f"{latency['p99'] * 1e3:.3g}"]
        cells += ["" if figures.startup is None else f"{figures.startup['ready'] * 1e3:.0f}"]
        cells += ["" if figures.memory is None else f"{figures.memory / 1e6:.0f}"]
        if peer:
            ratio = _ratio(recording, peer, figures)
            cells.append("1" if figures is peer else _told(ratio) if figures.kind == "engine" else _plain(ratio))
        table.add(*cells)
    return markdown(table) + "\n"


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
