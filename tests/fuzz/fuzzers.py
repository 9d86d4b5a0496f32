"""What is fuzzed: the cases that are right, how they are mutated, and what reads them."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import shutil
import subprocess
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import numpy as np

import dnc
from dnc.darknet.layers import layers
from dnc.darknet.network import Network
from dnc.darknet.weights import random_arrays, read_weights, write_partial, write_weights
from dnc.errors import DncError
from tests.fuzz.mutation import Case, change, change_json, change_lines
from tests.networks import NETWORKS, TINY

__all__ = ["FUZZERS", "Allow", "Fuzzer"]

Allow = Callable[[], AbstractContextManager[None]]
"""`with allow():` around what may end in a DncError."""

_SMALL = 2_000_000
"""Elements of a network that is compiled and run."""
_IMAGE = np.random.default_rng(0).integers(0, 256, (11, 13, 3), np.uint8)


class Fuzzer(ABC):
    """One kind of file, or a few that belong together."""

    name: ClassVar[str]
    fixed: ClassVar[frozenset[str]] = frozenset()
    """Files that stay as they are."""

    def missing(self) -> str:
        """What it needs and this machine lacks; else nothing."""
        return ""

    program: Path = Path()
    """In the process that runs cases, what `build` gave."""

    def build(self) -> Path:
        """The program that runs cases, built before any limit holds; most need none."""
        return Path()

    @abstractmethod
    def seeds(self) -> list[Case]:
        """Cases that are right."""

    @abstractmethod
    def run(self, folder: Path, allow: Allow) -> None:
        """Reads a case, as all that reads such files does."""

    def mutate(self, case: Case, other: Case, random: Random) -> Case:
        """Another case; `other` has parts to take."""
        files = dict(case)
        names = [name for name in files if name not in self.fixed]
        for name in random.sample(names, 1 if random.random() < 0.8 else random.randint(1, len(names))):
            files[name] = change(name, files[name], random, other.get(name, b""))
        return files


def _coin(case: bytes, sides: int) -> bool:
    """Once in so many cases, the same for a case."""
    return hashlib.sha256(case).digest()[0] % sides == 0


def _network(text: str) -> Network:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Network.parse(text, lenient=True)


def _weights(text: str) -> bytes:
    network, file = _network(text), io.BytesIO()
    write_weights(file, network.layers, random_arrays(network.layers, 0))
    return file.getvalue()


class Cfg(Fuzzer):
    """Networks: parsing; where that succeeds, lowering and all passes; now and then the compiler and a run."""

    name = "cfg"

    def seeds(self) -> list[Case]:
        return [{"net.cfg": text.encode()} for text in (*NETWORKS.values(), _MORE)]

    def mutate(self, case: Case, other: Case, random: Random) -> Case:
        text = case["net.cfg"]
        if random.random() < 0.1:
            name = random.choice([*layers, "net", "network", "", "x", "conv_lstm "])
            other = {"net.cfg": f"[{name}]\n".encode()}
        return {"net.cfg": change_lines(text, random, other["net.cfg"])}

    def run(self, folder: Path, allow: Allow) -> None:
        from dnc.darknet.lower import lower
        from dnc.graph.pipeline import Pipeline
        from dnc.passes import passes

        cfg = folder / "net.cfg"
        content = cfg.read_bytes()
        with allow():
            Network.load(cfg)
        with allow():
            network = Network.load(cfg, lenient=True)
            assert all(min(layer.shape) > 0 for layer in network.layers)
            if network.parameters() < 2 * _SMALL:
                model = lower(network.with_random_weights(0), batch=2 if _coin(content, 2) else "N")
                Pipeline([each() for each in passes.values() if not each.__abstractmethods__]).run(model)
            elements = sum(math.prod(layer.shape) for layer in network.layers) + math.prod(network.input_shape)
            if not _coin(content, 6) or network.parameters() + elements > _SMALL:
                return
            with cfg.with_suffix(".weights").open("wb") as file:
                write_weights(file, network.layers, random_arrays(network.layers, 1))
            more: dict[str, Any] = {"decode": ("host", "graph", "graph+nms")[content[0] % 3], "keep_layers": True}
            more["input"] = "u8" if _coin(content[::-1], 3) else "f32"
            engine = dnc.compile(cfg, out=folder / "e", target="onnx", lenient=True, **more)
            if more["input"] == "f32":
                engine.forward(np.ones(network.input_shape, np.float32))
            engine(_IMAGE, confidence=0.9)


_MORE = TINY.replace("[yolo]", "antialiasing=1\ndilation=1\ngroups=1\nxnor=0\nstride_x=1\nstride_y=1\npad=0\n[yolo]", 1)


class Weights(Fuzzer):
    """Weights of networks that stay as they are."""

    name = "weights"
    fixed = frozenset(["net.cfg"])

    def seeds(self) -> list[Case]:
        return [{"net.cfg": text.encode(), "net.weights": _weights(text)} for text in NETWORKS.values()]

    def run(self, folder: Path, allow: Allow) -> None:
        from dnc.darknet.inspection import inspect_weights

        cfg, weights = folder / "net.cfg", folder / "net.weights"
        own = _network(cfg.read_text()).layers
        for lenient in (False, True):
            with allow():
                arrays = read_weights(weights, own, lenient=lenient)
                assert [sorted(each) for each in arrays] == [sorted(each) for each in random_arrays(own, 0)]
        with allow():
            inspection = inspect_weights(weights, own)
            json.dumps(inspection.to_json())
            inspection.table().text()
        with allow():
            write_partial(weights, own, folder / "partial.weights", max(1, len(own) // 2), lenient=True)
        with allow():
            if _coin(weights.read_bytes(), 6):
                engine = dnc.compile(cfg, weights, out=folder / "e", target="onnx", lenient=True)
                engine.forward(np.ones(engine.manifest.input_shape, np.float32))


@lru_cache
def _engines() -> tuple[dict[str, bytes], ...]:
    """Engine folders: of each kind of head and decoding, with states, for ONNX Runtime and OpenVINO."""
    made: list[dict[str, bytes]] = []
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, (name, target, options) in enumerate(_ENGINES):
            cfg = Path(scratch) / f"{name}.cfg"
            cfg.write_text(NETWORKS[name])
            cfg.with_suffix(".weights").write_bytes(_weights(NETWORKS[name]))
            cfg.with_suffix(".names").write_text("cat\ndog\n")
            out = Path(scratch) / f"{number}"
            with dnc.compile(cfg, target=target, out=out, lenient=True, verify=False, **options):
                made.append({path.name: path.read_bytes() for path in out.iterdir()})
    return tuple(made)


_ENGINES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("tiny", "onnx", {}),
    ("yolo", "onnx", {"input": "u8", "decode": "graph+nms"}),
    ("yolo", "onnx", {"decode": "graph"}),
    ("classifier", "onnx", {}),
    ("crnn", "onnx", {}),
    ("tiny", "openvino", {}),
    ("yolo", "openvino", {"input": "u8", "decode": "graph+nms"}),
    ("classifier", "openvino", {}),
)


def sealed(files: Case) -> Case:
    """An engine folder whose digests are right, as whoever wants to deceive would write it."""
    try:
        fields = json.loads(files["engine.json"])
        listed = dict(fields["files"])
    except (ValueError, RecursionError, LookupError, TypeError):
        return files
    for name, content in files.items():
        if isinstance(listed.get(name), dict):
            listed[name] = {**listed[name], "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    fields["files"] = listed
    fields.pop("sha256", None)
    fields["sha256"] = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    return {**files, "engine.json": json.dumps(fields).encode()}


class Engine(Fuzzer):
    """Engine folders, mostly with digests that are right; the libraries' own files are changed seldom."""

    name = "engine"

    def seeds(self) -> list[Case]:
        return list(_engines())

    def mutate(self, case: Case, other: Case, random: Random) -> Case:
        files = dict(case)
        names = [name for name in files if name != "engine.json"]
        if names and random.random() < 0.15:
            name = random.choice(names)
            # That what a library reads is damaged is seen by the digest, which stays.
            return {**files, name: change(name, files[name], random, b"")}
        if names and random.random() < 0.1:
            name = random.choice(names)
            files[name] = other.get(name, b"")
        elif names and random.random() < 0.1:
            del files[random.choice(names)]
        files["engine.json"] = change_json(files["engine.json"], random)
        return sealed(files) if random.random() < 0.9 else files

    def run(self, folder: Path, allow: Allow) -> None:
        with allow():
            _use(folder)


