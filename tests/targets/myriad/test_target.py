"""Target `myriad`: what is in the engine folder, what is refused, and how. The toolchain is a script, but for the tests
at the end, which want the real one (`dnc toolchain install myriad`)."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import dnc
from dnc.errors import BundleError, DncWarning, TargetError
from dnc.runtime.runners.myriad import process, toolchain
from dnc.targets.myriad.target import Myriad
from tests.conftest import Result
from tests.networks import NETWORKS, RECURRENT, REMEMBERING
from tests.patience import PATIENCE
from tests.remembering import noise

Write = Callable[..., Path]
Command = Callable[..., Result]
INSTALLED = toolchain.damage("myriad") == ""

HALF = 2e-2
"""float16 weights and an image of bytes: what an engine for the device may differ by, relative to the largest."""

COMPILER = """
import json, os, struct, sys
from pathlib import Path
request = json.load(sys.stdin)
if request["device"] == "MYRIAD":
    assert Path(request["libraries"]).name == "myriad"
    Path(request["blob"]).write_bytes(bytes(52) + struct.pack("<II", 9709, 60) + json.dumps(request).encode())
    dump = request["config"]["MYRIAD_DUMP_INTERNAL_GRAPH_FILE_NAME"]
    stage = 'label="[0 / 0] Stage x\\\\ltype = MyriadXHwOp\\\\lorigLayer = [\\\\l    name = layer001\\\\l]\\\\l"'
    Path(dump).write_text("digraph {\\n" + stage + "\\n}\\n")
    print(json.dumps({"peak": 1, "shapes": {}}))
else:
    import numpy, onnxruntime
    session = onnxruntime.InferenceSession(request["model"])
    shapes = {each.name: each.shape for each in session.get_inputs()}
    feeds = {name: numpy.fromfile(file, "f4").reshape(shapes[name]) for name, file in request["feeds"].items()}
    names = list(request["results"])
    outputs = dict(zip(names, session.run(names, feeds)))
    for name, array in outputs.items():
        array.astype("f4").tofile(request["results"][name])
    print(json.dumps({"peak": 1, "shapes": {name: array.shape for name, array in outputs.items()}}))
"""


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script in place of the toolchain; it may be changed."""
    script = tmp_path / "compiler.py"
    script.write_text(COMPILER, encoding="utf-8")
    monkeypatch.setattr(process, "_CHILD", script)
    monkeypatch.setattr(toolchain, "damage", lambda name, thorough=False: "")
    return script


def request_of(folder: Path) -> dict[str, object]:
    """What the script was asked for."""
    request: dict[str, object] = json.loads((folder / "model.blob").read_bytes()[60:])
    return request


def test_folder(compiler: Path, write: Write, tmp_path: Path) -> None:
    cfg = write("tiny")
    engine = dnc.compile(cfg, target="myriad", out=tmp_path / "e", options={"shaves": "4", "color": "rgb"})
    files = {path.name for path in engine.folder.iterdir()}
    assert files == {"engine.json", "model.blob", "model.json", "model.onnx", "stages.json", "yolo.json"}
    manifest = engine.manifest
    assert (manifest.batch, manifest.options) == (1, {"shaves": "4", "color": "rgb"})
    assert manifest.tools["onnxruntime-openvino"] == "1.12.0"
    about = json.loads((engine.folder / "model.json").read_text(encoding="utf-8"))
    assert (about["shaves"], about["color"]) == (4, "rgb")
    assert about["inputs"] == [{"name": "input", "tensor": "input", "shape": [1, 3, 16, 16], "precision": "U8"}]
    assert about["outputs"] == [{"name": "layer002", "tensor": "layer002", "shape": [1, 14, 8, 8], "precision": "FP16"}]
    stages = json.loads((engine.folder / "stages.json").read_text(encoding="utf-8"))
    (layer,) = stages["layers"]
    assert layer["where"].startswith("tiny.cfg:")
    assert layer["hardware"] == 1
    assert manifest.report["blob"].endswith("MB for 4 shaves; image in bytes, rgb")
    assert manifest.report["stages"] == "1 hardware, 0 software, 0 copies; see stages.json"
    assert manifest.report["boxes"] == "yolo.json is for DepthAI's YoloDetectionNetwork"
    assert manifest.report["numerics"].startswith("with float16 weights outputs are within 0.")
    asked = request_of(engine.folder)
    assert asked["precisions"] == {"input": "U8", "layer002": "FP16"}


