"""dnc bench"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dnc.cli import Exit, progress, say_files
from dnc.cli._completion import complete_networks
from dnc.cli._lists import POSITIVE, WHOLE, exif_option, names
from dnc.cli._options import size_options

_PATH = click.Path(path_type=Path)


def _interpreters(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> dict[str, str]:
    if any("=" not in item or item.startswith("=") or item.endswith("=") for item in value):
        raise click.BadParameter("NAME=/path/to/python")
    return {name: python for name, _, python in (item.partition("=") for item in value)}


def _threshold(context: click.Context, parameter: click.Parameter, value: str) -> float:
    from dnc.bench.difference import parse_threshold

    try:
        return parse_threshold(value)
    except ValueError:
        raise click.BadParameter(f"'{value}' is no share; 5% or 0.05 is one") from None


@click.command(epilog="Example: dnc bench yolov4-tiny.cfg --target onnx,openvino --against opencv --layers")
@click.argument("what", nargs=-1, metavar="[ENGINE|CFG]...", type=click.Path(), shell_complete=complete_networks)
@click.option("--target", "-t", "targets", callback=names, metavar="T,…", help="Compile a cfg for these; else cpu.")
@click.option(
    "--precision", "precisions", callback=names, metavar="P,…", help="Compile it in these precisions; else fp32."
)
@click.option("--weights", "-w", type=_PATH, help="Of a cfg; else beside it, the zoo's, or random ones.")
@size_options
@click.option("--calibration", type=_PATH, help="What dnc calibrate wrote, for --precision int8 and mixed.")
@click.option(
    "--against",
    "peers",
    callback=names,
    metavar="PEER,…",
    help="Peers as well: opencv, ncnn, darknet2any, ort, openvino.",
)
@click.option(
    "--peer",
    "interpreters",
    multiple=True,
    callback=_interpreters,
    metavar="PEER=PYTHON",
    help="The interpreter that has the peer, if it is not this one; may be repeated.",
)
@click.option("--threads", type=WHOLE, metavar="N", help="Threads of a run; else all processors.")
@click.option("--batch", type=WHOLE, metavar="N", default=1, show_default=True, help="Images of a run.")
@click.option("--streams", type=WHOLE, metavar="N", default=1, show_default=True, help="Callers at the same time.")
@click.option(
    "--seconds",
    type=POSITIVE,
    metavar="S",
    default=20.0,
    show_default=True,
    help="Time for all engines together; less if the intervals are narrow earlier.",
)
@click.option("--layers", is_flag=True, help="Time by section of the cfg, against the machine's measured peaks.")
@click.option(
    "--top",
    type=click.IntRange(min=0),
    metavar="N",
    default=20,
    show_default=True,
    help="With --layers, show those that take longest, this many; 0 for all, in their order.",
)
@click.option(
    "--images", multiple=True, type=click.Path(), metavar="PATH", help="From image files to boxes; may be repeated."
)
@exif_option
@click.option("--video", type=click.Path(), metavar="FILE", help="From a video to boxes.")
@click.option("--camera", type=click.IntRange(min=0), metavar="N", help="From a camera to boxes.")
@click.option(
    "--fps", type=POSITIVE, metavar="X", help="Frames that arrive in a second; an engine that is too slow drops some."
)
@click.option(
    "--diff", nargs=2, type=click.Path(), metavar="OLD NEW", help="Is NEW slower? Two recordings (--json), or engines."
)
@click.option(
    "--fail-above",
    callback=_threshold,
    metavar="X%",
    default="5%",
    show_default=True,
    help="With --diff, exit with 3 if NEW is certainly slower by more than this.",
)
@click.option(
    "--remote",
    metavar="HOST:PORT[,key=K]",
    help="Engines of target tvm on a device behind TVM's RPC server or tracker.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one object: a recording, which --diff reads.")
@click.option("--markdown", is_flag=True, help="Print Markdown.")
@click.option("--plot", type=click.Path(), metavar="FILE", help="Draw bars, and with --layers rooflines: .png, .svg.")
@click.pass_context
def command(
    context: click.Context,
    /,
    what: tuple[str, ...],
    layers: bool,
    top: int,
    images: tuple[str, ...],
    exif: bool | None,
    video: str | None,
    camera: int | None,
    fps: float | None,
    diff: tuple[str, str] | None,
    fail_above: float,
    as_json: bool,
    markdown: bool,
    plot: str | None,
    remote: str | None,
    threads: int | None,
    **options: Any,
) -> None:
    """Measure how fast engines are, and compare them.

    Latency, throughput, start-up, memory and energy, of several engines in turn: ratios to the first one have intervals
    that a noisy machine widens, but does not fool. Without arguments, the engine or the cfg of the current folder.
    """
    from dataclasses import replace

    from dnc.bench.prepare import BenchOptions
    from dnc.cli import _bench
    from dnc.compiler.source import is_engine
    from dnc.files.writing import scratch_folder
    from dnc.runtime.timing import processors

    given = {name: value for name, value in options.items() if value is not None}
    chosen = BenchOptions(threads or processors(), **given)
    sources = sum([bool(images), video is not None, camera is not None])
    peers, streams = bool(chosen.peers), chosen.streams > 1
    for wrong, message in (
        (sources > 1, "give one of --images, --video and --camera"),
        (fps is not None and not sources, "--fps is for --images, --video and --camera"),
        (
            diff is not None and (what or sources or layers or plot or peers),
            "--diff takes two recordings or engines, and nothing else is measured",
        ),
        (as_json and markdown, "give either --json or --markdown"),
        (
            sources and (peers or layers or plot or chosen.batch > 1 or streams),
            "from images to boxes there are no peers, layers, plots, batches or streams",
        ),
        (
            remote and (sources or layers or peers or streams),
            "with --remote there are no images, layers, peers or streams",
        ),
        (remote and diff is not None and not all(map(is_engine, diff)), "with --remote, --diff takes two engines"),
        (peers and streams, "peers have one caller: leave --streams out"),
    ):
        if wrong:
            raise click.UsageError(message)
    with (
        scratch_folder("bench") as scratch,
        progress(not as_json) as report,
        _bench.connected(remote, threads, report) as device,
    ):
        chosen = replace(chosen, device=device)
        if diff is not None:
            differences = _bench.measure_differences(diff, fail_above, chosen, scratch, report)
        elif sources:
            frames = _bench.measure_frames(what, images, exif, video, camera, fps, chosen, scratch, report)
        else:
            recording, tables = _bench.measure_speed(what, layers, plot, chosen, scratch, report)
    for files in chosen.files:
        say_files(files["cfg"], files["weights"])
    if diff is not None:
        _bench.show_differences(differences, as_json)
        context.exit(Exit.NO if any(difference.slower for difference in differences) else Exit.DONE)
    elif sources:
        _bench.show_frames(frames, chosen, as_json, markdown)
    else:
        _bench.show_recording(recording, tables, top, chosen, as_json, markdown)
