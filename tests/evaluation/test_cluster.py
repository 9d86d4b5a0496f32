"""Workers of a Dask cluster: results are those of one process, to the bit, whoever dies; and what is wrong is said."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dnc
from dnc import errors
from dnc.compiler.source import preprocessing_for
from dnc.darknet.network import Network
from dnc.errors import CalibrationError, DncError, DncWarning, ImageError, TargetError
from dnc.evaluation import cluster as module
from dnc.evaluation.cluster import Cluster, cluster
from dnc.evaluation.datasets import read_dataset
from dnc.evaluation.metrics import evaluate
from dnc.evaluation.reports import Report
from dnc.evaluation.workers import Workers
from dnc.quantization.collecting import calibrate
from dnc.runtime.images import TURNED
from tests.conftest import Result
from tests.networks import NETWORKS
from tests.patience import PATIENCE, until

Write = Callable[..., Path]
Command = Callable[..., Result]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A scheduler and two workers, in threads of this process."""
    distributed = pytest.importorskip("distributed")
    with (
        warnings.catch_warnings(),
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=False,
            protocol="tcp://",
            dashboard_address=None,
            silence_logs=50,
        ) as local,
    ):
        yield local.scheduler_address


@pytest.fixture
def workers(address: str) -> Iterator[Workers]:
    with cluster(address) as found:
        assert found is not None
        yield found


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Nine images, with labels of a class beside them."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    paths = [folder / f"{name}.png" for name in "abcdefghi"]
    for number, path in enumerate(paths):
        Image.fromarray(generator.integers(0, 256, (16 + number, 30, 3), np.uint8)).save(path)
        path.with_suffix(".txt").write_text(f"{number % 2} 0.5 0.5 0.4 0.3\n", encoding="utf-8")
    return paths


def _calibrated(cfg: Path, pictures: list[Path], **options: Any) -> str:
    network = Network.load(cfg, cfg.with_suffix(".weights"))
    preprocessing = preprocessing_for(network, cfg.with_suffix(".weights"))
    return json.dumps(calibrate(network, preprocessing, pictures, **options).to_json())