def test_same_bytes(compiler: Path, write: Write, tmp_path: Path) -> None:
    """But for the blob, which is the real compiler's."""
    cfg = write("tiny")
    first, second = (dnc.compile(cfg, target="myriad", out=tmp_path / name).folder for name in ("e", "f"))
    for path in first.iterdir():
        if path.name not in ("engine.json", "model.blob"):
            assert path.read_bytes() == (second / path.name).read_bytes()


@pytest.mark.parametrize("options", [{}, {"input": "fp16"}, {"color": "rgb"}])
def test_engine_runs_on_the_cpu(options: dict[str, str], compiler: Path, write: Write, tmp_path: Path) -> None:
    """With a warning that it is no device, and the numbers of any other engine."""
    cfg = write("yolo")
    engine = dnc.compile(cfg, target="myriad", out=tmp_path / "e", options=options)
    plain = dnc.compile(cfg, target="onnx", out=tmp_path / "f", batch=1)
    x = np.random.default_rng(0).random((3, 32, 32), np.float32)
    with pytest.warns(DncWarning, match="no Myriad X: running on the toolchain's CPU plugin"):
        found = engine.forward(x)
    for got, expected in zip(found, plain.forward(x), strict=True):
        assert np.abs(got - expected).max() < HALF * np.abs(expected).max()
    assert engine.device == "CPU plugin of the Myriad X toolchain"


def test_states(compiler: Path, write: Write, tmp_path: Path) -> None:
    """Recurrent networks keep their states outside, in float16."""
    engine = dnc.compile(write(RECURRENT[0]), target="myriad", out=tmp_path / "e")
    precisions = request_of(engine.folder)["precisions"]
    assert isinstance(precisions, dict)
    assert set(engine.manifest.states) <= set(precisions)
    states: dict[str, np.ndarray] = {}
    with pytest.warns(DncWarning):
        engine.forward(np.zeros((1, *engine.manifest.input_shape), np.float32), states)
    assert set(states) == set(engine.manifest.states)


def test_frames_are_remembered(compiler: Path, write: Write, tmp_path: Path) -> None:
    """Images have the states of those before: what `forward` gives, step by step."""
    cfg = write("detector", REMEMBERING["detector"], seed=1)
    engine = dnc.compile(cfg, target="myriad", out=tmp_path / "e")
    states: dict[str, np.ndarray] = {}
    expected = []
    with pytest.warns(DncWarning):
        _ = engine.session
    for frame in noise(3):
        image = engine.inputs.prepare(frame)
        outputs = engine.forward(image.array, states)
        expected.append(engine.postprocess(outputs, image.size, confidence=0.22))
        states = {name: states[name] for name in engine.manifest.carried}
    assert engine.detect(noise(3), confidence=0.22) == expected
    engine.reset()
    assert engine.detect(noise(3)[1], confidence=0.22) != expected[1]


def test_no_numerics(compiler: Path, write: Write, tmp_path: Path) -> None:
    engine = dnc.compile(write("tiny"), target="myriad", out=tmp_path / "e", options={"numerics": "no"})
    assert "numerics" not in engine.manifest.report


THROW = r"""
sys.stderr.write('terminate called\n  what():  [ GENERAL_ERROR ]\n')
sys.stderr.write('/x/a.cpp:5 Failed to compile layer "layer000": unsupported layer type "Sign"\n')
sys.stderr.flush()
os.abort()
"""


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        (THROW, TargetError, r'refuses the network: Failed to compile layer "layer000"(.|\n)*at tiny\.cfg:6 \[convol'),
        ("os.kill(os.getpid(), 9)", TargetError, "the compiler was ended by SIGKILL"),
        ("signal.pause()", TargetError, r"took more than 0\.2 s and was stopped"),
        ('print(\'{"errno": 28, "error": "No space left on device"}\')', BundleError, "No space left on device"),
        (COMPILER.replace('stage + "\\n}\\n"', "stage"), BundleError, "list of stages is cut off"),
    ],
)
def test_failures_leave_nothing(
    code: str, error: type[Exception], message: str, compiler: Path, write: Write, tmp_path: Path
) -> None:
    cfg = write("tiny")
    before = sorted(tmp_path.iterdir())
    head = "import json, os, signal, struct, sys\nrequest = json.load(sys.stdin)\n"
    compiler.write_text(code if code.startswith("\nimport") else head + code, encoding="utf-8")
    # What hangs does so at any limit, what ends may take as long as it likes.
    seconds = "0.2" if "pause" in code else str(PATIENCE)
    with pytest.raises(error, match=message):
        dnc.compile(cfg, target="myriad", out=tmp_path / "e", options={"seconds": seconds, "numerics": "no"})
    assert sorted(tmp_path.iterdir()) == before


