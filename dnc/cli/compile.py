"""dnc compile"""

from __future__ import annotations

import click

from dnc.cli import print_json, progress, say_files
from dnc.cli._completion import complete_networks
from dnc.cli._options import compile_options, compile_options_of
from dnc.cli._report import eight_bits, listed_labels, operations


@click.command(epilog="Example: dnc compile yolov4-tiny.cfg --weights yolov4-tiny.weights --target onnx -o yolo.engine")
@click.argument("cfg", type=click.Path(), shell_complete=complete_networks)
@click.option("--weights", "-w", type=click.Path(), help="The .weights; else beside the cfg, else the zoo's.")
@click.option("--out", "-o", type=click.Path(), help="The engine folder; else CFG's name with .engine, here.")
@compile_options
@click.option("--json", "as_json", is_flag=True, help="Print engine.json's contents.")
def command(cfg: str, weights: str | None, out: str | None, as_json: bool, **fields: object) -> None:
    """Compile a network to an engine folder."""
    import time

    from dnc.compiler.compiling import compile_engine
    from dnc.compiler.source import find_weights
    from dnc.darknet.cfg import find_cfg

    start = time.perf_counter()
    options = compile_options_of(**fields)  # type: ignore[arg-type]
    place = find_cfg(cfg)
    found = find_weights(place, weights)
    with progress(not as_json) as tell:
        engine = compile_engine(place, found, out, options, tell)
    say_files(place, found)
    manifest = engine.manifest
    if as_json:
        print_json({"folder": str(engine.folder), "cfg": str(place), "weights": str(found), **manifest.to_json()})
        return
    applied = ", ".join(f"{item['name']} x{item['applied']}" for item in manifest.passes if item["applied"])
    network = manifest.network
    counted = operations(network["bflops"], network.get("bit_operations", 0))
    click.echo(
        f"{engine.folder}: {manifest.name} for {manifest.target}, {network['layers']} layers, "
        f"{network['parameters'] / 1e6:.2f} M parameters, {counted}, "
        f"in {time.perf_counter() - start:.1f} s"
    )
    click.echo(f"  passes: {applied or 'none applied'}")
    if manifest.heads:
        # They may have been found by name, or not found.
        unnamed = "called by their numbers; --labels FILE names them, or CFG's name with .names beside it"
        click.echo(f"  classes: {listed_labels(manifest) or unnamed}")
    for topic, text in (*manifest.report.items(), *eight_bits(manifest)):
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
