"""What `dnc bench` measures and shows, by the options that it was given."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import click

from dnc.bench.behind import behind
from dnc.bench.difference import Difference, compare_recordings
from dnc.bench.end_to_end import EndToEnd, Files, Source, run
from dnc.bench.layers import Layers, profiles
from dnc.bench.machine import describe, machine
from dnc.bench.measure import Recording, measure, read_recording
from dnc.bench.plot import import_matplotlib, plot
from dnc.bench.prepare import BenchOptions, find_here, make_peers, make_subjects, network_of, sections
from dnc.bench.report import Report, behind_report, frames_report, layers_report, recording_report
from dnc.bench.subject import Subject
from dnc.bench.timing import CONFIDENCE
from dnc.cli import print_json
from dnc.cli._options import refuse
from dnc.compiler.source import is_engine
from dnc.evaluation import videos
from dnc.evaluation.datasets import find_images
from dnc.targets.tvm.remote import Address, Device, connect
from dnc.typing import Progress

__all__ = [
    "connected",
    "measure_differences",
    "measure_frames",
    "measure_speed",
    "show_differences",
    "show_frames",
    "show_recording",
]


def connected(remote: str | None, threads: int | None, progress: Progress) -> AbstractContextManager[Device | None]:
    """Connects to the device that --remote names; None without."""
    if remote is None:
        return nullcontext()
    address = Address.parse(remote)
    return connect(replace(address, threads=threads or address.threads), progress)


def _subjects(what: tuple[str, ...], chosen: BenchOptions, scratch: Path, progress: Progress) -> list[Subject]:
    what = what or (find_here(Path()),)
    if all(map(is_engine, what)):
        of_cfg = ("targets", "precisions", "weights", "width", "height", "calibration")
        refuse(click.get_current_context(), of_cfg, "is for a cfg; these are engines")
    return make_subjects(what, chosen, scratch, progress)


def measure_speed(
    what: tuple[str, ...], layers: bool, picture: str | None, chosen: BenchOptions, scratch: Path, progress: Progress
) -> tuple[Recording, list[Layers]]:
    """The recording, and the layers of each engine if they are wanted."""
    if picture is not None:
        # Before anything is measured.
        import_matplotlib(Path(picture))
    subjects = _subjects(what, chosen, scratch, progress)
    peers = make_peers(subjects[0], what, chosen, scratch)
    away = chosen.device.name if chosen.device is not None else ""
    recording = measure(subjects, peers, seconds=chosen.seconds, extras=not away, device=away, progress=progress)
    tables = []
    if layers:
        sources = [network_of(subject, what, chosen, scratch) for subject in subjects]
        places = [sections(source[0]) if source else {} for source in sources]
        tables = profiles(list(zip(subjects, places, strict=True)), progress=progress)
    if picture is not None:
        plot(recording, tables, Path(picture))
    return recording, tables


def measure_frames(
    what: tuple[str, ...],
    images: tuple[str, ...],
    exif: bool | None,
    video: str | None,
    camera: int | None,
    fps: float | None,
    chosen: BenchOptions,
    scratch: Path,
    progress: Progress,
) -> list[EndToEnd]:
    """From files, frames or a camera to boxes, for each engine."""
    named = None if video is None else videos.Source.named(video)
    film = camera if video is None else Path(video) if named is None else named.what
    paths = find_images(images) if images else []
    subjects = _subjects(what, chosen, scratch, progress)
    results = []
    for subject in subjects:
        preprocessing = subject.manifest.preprocessing
        channels = 3 if preprocessing is None else preprocessing.channels
        source: Source = Files(paths, channels, exif) if images else videos.Video(film)  # type: ignore[arg-type]
        share = chosen.seconds / len(subjects)
        results.append(run(subject, source, seconds=share, least=len(paths), rate=fps or 0.0, progress=progress))
    return results


def show_recording(
    recording: Recording, tables: list[Layers], top: int, chosen: BenchOptions, as_json: bool, markdown: bool
) -> None:
    """Prints what was measured, and in which layers an engine is behind another of the same network."""
    # Sections of one network are the same ones, and at one size do the same work.
    engines = [figures.network for figures in recording.figures if figures.kind == "engine"]
    networks = {(network.get("digest"), network.get("bflops")) for network in engines}
    compared = behind(tables) if len(tables) > 1 and len(networks) == 1 else []
    if as_json:
        every = {"layers": [asdict(layers) for layers in tables], "behind": [asdict(one) for one in compared]}
        print_json({**recording.to_json(), **every, "files": chosen.files})
        return
    report = recording_report(recording)
    for table in tables:
        layers_report(table, report, top)
    if compared:
        behind_report(tables, compared, report, top)
    click.echo(report.markdown()) if markdown else report.show()


def show_differences(differences: list[Difference], as_json: bool) -> None:
    """Prints which is slower, and by how much."""
    if as_json:
        print_json([difference.to_json() for difference in differences])
        return
    for difference in differences:
        click.echo(str(difference))
        for note in difference.notes:
            click.echo(f"  {note}")


def show_frames(frames: list[EndToEnd], chosen: BenchOptions, as_json: bool, markdown: bool) -> None:
    """Prints what was measured from files, frames or a camera to boxes."""
    if as_json:
        print_json({"machine": machine(), "end_to_end": [result.to_json() for result in frames], "files": chosen.files})
        return
    report = Report()
    report.add("", describe(machine()))
    frames_report(frames, report)
    click.echo(report.markdown()) if markdown else report.show()


def measure_differences(
    given: tuple[str, str], threshold: float, chosen: BenchOptions, scratch: Path, progress: Progress
) -> list[Difference]:
    """Of --diff: of two recordings those that are kept, of two engines what is measured now."""
    engines = [is_engine(path) for path in given]
    if any(engines) and not all(engines):
        raise click.UsageError("--diff takes two recordings or two engines, not one of each")
    if not any(engines):
        old, new = (read_recording(Path(path)) for path in given)
        return compare_recordings(old, new, given, threshold)
    subjects = make_subjects(given, chosen, scratch, progress)
    away = chosen.device.name if chosen.device is not None else ""
    recording = measure(subjects, seconds=chosen.seconds, extras=False, device=away, progress=progress)
    first, second = (subject.name for subject in subjects)
    ratio = recording.timings.quiet().ratio(second, first, CONFIDENCE)
    return [Difference(given[0], given[1], ratio, threshold)]
