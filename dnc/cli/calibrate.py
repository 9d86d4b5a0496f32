"""dnc calibrate"""

from __future__ import annotations

from pathlib import Path

import click

from dnc.cli import print_json, progress, say_files
from dnc.cli._lists import Number, exif_option, workers_options
from dnc.cli._options import preprocessing_options, size_options
from dnc.errors import CalibrationError


@click.command(epilog="Example: dnc calibrate obj.data yolov4-tiny.cfg yolov4-tiny.weights -input_calibration 100")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--data", type=click.Path(), help="The .data file whose list of images is taken.")
@click.option(
    "--images",
    multiple=True,
    type=click.Path(),
    metavar="SOURCE",
    help="A list, folder, glob or image instead; or how many.",
)
@click.option("--weights", "-w", type=click.Path(), help="The .weights; else beside the cfg, else the zoo's.")
@click.option(
    "-input_calibration",
    "--count",
    "-n",
    "count",
    type=int,
    metavar="N",
    help="How many images: the first of the list; else 100, or as many as there are.",
)
@click.option("--seed", type=int, help="Draw the images at random instead.")
@click.option(
    "--list",
    "key",
    type=click.Choice(["train", "valid"]),
    help="Which list of the .data file; else train where it has one. Do not calibrate on what you measure with.",
)
@click.option(
    "--method",
    type=click.Choice(["norm", "kl", "percentile", "mse", "minmax"]),
    default="norm",
    show_default=True,
    help="How ranges are chosen: norm, by the least error, in which large ones count more; kl, as TensorRT does; "
    "percentile, a share of the values; mse, the least squared error; minmax, all that was seen.",
)
@click.option(
    "--percentile", type=Number(), metavar="X", default=99.99, show_default=True, help="What --method percentile keeps."
)
@click.option(
    "--symmetric/--asymmetric",
    default=False,
    help="One threshold for both sides of 0, or one for each, which loses less; else one for each.",
)
@click.option("--out", "-o", type=click.Path(), help="The file; else CFG's name with .calibration.json, here.")
@exif_option
@click.option("--skip-bad", is_flag=True, help="Warn about an image that cannot be read, and go on.")
@click.option(
    "--import", "table", type=click.Path(), metavar="FILE", help="Take the ranges from a table and run nothing."
)
@click.option(
    "--export",
    "exports",
    type=(click.Choice(["darknet", "tensorrt"]), click.Path()),
    multiple=True,
    metavar="FORMAT FILE",
    help="Write a table as well: darknet (a FILE.cfg gets a copy of the cfg with the line input_calibration, any other "
    "file the line) or tensorrt (a cache, which TensorRT up to 10 reads). It has symmetric ranges, of the same images. "
    "Repeatable.",
)
@click.option(
    "--tensorrt", "version", default="8.6.1", show_default=True, metavar="X.Y.Z", help="Which TensorRT is to read it."
)
@click.option("--lenient", is_flag=True, help="Warn about what Darknet takes in silence, instead of failing.")
@workers_options
@click.option("--json", "as_json", is_flag=True, help="Print the calibration.")
@size_options
@preprocessing_options
def command(
    files: tuple[str, ...],
    data: str | None,
    images: tuple[str, ...],
    weights: str | None,
    count: int | None,
    seed: int | None,
    key: str | None,
    method: str,
    percentile: float,
    symmetric: bool,
    out: str | None,
    exif: bool | None,
    skip_bad: bool,
    table: str | None,
    exports: tuple[tuple[str, str], ...],
    version: str,
    lenient: bool,
    scheduler: str | None,
    workers: int | None,
    as_json: bool,
    width: int | None,
    height: int | None,
    **preprocessing: object,
) -> None:
    """Measure the range of every layer on images, for 8-bit engines.

    FILE... are the .cfg and, in any order, the .weights and the .data file or a list or folder of images. Weights that
    are not named are looked for beside the cfg, then in the zoo's cache; a .data file beside the cfg.
    """
    import time

    from dnc.cli._calibrate import choose_images, data_beside, export, sort_files
    from dnc.compiler.source import find_weights, preprocessing_for
    from dnc.darknet.cfg import find_cfg
    from dnc.darknet.network import Network
    from dnc.evaluation.cluster import cluster
    from dnc.files.writing import check_places
    from dnc.quantization.collecting import check_method, measure
    from dnc.quantization.tables import read_table

    start = time.perf_counter()
    check_method(method, percentile)
    named = sort_files(files)
    if "cfg" not in named:
        hint = "for instance dnc calibrate obj.data yolo.cfg yolo.weights"
        raise CalibrationError("the .cfg is missing", ", ".join(files), hint)
    cfg = find_cfg(named["cfg"])
    place = find_weights(cfg, weights or named.get("weights"))
    file = Path(out) if out is not None else Path(f"{cfg.stem}.calibration.json")
    check_places([file, *(target for _, target in exports)])
    sources = list(images)
    if len(sources) == 1 and sources[0].isdecimal() and not Path(sources[0]).exists():
        # So many images, as in -input_calibration.
        count = int(sources.pop())
    given = sources or [item for item in (data or named.get("data"), named.get("images")) if item is not None]
    with progress(not as_json) as report:
        report("reading the network")
        network = Network.load(cfg, place, lenient=lenient, width=width, height=height)
        if table is not None:
            calibration = tables = read_table(table, network, lenient=lenient)
        else:
            given = given or data_beside(cfg, network)
            paths = choose_images(given, key, count, seed, skip_bad)
            read = preprocessing_for(network, place, **preprocessing)
            with cluster(scheduler, workers, progress=report) as others:
                measured = measure(
                    network,
                    read,
                    paths,
                    signed=not symmetric,
                    skip_bad=skip_bad,
                    exif=exif,
                    source=", ".join(map(str, given)),
                    seed=seed,
                    progress=report,
                    workers=others,
                )
            calibration = measured.calibration(method, symmetric=symmetric, percentile=percentile)
            # Tables know no others; the calibration, which loses less, stays as it is.
            tables = measured.calibration(method, symmetric=True, percentile=percentile) if exports else calibration
        calibration.write(file)
    for form, target in exports:
        export(form, target, tables, network, version)
    say_files(cfg, place)
    if as_json:
        print_json({"file": str(file), "cfg": str(cfg), "weights": str(place), **calibration.to_json()})
        return
    origin = f"on {calibration.images['count']} images" if calibration.images else f"from {table}"
    kind = "symmetric" if calibration.symmetric else "asymmetric"
    click.echo(
        f"{file}: {cfg.stem}, {len(calibration.ranges)} {kind} ranges by {calibration.method} {origin}, "
        f"in {time.perf_counter() - start:.1f} s"
    )
    if calibration.symmetric:
        note = ""
    elif tables.symmetric:
        note = ", with symmetric ranges of the same histograms"
    else:
        note = ", with the farther end of each range on both sides"
    for form, target in exports:
        click.echo(f"  {form}: {target}{note}")