def _use(path: Path) -> None:
    """All that an application does with an engine."""
    with dnc.load(path) as engine:
        repr(engine)
        json.dumps(engine.manifest.to_json())
        if math.prod(engine.manifest.input_shape) < _SMALL:
            engine.forward(np.zeros(engine.manifest.input_shape, np.float32))
        engine(_IMAGE, confidence=0.01)


class Package(Fuzzer):
    """Packages: opened in place, and unpacked."""

    name = "package"

    def seeds(self) -> list[Case]:
        from dnc.runtime.package import package
        from tests.fuzz.running import write_case

        made: list[Case] = []
        for files in _engines():
            with tempfile.TemporaryDirectory() as scratch:
                write_case(files, Path(scratch) / "e")
                made.append({"net.dnc": package(Path(scratch) / "e", Path(scratch) / "net.dnc").read_bytes()})
        return made

    def run(self, folder: Path, allow: Allow) -> None:
        from dnc.runtime.package import unpack

        with allow():
            unpack(folder / "net.dnc", folder / "out")
        with allow():
            _use(folder / "net.dnc")
        assert not [path for path in folder.parent.iterdir() if path.name not in (folder.name, "log")]


class Image(Fuzzer):
    """Pictures of all kinds that stb_image and Pillow read."""

    name = "image"

    def seeds(self) -> list[Case]:
        import PIL.Image

        made: list[Case] = []
        whole = PIL.Image.fromarray(np.random.default_rng(1).integers(0, 256, (9, 12, 4), np.uint8))
        for suffix, mode, options in _KINDS:
            file = io.BytesIO()
            whole.convert(mode).save(file, _FORMATS.get(suffix, suffix), **options)
            made.append({f"a.{suffix}": file.getvalue()})
        deep = PIL.Image.fromarray(np.arange(99, dtype=np.uint16).reshape(9, 11) * 600)
        file = io.BytesIO()
        deep.save(file, "PNG")
        hdr = b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 2 +X 3\n" + bytes(range(24))
        arrays: list[Any] = [np.zeros((5, 4, 3), np.uint8), np.ones((4, 6), np.uint16), np.ones((3, 2, 7), np.float32)]
        for array in arrays:
            packed = io.BytesIO()
            np.save(packed, array)
            made.append({"a.npy": packed.getvalue()})
        frames = [whole.convert("P"), whole.rotate(90).convert("P")]
        gif = io.BytesIO()
        frames[0].save(gif, "GIF", save_all=True, append_images=frames[1:])
        return [*made, {"a.png": file.getvalue()}, {"a.hdr": hdr}, {"a.gif": gif.getvalue()}]

    def run(self, folder: Path, allow: Allow) -> None:
        from dnc.runtime.images import read_image

        (path,) = (each for each in folder.iterdir() if each.suffix)
        for channels in (1, 2, 3, 4):
            with allow():
                pixels = read_image(path, channels, exif=channels % 2 == 0)
                assert pixels.dtype in (np.uint8, np.uint16, np.float32)
                assert pixels.ndim in (2, 3)
                assert path.suffix == ".npy" or pixels.shape[2:] == ((channels,) if channels > 1 else ())
        with allow():
            read_image(path.read_bytes())


