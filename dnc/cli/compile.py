"""dnc compile"""

from __future__ import annotations

import click


def _numbers(context: click.Context, parameter: click.Parameter, value: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in value.split(","))
    except ValueError:
        raise click.BadParameter("one number, or one per channel separated by commas") from None


@click.command(epilog="Example: dnc compile yolov4-tiny.cfg --weights yolov4-tiny.weights --target onnx -o yolo.engine")
@click.argument("cfg", type=click.Path())
@click.option("--weights", "-w", type=click.Path(), help="The .weights; else beside the cfg, else the zoo's.")
@click.option("--target", "-t", default="cpu", show_default=True, help="What to compile for; `dnc targets` lists them.")
@click.option("--out", "-o", type=click.Path(), help="The engine folder; else CFG's name with .engine, here.")
@click.option("--labels", type=click.Path(), help="A file with one class name a line; else CFG's name with .names.")
@click.option("--batch", type=click.IntRange(min=1), help="Fix the batch size; else any.")
@click.option(
    "--input",
    type=click.Choice(["f32", "u8"]),
    default="f32",
    show_default=True,
    help="u8: the graph takes pixels (N, height, width, channels) and preprocesses them.",
)
@click.option(
    "--preprocess",
    type=click.Choice(["resize", "resize-half-pixel", "letterbox", "center-crop"]),
    help="How images become the input; else as the cfg says: letterbox, center-crop (classifiers) or resize.",
)
@click.option("--color", type=click.Choice(["rgb", "bgr", "gray"]), help="Order of the channels; else rgb.")
@click.option("--mean", default="0", callback=_numbers, help="The input is (pixel / 255 - mean) / std.")
@click.option("--std", default="1", callback=_numbers, help="See --mean; one number, or one per channel.")
@click.option(
    "--decode",
    type=click.Choice(["host", "graph", "graph+nms"]),
    default="host",
    show_default=True,
    help="Where boxes are decoded and suppressed.",
)
@click.option("--skip", multiple=True, metavar="PASS", help="Leave a pass out; may be repeated.")
@click.option("--keep-layers", is_flag=True, help="Make every layer's output an output, for dnc compare.")
@click.option("--dump-dir", type=click.Path(), help="Write the graph after each pass there.")
@click.option("--cutoff", type=int, metavar="N", help="Take the first N layers, as darknet partial.")
@click.option("--lenient", is_flag=True, help="Warn about what Darknet takes in silence, instead of failing.")
@click.option("--json", "as_json", is_flag=True, help="Print engine.json's contents.")
def command(cfg: str, weights: str | None, target: str, out: str | None, as_json: bool, **options: object) -> None:
    """Compile a network to an engine folder."""
    import time

    from dnc.cli import print_json, progress
    from dnc.compiler import compile

    start = time.perf_counter()
    with progress(not as_json) as tell:
        engine = compile(cfg, weights, target, out, progress=tell, **options)  # type: ignore[arg-type]
    bundle = engine.bundle
    if as_json:
        print_json({"folder": str(engine.folder), **bundle.to_json()})
        return
    applied = ", ".join(f"{item['name']} x{item['applied']}" for item in bundle.passes if item["applied"])
    network = bundle.network
    click.echo(
        f"{engine.folder}: {bundle.name} for {bundle.target}, {network['layers']} layers, "
        f"{network['parameters'] / 1e6:.2f} M parameters, {network['bflops']:.3f} BFLOPs, "
        f"in {time.perf_counter() - start:.1f} s"
    )
    click.echo(f"  passes: {applied or 'none applied'}")