def test_what_the_device_cannot_run(compiler: Path, write: Write, tmp_path: Path) -> None:
    cfg = write("tiny")
    for options, message in (
        ({"input": "u8"}, "leave --input out"),
        ({"decode": "graph+nms"}, "the device does not suppress boxes: use --decode graph or host"),
        ({"batch": 2}, "the blob would take one image"),
    ):
        with pytest.raises(TargetError, match=f"target myriad cannot run this network:\n    .*{message}"):
            dnc.compile(cfg, target="myriad", out=tmp_path / "e", **options)
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str, compiler: Path, write: Write, tmp_path: Path) -> None:
    """What dnc makes of every section is known to the compiler."""
    engine = dnc.compile(write(name), target="myriad", out=tmp_path / "e", options={"numerics": "no"}, verify=False)
    assert engine.manifest.target == "myriad"


def test_options() -> None:
    target = Myriad({"shaves": "16", "iou": "0.6"})
    assert (target.options["shaves"], target.options["iou"], target.options["confidence"]) == (16, 0.6, 0.25)
    for name, value, allowed in (
        ("shaves", "0", "a whole number from 1 to 16"),
        ("shaves", "17", "a whole number from 1 to 16"),
        ("shaves", "x", "a whole number from 1 to 16"),
        ("color", "yuv", "one of bgr, rgb"),
        ("iou", "2", "a number up to 1"),
        ("iou", "nan", "a positive number"),
        ("seconds", "-1", "a positive number"),
        ("MYRIAD_HW_DILATION", "1", "YES or NO"),
    ):
        with pytest.raises(TargetError, match=f"option {name}={value} of target myriad is not {allowed}"):
            Myriad({name: value})
    with pytest.raises(TargetError, match=r"no option 'shavs'\n  hint: did you mean 'shaves'\?"):
        Myriad({"shavs": "6"})


def test_compiler_settings(compiler: Path, write: Write, tmp_path: Path, command: Command) -> None:
    """Keys of the compiler go to it as they are; --shaves is an option like the others."""
    cfg = write("tiny")
    arguments = ("--shaves", "3", "--option", "MYRIAD_HW_DILATION=YES", "--option", "MYRIAD_TILING_CMX_LIMIT_KB=64")
    result = command("compile", cfg, "-t", "myriad", "-o", tmp_path / "e", *arguments)
    assert (result.code, result.err) == (0, "")
    assert "  blob: 0.0 MB for 3 shaves; image in bytes, bgr\n" in result.out
    config = request_of(tmp_path / "e")["config"]
    assert isinstance(config, dict)
    assert (config["MYRIAD_HW_DILATION"], config["MYRIAD_TILING_CMX_LIMIT_KB"]) == ("YES", "64")
    assert (config["MYRIAD_NUMBER_OF_SHAVES"], config["MYRIAD_NUMBER_OF_CMX_SLICES"]) == ("3", "3")
    listed = command("targets", "myriad").out
    assert all(option.name in listed for option in Myriad.known_options)


