"""dnc compile"""

from __future__ import annotations

import click

from dnc.cli._lists import names
from dnc.cli._preprocessing import preprocessing_options


def _options(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> dict[str, str]:
    if any("=" not in item or item.startswith("=") for item in value):
        raise click.BadParameter("KEY=VALUE")
    return {key: text for key, _, text in (item.partition("=") for item in value)}


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
@preprocessing_options
@click.option(
    "--decode",
    type=click.Choice(["host", "graph", "graph+nms"]),
    default="host",
    show_default=True,
    help="Where boxes are decoded and suppressed.",
)
@click.option("--passes", callback=names, metavar="PASS,…", help="Run these, in order, in place of the target's own.")
@click.option("--skip", multiple=True, metavar="PASS", help="Leave a pass out; may be repeated.")
@click.option(
    "--verify/--no-verify",
    default=True,
    show_default=True,
    help="Compare the outputs after each pass with those before it, and stop where they differ.",
)
@click.option(
    "--option",
    "options",
    multiple=True,
    callback=_options,
    metavar="KEY=VALUE",
    help="Tell the target something; `dnc targets TARGET` lists what; may be repeated.",
)
@click.option(
    "--precision", metavar="P", help="For --option precision=P: fp32, fp16, bf16, int8, mixed; see `dnc targets NAME`."
)
@click.option("--calibration", type=click.Path(), help="What dnc calibrate wrote, for --precision int8 and mixed.")
@click.option("--keep", callback=names, metavar="LAYER,…", help="Leave these layers in float32: 36, 30-36, Add.")
@click.option(
    "--max-drop",
    type=click.FloatRange(0),
    help="By how many percentage points mAP@0.50 or top-1 may drop: for --precision mixed [0.5], and for --target cpu, "
    "which then times less precise engines as well.",
)
@click.option("--data", multiple=True, metavar="SOURCE", help="What it is measured on; else what was calibrated on.")
@click.option("--shaves", type=int, help="For myriad, --option shaves=N: the vector processors to use, 1 to 16.")
@click.option("--mcpu", help="For tvm, --option mcpu=CPU: the processor, as LLVM names it.")
@click.option("--backend", help="For cuda, --option backend=NAME: onnxruntime or tvm.")
@click.option("--arch", help="For cuda, --option arch=sm_87,…: generations of GPUs.")
@click.option("--allow-fallback", is_flag=True, help="For cuda, --option fallback=on: run on the CPU without a GPU.")
@click.option("--autotune", is_flag=True, help="Measure how each grouped convolution runs fastest on this machine.")
@click.option(
    "--tune",
    type=click.IntRange(min=1),
    metavar="TRIALS",
    help="For tvm, and cuda with --backend tvm: measure so many ways of writing its kernels.",
)
@click.option("--remote", metavar="HOST:PORT[,key=K]", help="For --tune: on a device behind TVM's RPC.")
@click.option("--keep-layers", is_flag=True, help="Make every layer's output an output, for dnc compare.")
@click.option("--dump-dir", type=click.Path(), help="Write the graph after each pass there.")
@click.option("--cutoff", type=int, metavar="N", help="Take the first N layers, as darknet partial.")
@click.option("--lenient", is_flag=True, help="Warn about what Darknet takes in silence, instead of failing.")
@click.option("--json", "as_json", is_flag=True, help="Print engine.json's contents.")
def command(
    cfg: str,
    weights: str | None,
    target: str,
    out: str | None,
    as_json: bool,
    options: dict[str, str],
    shaves: int | None,
    mcpu: str | None,
    backend: str | None,
    arch: str | None,
    allow_fallback: bool,
    keep: list[str] | None,
    **others: object,
) -> None:
    """Compile a network to an engine folder."""
    import time

    from dnc.cli import print_json, progress
    from dnc.compiler.compiling import compile

    start = time.perf_counter()
    fallback = "on" if allow_fallback else None
    short = {"shaves": shaves, "mcpu": mcpu, "backend": backend, "arch": arch, "fallback": fallback}
    told = {**options, **{name: str(value) for name, value in short.items() if value is not None}}
    with progress(not as_json) as tell:
        engine = compile(cfg, weights, target, out, progress=tell, options=told, keep=keep or (), **others)  # type: ignore[arg-type]
    manifest = engine.manifest
    if as_json:
        print_json({"folder": str(engine.folder), **manifest.to_json()})
        return
    applied = ", ".join(f"{item['name']} x{item['applied']}" for item in manifest.passes if item["applied"])
    network = manifest.network
    click.echo(
        f"{engine.folder}: {manifest.name} for {manifest.target}, {network['layers']} layers, "
        f"{network['parameters'] / 1e6:.2f} M parameters, {network['bflops']:.3f} BFLOPs, "
        f"in {time.perf_counter() - start:.1f} s"
    )
    click.echo(f"  passes: {applied or 'none applied'}")
    for topic, text in manifest.report.items():
        click.echo(f"  {topic}: {text}")
    tuning = manifest.tuning
    if "layers" in tuning:
        changed = [layer for layer in tuning["layers"] if layer["best"] != "native"]
        text = f"{len(changed)} of {len(tuning['layers'])} grouped convolutions are faster otherwise"
        if tuning["ratio"]:
            value, low, high = tuning["ratio"]
            verdict = "kept" if tuning["kept"] else "dropped: the network as a whole is no faster"
            text += f"; network {value:.3f} ({low:.3f} to {high:.3f}) of its time, {verdict}"
        click.echo(f"  tuning: {text}")