_KINDS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    *(("png", mode, {}) for mode in ("RGB", "RGBA", "L", "P", "1", "LA")),
    *(("jpg", mode, options) for mode, options in (("RGB", {}), ("L", {"progressive": True}), ("CMYK", {}))),
    *(("bmp", "RGB", {}), ("bmp", "P", {}), ("gif", "P", {})),
    *(("tga", "RGB", {}), ("tga", "RGBA", {"compression": "tga_rle"})),
    *(("ppm", "RGB", {}), ("pgm", "L", {}), ("tif", "RGB", {}), ("tif", "L", {"compression": "tiff_lzw"})),
    *(("webp", "RGB", {}), ("webp", "RGBA", {"lossless": True}), ("ico", "RGBA", {})),
)
_FORMATS = {"jpg": "JPEG", "tif": "TIFF", "pgm": "PPM"}


class Checkpoint(Fuzzer):
    """Checkpoints of PyTorch, safetensors and ONNX, imported into a cfg that stays as it is."""

    name = "checkpoint"
    fixed = frozenset(["net.cfg"])

    def seeds(self) -> list[Case]:
        from tests.zoo.importer.checkpoints import WRITERS
        from tests.zoo.importer.test_importer import Toy

        toy = Toy()
        sources = []
        with tempfile.TemporaryDirectory() as scratch:
            place = Path(scratch) / "x"
            for kind, suffix in (("zip", "pth"), ("legacy", "pkl"), ("safetensors", "safetensors")):
                sources.append((f"source.{suffix}", WRITERS[kind](place, toy.state).read_bytes()))
            for fold in (False, True):
                sources.append(("source.onnx", toy.onnx(place, fold=fold).read_bytes()))
        return [{"net.cfg": toy.cfg().encode(), name: content} for name, content in sources]

    def run(self, folder: Path, allow: Allow) -> None:
        from dnc.zoo.importer import import_weights

        (source,) = folder.glob("source.*")
        wishes: list[dict[str, Any]] = [{}, {"padding": "same", "lenient": True, "epsilon": 0.001}]
        for options in wishes:
            with allow():
                report = import_weights(source, folder / "net.cfg", folder / "out.weights", **options)
                json.dumps(report.to_json())
                report.table().text()