@pytest.mark.parametrize("name", ["yolo", "classifier", "crnn"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_calibrations_are_equal(
    name: str, symmetric: bool, write: Write, pictures: list[Path], workers: Workers
) -> None:
    """crnn sees the images as one sequence."""
    cfg = write(name, NETWORKS[name].replace("channels=2", "channels=3"))
    alone = _calibrated(cfg, pictures, symmetric=symmetric)
    assert _calibrated(cfg, pictures, symmetric=symmetric, workers=workers) == alone


def _reports(cfg: Path, pictures: list[Path], folder: Path, workers: Workers | None, **options: Any) -> Report:
    engine = folder / f"{cfg.stem}.engine"
    if not engine.exists():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dnc.compile(cfg, target="onnx", out=engine, verify=False)
    return evaluate(dnc.load(engine), read_dataset(pictures), workers=workers, **options)


@pytest.mark.parametrize("name", ["yolo", "classifier", "crnn"])
def test_reports_are_equal(
    name: str, write: Write, pictures: list[Path], tmp_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = write(name, NETWORKS[name].replace("channels=2", "channels=3"))
    options: dict[str, Any] = {"like_darknet": True}
    if name == "classifier":
        names = tmp_path / "labels"
        names.write_text("".join(f"{letter}.png\n" for letter in "abcdefghij"), encoding="utf-8")
        options = {"labels": names}
        monkeypatch.setattr("dnc.evaluation.metrics.class_truth", lambda listed, classes, **_: [0] * len(listed))
    alone = _reports(cfg, pictures, tmp_path, None, **options)
    assert _reports(cfg, pictures, tmp_path, workers, **options).to_json() == alone.to_json()


def test_coco_reports_are_equal(write: Write, pictures: list[Path], tmp_path: Path, workers: Workers) -> None:
    pytest.importorskip("pycocotools")
    cfg = write("yolo")
    alone = _reports(cfg, pictures, tmp_path, None)
    assert _reports(cfg, pictures, tmp_path, workers).to_json() == alone.to_json()


def _said(function: Callable[[], object]) -> tuple[list[str], str]:
    """The warnings and the error of a call."""
    errors._said.discard(TURNED)
    error = ""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            function()
        except DncError as found:
            error = f"{type(found).__name__}: {found}"
    return [str(item.message) for item in said if issubclass(item.category, DncWarning)], error


@pytest.mark.parametrize("skip_bad", [True, False])
def test_bad_images_are_told_in_order(
    skip_bad: bool, write: Write, pictures: list[Path], tmp_path: Path, workers: Workers
) -> None:
    """Damaged ones are found by the workers, missing ones here; of those that lie on their side, the first is told."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for place in (1, 4):
        pictures[place] = pictures[place].with_suffix(".jpg")
        Image.new("RGB", (20, 30), (9, 99, 200)).save(pictures[place], exif=exif)
    pictures[2].write_bytes(pictures[2].read_bytes()[:60])
    pictures[5].write_bytes(b"no image")
    dataset = list(pictures)
    pictures[3].unlink()
    cfg = write("yolo")
    assert _said(lambda: _reports(cfg, pictures[:1], tmp_path, None))[1] == ""
    for look in (
        lambda workers: _calibrated(cfg, dataset, skip_bad=skip_bad, workers=workers),
        lambda workers: _reports(cfg, [*dataset[:3], *dataset[4:]], tmp_path, workers, skip_bad=skip_bad),
    ):
        said, error = _said(lambda look=look: look(None))  # type: ignore[misc]
        assert (len(said) >= 3) == skip_bad
        assert ("c.png" in error) == (not skip_bad)
        assert _said(lambda look=look: look(workers)) == (said, error)  # type: ignore[misc]


def test_no_image_can_be_read(write: Write, pictures: list[Path], workers: Workers) -> None:
    for path in pictures:
        path.write_bytes(b"no image")
    with pytest.raises(ImageError, match="none of the 9 images"), pytest.warns(DncWarning):
        _calibrated(write("tiny"), pictures, skip_bad=True, workers=workers)


def test_infinite_numbers_name_layer_and_image(write: Write, pictures: list[Path], workers: Workers) -> None:
    cfg = write("tiny")
    network = Network.load(cfg, cfg.with_suffix(".weights"))
    arrays = list(network.arrays)
    arrays[1] = {**arrays[1], "biases": np.full_like(arrays[1]["biases"], np.inf)}
    preprocessing = preprocessing_for(network, cfg.with_suffix(".weights"))
    with pytest.raises(CalibrationError, match=r"layer001 on this image: .* infinite") as caught:
        calibrate(network.with_arrays(tuple(arrays)), preprocessing, pictures, workers=workers)
    assert caught.value.where == pictures[0]


def test_images_travel_once(
    write: Write, pictures: list[Path], tmp_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are looked at again stay where they are, as does the engine."""
    sent: list[bool] = []
    submit = Cluster._submit

    def spied(self: Cluster, work: Any, digest: str, part: Any, states: Any, place: str | None, whole: bool) -> None:
        sent.append(whole)
        submit(self, work, digest, part, states, place, whole)

    monkeypatch.setattr(Cluster, "_submit", spied)
    given: list[list[str]] = []
    give = Cluster._give

    def told(self: Cluster, work: Any, digest: str, addresses: list[str]) -> None:
        given.append(addresses)
        give(self, work, digest, addresses)

    monkeypatch.setattr(Cluster, "_give", told)
    # No other test has it.
    cfg = write("yolo", NETWORKS["yolo"] + "# travels\n")
    first = _reports(cfg, pictures, tmp_path, workers)
    assert all(sent)
    assert [len(to) for to in given] == [2]
    sent.clear()
    assert _reports(cfg, pictures, tmp_path, workers) == first
    assert sum(sent) == 0 or sum(sent) < len(sent)
    assert [len(to) for to in given] == [2, 0]


def test_workers_that_lack_something(
    write: Write, pictures: list[Path], workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that comes later, or has dropped what it had, is sent what it lacks."""
    cfg = write("yolo")
    alone = _calibrated(cfg, pictures)
    assert _calibrated(cfg, pictures, workers=workers) == alone
    for place in module._places.values():
        shutil.rmtree(place.folder)
        place.folder.mkdir()
        place.opened.clear()
        place.images.clear()
    monkeypatch.setattr(module, "_has", lambda digest, dask_worker: True)
    assert _calibrated(cfg, pictures, workers=workers) == alone


def test_a_worker_that_cannot_write(
    write: Write, pictures: list[Path], workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = write("yolo", NETWORKS["yolo"] + "# stays\n")
    # No file has so long a name.
    monkeypatch.setattr(module, "secrets", SimpleNamespace(token_hex=lambda size: "a" * 300))
    with pytest.raises(TargetError, match=r"worker tcp://.*File name too long"):
        _calibrated(cfg, pictures, workers=workers)


def test_images_that_are_kept_are_bounded(
    write: Write, pictures: list[Path], workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_KEPT", 5000)
    cfg = write("yolo")
    assert _calibrated(cfg, pictures, workers=workers) == _calibrated(cfg, pictures)
    assert all(sum(place.images.values()) <= 5000 for place in module._places.values())


def test_what_is_in_flight_is_bounded(
    write: Write, pictures: list[Path], workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bytes as well: then one part at a time is sent."""
    monkeypatch.setattr(module, "_IN_FLIGHT", 1)
    monkeypatch.setattr(module, "_BYTES", 1)
    cfg = write("yolo")
    assert _calibrated(cfg, pictures, workers=workers) == _calibrated(cfg, pictures)


# What is wrong.


@pytest.mark.parametrize(
    ("scheduler", "count", "message"),
    [
        ("tcp://127.0.0.1:1", None, "no Dask scheduler answers"),
        ("tcp://no.such.host.invalid:8786", None, "no Dask scheduler answers"),
        ("127.0.0.1:8786", None, "is no address of a Dask scheduler"),
        ("http://127.0.0.1:8786", None, "is no address of a Dask scheduler"),
        ("tcp://127.0.0.1", None, "is no address of a Dask scheduler"),
        ("tcp://127.0.0.1:8786", 2, "a scheduler has workers of its own"),
        (None, 0, "0 workers"),
    ],
)
def test_there_is_no_scheduler(
    scheduler: str | None, count: int | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(module, "_CONNECT", 0.5)
    with pytest.raises(DncError, match=message), cluster(scheduler, count):
        pass


def test_what_answers_is_no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(module, "_CONNECT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(TargetError, match="no Dask scheduler answers"), cluster(where):
            pass


def test_a_scheduler_without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(module, "_WORKERS", 0.1)
    with (
        distributed.LocalCluster(n_workers=0, processes=False, protocol="tcp://", dashboard_address=None) as local,
        pytest.raises(TargetError, match="the scheduler has no workers"),
        cluster(local.scheduler_address),
    ):
        pass


def test_other_versions(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_told", lambda dask_worker=None: {**module._facts(), "numpy": "1.0", "dnc": "0.0.1"})
    with pytest.raises(TargetError, match=r"has dnc 0\.0\.1, not .*, numpy 1\.0, not "), cluster(address):
        pass


def test_another_cpu_is_warned_of(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_told", lambda dask_worker=None: {**module._facts(), "isa": "sse"})
    with pytest.warns(DncWarning, match=r"CPUs of another kind \(sse, here "), cluster(address):
        pass


def test_one_that_came_later_is_of_another_version(
    write: Write, pictures: list[Path], workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_facts", {**module._facts(), "numpy": "1.0"})
    with pytest.raises(TargetError, match=r"has numpy .*, not 1\.0"):
        _calibrated(write("tiny"), pictures, workers=workers)


def test_distributed_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(TargetError, match="distributed, which is not installed") as caught, cluster(workers=2):
        pass
    assert caught.value.hint == 'pip install "darknet-compiler[cluster]"'


def test_all_workers_are_gone(write: Write, pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(module, "_WORKERS", 0.1)
    cfg = write("tiny")
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, protocol="tcp://", dashboard_address=None
        ) as local,
        cluster(local.scheduler_address) as workers,
    ):
        monkeypatch.setattr(module, "_WORKERS", 0.1)

        def progress(text: str) -> None:
            if text.startswith("2/"):
                local.scale(0)
                until(lambda: not local.scheduler.workers)

        with pytest.raises(TargetError, match="all workers are gone"):
            _calibrated(cfg, pictures, workers=workers, progress=progress)


def test_commands(command: Command, write: Write, pictures: list[Path], address: str, tmp_path: Path) -> None:
    """The file and what is printed are those of one process."""
    cfg, folder = write("yolo"), pictures[0].parent
    files = ("calibrate", cfg, folder, "--export", "tensorrt", tmp_path / "cache")
    assert command(*files, "-o", tmp_path / "one.json").code == 0
    tables = [(tmp_path / "cache").read_bytes()]
    result = command(*files, "-o", tmp_path / "two.json", "--scheduler", address)
    assert (result.code, result.err) == (0, "")
    tables.append((tmp_path / "cache").read_bytes())
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    assert tables[0] == tables[1]
    _reports(cfg, pictures, tmp_path, None)
    measured = ("eval", tmp_path / f"{cfg.stem}.engine", "--images", folder, "--like-darknet")
    alone = command(*measured)
    assert command(*measured, "--scheduler", address) == alone
    result = command(*measured, "--scheduler", address, "--workers", 2)
    assert (result.code, "a scheduler has workers of its own" in result.err) == (1, True)


def test_nothing_is_written_without_a_scheduler(
    command: Command, write: Write, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(module, "_CONNECT", 0.5)
    arguments = ("calibrate", write("yolo"), pictures[0].parent, "-o", tmp_path / "x.json")
    result = command(*arguments, "--scheduler", "tcp://127.0.0.1:1")
    assert (result.code, result.out) == (1, "")
    assert "no Dask scheduler answers" in result.err
    assert not (tmp_path / "x.json").exists()


# In processes.


@pytest.mark.slow
def test_a_worker_is_killed(
    write: Write, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice, in the middle; and nothing of the workers is left."""
    pytest.importorskip("distributed")
    # Until the next one is there, which takes a busy machine longer than anybody would wait.
    monkeypatch.setattr("dnc.evaluation.cluster._WORKERS", PATIENCE)
    cfg = write("yolo")
    many = [shutil.copy(path, path.with_name(f"{number}{path.name}")) for number in range(8) for path in pictures]
    paths = sorted(map(Path, many))
    alone = _calibrated(cfg, paths)
    report = _reports(cfg, pictures, tmp_path, None)
    pids: set[int] = set()
    with cluster(workers=2) as workers:
        assert isinstance(workers, Cluster)
        assert set(workers._asked(os.getenv, "MALLOC_TRIM_THRESHOLD_").values()) == {None}

        def kill() -> None:
            found = workers._asked(os.getpid)
            pids.update(found.values())
            os.kill(next(iter(found.values())), signal.SIGKILL)

        def progress(text: str) -> None:
            if text.startswith(("3/", "40/")):
                kill()

        assert _calibrated(cfg, paths, workers=workers, progress=progress) == alone
        kill()
        assert _reports(cfg, pictures, tmp_path, workers) == report
    assert len(pids) >= 3
    until(lambda: not any(map(_lives, pids)))


def _lives(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False
