"""dnc import"""

from __future__ import annotations

import click

from dnc.cli import print_json, progress, say_files
from dnc.cli._lists import Number, numbers


def _pins(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> list[tuple[int, str]]:
    pins = []
    for item in value:
        layer, equals, name = item.partition("=")
        if not (layer.isdecimal() and len(layer) < 8 and equals and name):
            raise click.BadParameter(f"'{item}' is not LAYER=NAME, as in 12=features.3.conv.0")
        pins.append((int(layer), name))
    return pins


@click.command(epilog="Example: dnc import mobilenet_v2.pth mobilenetv2.cfg -o mobilenetv2.weights")
@click.argument("source", type=click.Path())
@click.argument("cfg", type=click.Path())
@click.option("--out", "-o", type=click.Path(), required=True, help="The .weights file to write.")
@click.option(
    "--padding",
    type=click.Choice(["same"]),
    help="same: the source pads as TensorFlow does. A cfg that cannot say so is adapted beside the weights.",
)
@click.option(
    "--epsilon",
    type=Number(),
    metavar="X",
    help="Epsilon of the source's batch normalisations; else ONNX's own, or 1e-5.",
)
@click.option("--mean", callback=numbers, help="The input is (pixel / 255 - mean) / std: recorded for dnc compile.")
@click.option("--std", callback=numbers, help="See --mean; one number, or one per channel, as in 128/255.")
@click.option(
    "--crop", type=Number(), metavar="X", help="The share of the short side that a classifier sees, recorded likewise."
)
@click.option(
    "--interpolation", type=click.Choice(["bilinear", "bicubic"]), help="How a classifier's image is resized, likewise."
)
@click.option("--color", type=click.Choice(["rgb", "bgr", "gray"]), help="Order of the channels, recorded likewise.")
@click.option(
    "--map", "pins", multiple=True, metavar="LAYER=NAME", callback=_pins, help="Give a layer its source; repeatable."
)
@click.option("--cutoff", type=int, metavar="N", help="Take the first N layers, as darknet partial.")
@click.option("--lenient", is_flag=True, help="Warn about what Darknet takes in silence, instead of failing.")
@click.option("--json", "as_json", is_flag=True, help="Print one object.")
def command(source: str, cfg: str, out: str, as_json: bool, **options: object) -> None:
    """Bring weights of PyTorch or ONNX into Darknet's format.

    Nothing in the source is executed. Layers are matched by order, shape and name; what could be matched in two ways is
    refused.
    """
    from dnc.zoo.importer import import_weights

    with progress(not as_json) as report_progress:
        report = import_weights(source, cfg, out, progress=report_progress, **options)  # type: ignore[arg-type]
    say_files(report.cfg, source)
    if as_json:
        print_json(report.to_json())
        return
    report.table().show()
    for name in report.left:
        click.echo(f"left over: {name}")
    for note in report.notes:
        click.echo(f"note: {note}")
    written = ", ".join(map(str, report.written))
    click.echo(f"{report.format}: {len(report.rows)} layers, {len(report.left)} left over; written: {written}")