class Calibration(Fuzzer):
    """Tables of ranges, what is recorded beside weights, and recordings of bench."""

    name = "calibration"
    fixed = frozenset(["net.cfg"])

    def seeds(self) -> list[Case]:
        from dnc.graph.quantization import Range
        from dnc.quantization.calibration import Calibration as Table
        from dnc.quantization.tables import darknet_line, tensorrt_cache

        network = _network(TINY)
        with tempfile.TemporaryDirectory() as scratch:
            cfg = Path(scratch) / "net.cfg"
            cfg.write_text(TINY)
            network = Network.load(cfg)
        names = ["input", *(f"layer{layer.index:03}" for layer in network.layers)]
        ranges = {name: Range.symmetric(1.5 + place, -1.0, 1.5) for place, name in enumerate(names)}
        table = Table(network.digest, "kl", True, {}, {}, ranges)
        recorded = {"mean": [0.5], "std": [0.5], "crop": 0.875, "interpolation": "bicubic", "color": "rgb"}
        return [
            {"net.cfg": TINY.encode(), file: content}
            for file, content in (
                ("table.json", json.dumps(table.to_json()).encode()),
                ("table.cache", tensorrt_cache(table).encode()),
                ("table.txt", darknet_line(table, network).encode()),
                ("net.preprocess.json", json.dumps(recorded).encode()),
                ("recording.json", json.dumps(_RECORDING).encode()),
            )
        ]

    def run(self, folder: Path, allow: Allow) -> None:
        from dnc.bench.measure import read_recording
        from dnc.quantization.tables import read_table
        from dnc.zoo.recorded import read_recorded

        network = Network.load(folder / "net.cfg")
        for path in folder.glob("table.*"):
            with allow():
                read_table(path, network)
        for path in folder.glob("recording.json"):
            with allow():
                read_recording(path)
        with allow():
            read_recorded(folder / "net.weights")


_RECORDING = {
    "schema": 1,
    "settings": {"threads": 2, "batch": 1, "streams": 1, "seconds": 20.0},
    "machine": {"cpu": "x"},
    "figures": [],
    "rounds": {"seconds": {"yardstick": [0.002]}, "opening": [0], "waited": [0.0]},
}