def test_without_the_toolchain(
    compiler: Path, write: Write, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the command that installs it; an engine still says what it is, but does not run."""
    cfg = write("tiny")
    engine = dnc.compile(cfg, target="myriad", out=tmp_path / "e")
    monkeypatch.undo()
    monkeypatch.setenv("DNC_CACHE", str(tmp_path / "empty"))
    result = command("compile", cfg, "-t", "myriad", "-o", tmp_path / "f")
    assert result.code == 1
    assert "target myriad needs the Myriad X toolchain, which is not installed" in result.err
    assert "`dnc toolchain install myriad`" in result.err
    opened = dnc.load(engine.folder)
    assert opened.labels == ()
    with pytest.raises(TargetError, match=r"needs a device, or the Myriad X toolchain(.|\n)*load model\.blob"):
        opened.forward(np.zeros((3, 16, 16), np.float32))


def test_half_removed(write: Write, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which file it is, and what mends it."""
    monkeypatch.setenv("DNC_CACHE", str(tmp_path))
    place = tmp_path / "toolchains" / "myriad"
    place.mkdir(parents=True)
    result = command("compile", write("tiny"), "-t", "myriad", "-o", tmp_path / "e")
    assert (result.code, (tmp_path / "e").exists()) == (1, False)
    assert f"libopenvino.so in {place} is gone" in result.err
    assert "`dnc toolchain install myriad`" in result.err


def test_changed_after_it_was_installed(
    compiler: Path, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes alone do not show it; compiling looks closer."""
    monkeypatch.setattr(toolchain, "damage", lambda name, thorough=False: "libtbb.so.2 is not what it was" * thorough)
    with pytest.raises(TargetError, match=r"toolchain is damaged: libtbb\.so\.2 is not what it was"):
        dnc.compile(write("tiny"), target="myriad", out=tmp_path / "e")


def test_damaged_description(compiler: Path, write: Write, tmp_path: Path) -> None:
    engine = dnc.compile(write("tiny"), target="myriad", out=tmp_path / "e")
    (engine.folder / "model.json").write_text("{}", encoding="utf-8")
    with pytest.warns(DncWarning), pytest.raises(TargetError, match=r"cannot read model\.json"):
        Myriad().runner().open(engine.folder)


real = pytest.mark.skipif(not INSTALLED, reason="the toolchain is not installed: dnc toolchain install myriad")


@real
@pytest.mark.parametrize("name", ["tiny", "yolo"])
def test_blob(name: str, write: Write, tmp_path: Path) -> None:
    """The real compiler: the same bytes twice, a whole blob, numbers within 2 % of float32's."""
    cfg = write(name)
    engines = [dnc.compile(cfg, target="myriad", out=tmp_path / out, options={"shaves": "2"}) for out in "ef"]
    blob = (engines[0].folder / "model.blob").read_bytes()
    assert blob == (engines[1].folder / "model.blob").read_bytes()
    magic, size = struct.unpack_from("<II", blob, 52)
    assert magic == 9709
    assert 0 < size <= len(blob)
    plain = dnc.compile(cfg, target="onnx", out=tmp_path / "g", batch=1)
    x = np.random.default_rng(0).random((1, *plain.manifest.input_shape), np.float32)
    with pytest.warns(DncWarning):
        found = engines[0].forward(x)
    for got, expected in zip(found, plain.forward(x), strict=True):
        assert np.abs(got - expected).max() < HALF * np.abs(expected).max()


@real
def test_depthai_parses_it(write: Write, tmp_path: Path) -> None:
    """What an OAK camera's own library reads in the blob is what was asked for."""
    depthai = pytest.importorskip("depthai")
    engine = dnc.compile(write("tiny"), target="myriad", out=tmp_path / "e", options={"shaves": "5"})
    blob = depthai.OpenVINO.Blob(str(engine.folder / "model.blob"))
    assert (blob.numShaves, blob.numSlices) == (5, 5)
    (image,), (output,) = blob.networkInputs.items(), blob.networkOutputs.items()
    assert (image[0], image[1].dataType.name, list(image[1].dims)) == ("input", "U8F", [16, 16, 3, 1])
    assert (output[0], output[1].dataType.name, list(output[1].dims)) == ("layer002", "FP16", [8, 8, 14, 1])


@real
def test_the_compiler_s_own_words(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the table of operators would have caught reaches the user with the section it is from."""
    monkeypatch.setattr(Myriad, "unsupported", lambda self, model: [])
    cfg = write("selu", NETWORKS["tiny"].replace("activation=leaky", "activation=selu"))
    with pytest.raises(TargetError, match=r'unsupported layer type "Selu"(.|\n)*selu\.cfg:6 \[convolutional\] #0'):
        dnc.compile(cfg, target="myriad", out=tmp_path / "e", skip=["fuse-activation"])
    assert not (tmp_path / "e").exists()