class Data(Fuzzer):
    """.data files with their lists, names and labels, and annotations of COCO."""

    name = "data"

    def seeds(self) -> list[Case]:
        label = b"0 0.5 0.5 0.2 0.3\n1 0.1 0.2 0.05 0.06\n"
        coco = {
            "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}],
            "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 2, 10, 12], "area": 120, "iscrowd": 0}
            ],
        }
        return [
            {
                "obj.data": b"classes=2\ntrain=train.txt\nvalid=train.txt\nnames=obj.names\nlabels=obj.names\n",
                "train.txt": b"a.png\nb.png\n",
                "obj.names": b"cat\ndog\n",
                "a.txt": label,
                "b.txt": b"",
                "coco.json": json.dumps(coco).encode(),
            },
            {
                "obj.data": b"valid = train.txt\n",
                "train.txt": b"a.png 1\nb.png 0\n",
                "obj.names": b"n\n",
                "a.txt": label,
            },
        ]

    def run(self, folder: Path, allow: Allow) -> None:
        from dnc.evaluation import datasets, truth

        for name in ("a.png", "b.png"):
            (folder / name).write_bytes(b"")
        with allow():
            datasets.read_names(folder / "obj.names")
        with allow():
            data = datasets.read_data(folder / "obj.data")
            _ = data.classes
            for key in data.options:
                data.find(key)
        for key in ("train", "valid"):
            with allow():
                found = datasets.read_dataset(folder / "obj.data", key=key, limit=2, seed=1, skip_bad=True)
                truth.read_truth(found.entries, 2, allow_unlabelled=True)
        with allow():
            found = datasets.read_dataset(folder / "train.txt")
            truth.class_truth(found.entries, 2, labels=("a", "b"))
        with allow():
            truth.read_labels(folder / "a.txt", 2)
        if (folder / "coco.json").exists():
            with allow():
                truth.read_annotations(folder / "coco.json")


class Runtime(Engine):
    """Engine folders in the C runtime, under sanitizers of addresses and of undefined behaviour."""

    name = "runtime"
    file: ClassVar[str] = ""
    """Of a case, what is opened; the folder itself if nothing."""

    def missing(self) -> str:
        return "" if shutil.which("g++") and find_spec("openvino") else "needs g++ and openvino"

    def build(self) -> Path:
        from tests.embed.native import build_program

        return build_program(Path(__file__).with_name("runtime.cpp"), *_SANITIZERS)

    def seeds(self) -> list[Case]:
        return [files for files in _engines() if "model.xml" in files]

    def run(self, folder: Path, allow: Allow) -> None:
        with allow():
            status, _, message = _answer(self.program, folder / self.file).partition(" ")
            assert status != "6", message
            if status != "0":
                raise DncError(message)


class Packed(Runtime):
    """Packages in the C runtime, from their file and from memory, under sanitizers."""

    name = "packed"
    file = "net.dnc"

    def seeds(self) -> list[Case]:
        return [case for case in Package().seeds() if b"model.xml" in case["net.dnc"]]

    def mutate(self, case: Case, other: Case, random: Random) -> Case:
        return Fuzzer.mutate(self, case, other, random)


_SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")


@lru_cache
def _started(program: Path) -> subprocess.Popen[str]:
    """runtime.cpp, running; it may take as much memory as any case, and leaves leaks to valgrind."""
    options = "detect_leaks=0:detect_stack_use_after_return=1:max_allocation_size_mb=2048:hard_rss_limit_mb=4096"
    return subprocess.Popen(
        ["sh", "-c", 'ulimit -Sv unlimited; exec "$0"', str(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "ASAN_OPTIONS": options, "UBSAN_OPTIONS": "print_stacktrace=1"},
    )


def _answer(program: Path, folder: Path) -> str:
    process = _started(program)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{folder}\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        # What it complained of is where this process complains.
        os._exit(99)
    return line.rstrip("\n")


FUZZERS: dict[str, Fuzzer] = {
    each.name: each() for each in (Cfg, Weights, Engine, Package, Image, Checkpoint, Calibration, Data, Runtime, Packed)
}
"""All, by name."""
