"""Sources of `dnc import`: that all formats give the same units, and that nothing in a file is trusted or run."""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest

from dnc.errors import WeightsError
from dnc.zoo.importer.checkpoint import open_checkpoint
from dnc.zoo.importer.tensors import Checkpoint, Unit
from tests.zoo.importer.checkpoints import WRITERS, Raw, Stored, legacy, pickled, safetensors, stored_bytes, zipped

Write = Callable[[Path, Any], Path]

STATE = {
    "stem.conv.weight": np.arange(54, dtype=np.float32).reshape(2, 3, 3, 3),
    "stem.bn.weight": np.array([1.5, 2], np.float32),
    "stem.bn.bias": np.array([-1, 1], np.float32),
    "stem.bn.running_mean": np.array([0.25, 0.5], np.float32),
    "stem.bn.running_var": np.array([3, 4], np.float32),
    "stem.bn.num_batches_tracked": np.array(7),
    "fc.weight": np.array([[1, 2]], np.float32),
    "fc.bias": np.array([5], np.float32),
    "scale": np.array([2, 3], np.float32),
}


def read(path: Path) -> tuple[Checkpoint, dict[str, Any]]:
    """The checkpoint, and the arrays of its units by name."""
    with open_checkpoint(path) as checkpoint:
        return checkpoint, {t.name: t.array() for unit in checkpoint.units for t in unit.tensors()}


def refused(path: Path) -> WeightsError:
    """The error for a file that cannot be read to its end."""
    with pytest.raises(WeightsError) as caught:
        read(path)
    assert str(path) in str(caught.value) or caught.value.where is None
    return caught.value


@pytest.mark.parametrize("kind", WRITERS)
def test_formats_give_the_same_units(tmp_path: Path, kind: str) -> None:
    checkpoint, arrays = read(WRITERS[kind](tmp_path / "x", STATE))
    by_name = {unit.name: unit for unit in checkpoint.units}
    assert {name: unit.kind for name, unit in by_name.items()} == {
        "stem.conv": "convolution",
        "stem.bn": "batchnorm",
        "fc": "linear",
    }
    assert by_name["stem.conv"].kernel == (2, 3, 3, 3)
    assert by_name["fc"].kernel == (1, 2, 1, 1)
    assert (by_name["fc"].parent, by_name["stem.bn"].parent) == ("", "stem")
    assert checkpoint.rest == ("scale",)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, STATE[name])
    assert len(arrays) == 7
    assert checkpoint.ordered == (kind != "safetensors")
    assert checkpoint.norms == ({"stem.conv": "stem.bn"} if checkpoint.ordered else {})


@pytest.mark.parametrize("kind", WRITERS)
def test_other_floats(tmp_path: Path, kind: str) -> None:
    exact = np.array([[1.5, -0.25], [3, 2**-100]])
    half = exact.astype(np.float16)
    brain = (exact.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    state = {
        "a.weight": exact,
        "b.weight": half,
        "c.weight": Stored(brain.reshape(-1), (2, 2), (2, 1), dtype="BF16"),
    }
    _, arrays = read(WRITERS[kind](tmp_path / "x", state))
    assert [arrays[name].dtype for name in state] == [np.float64, np.float32, np.float32]
    np.testing.assert_array_equal(arrays["a.weight"], exact)
    np.testing.assert_array_equal(arrays["b.weight"], half)
    # Powers of two and few digits are bfloat16's own.
    np.testing.assert_array_equal(arrays["c.weight"], exact)


@pytest.mark.parametrize("write", [zipped, legacy])
def test_tensors_are_views_of_storages(tmp_path: Path, write: Write) -> None:
    storage = np.arange(24, dtype=np.float32)
    state = {
        "last.weight": Stored(storage, (2, 3, 2, 2), (12, 1, 6, 3)),
        "part.weight": Stored(storage, (3, 4), (4, 1), 12),
        "same.weight": Stored(storage, (2, 5), (0, 1), 3),
        "one.weight": Stored(storage, (1, 2), (2**70, 1)),
        "none.weight": Stored(storage, (0, 2), (2, 1), 24),
    }
    _, arrays = read(write(tmp_path / "x", state))
    np.testing.assert_array_equal(arrays["last.weight"], storage.reshape(2, 2, 2, 3).transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(arrays["part.weight"], storage[12:].reshape(3, 4))
    np.testing.assert_array_equal(arrays["same.weight"], [storage[3:8]] * 2)
    np.testing.assert_array_equal(arrays["one.weight"], [[0, 1]])
    assert arrays["none.weight"].shape == (0, 2)


@pytest.mark.parametrize("write", [zipped, legacy])
@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (Stored(np.zeros(6, np.float32), (2, 4), (4, 1)), "reaches to element 8 of a storage of 6"),
        (Stored(np.zeros(6, np.float32), (2, 3), (3, 1), 1), "reaches to element 7 of a storage of 6"),
        (Stored(np.zeros(6, np.float32), (2, 3), (-3, 1), 3), "in a way that torch never does"),
        (Stored(np.zeros(6, np.float32), (2, 3), (1,)), "in a way that torch never does"),
        (Stored(np.zeros(6, np.float32), (2**40, 2**40), (1, 1)), "reaches to element"),
    ],
)
def test_views_beyond_their_storage(tmp_path: Path, write: Write, stored: Stored, message: str) -> None:
    assert message in refused(write(tmp_path / "x", {"a.weight": stored})).message


def test_storages_must_have_their_size(tmp_path: Path) -> None:
    for content, message in ((bytes(12), "the file has 12"), (bytes(64), "the file has 64")):
        path = zipped(tmp_path / "x", {"a.weight": np.zeros((2, 2), np.float32)}, members={"data/0": content})
        assert message in refused(path).message
    path = zipped(tmp_path / "x", pickled({"a.weight": np.zeros((2, 2), np.float32)}))
    assert "the file has none" in refused(path).message


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    storage = np.zeros(1 << 24, np.float32)
    path = zipped(tmp_path / "x", {"a.weight": Stored(storage, (2, 2), (2, 1))}, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    import tracemalloc

    tracemalloc.start()
    _, arrays = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert arrays["a.weight"].shape == (2, 2)
    # The storage would be 64 MiB.
    assert peak < 8 << 20


def test_members_are_stored_or_deflated(tmp_path: Path) -> None:
    """A member packed by LZMA says itself how much memory unpacking it takes."""
    path = zipped(tmp_path / "x", {"a.weight": np.zeros((2, 2), np.float32)}, compression=zipfile.ZIP_LZMA)
    content = path.read_bytes()
    # The size of the dictionary, in the properties of the first member.
    place = content.index(b"\x5d\0\0", 30) + 1
    path.write_bytes(content[:place] + b"\xff\xff\xff\xff" + content[place + 4 :])
    assert "packed by another method than deflate" in refused(path).message


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def attacks(canary: str) -> dict[str, tuple[bytes, str]]:
    """Pickles that would create the file `canary` or change dnc if they were run, and what is said of each."""
    shell = _text(f"touch {canary}")
    python = _text(f"open({canary!r}, 'w')")
    return {
        "os.system": (_global("os", "system") + b"(" + shell + b"tR.", "'os.system'"),
        "posix.system": (_global("posix", "system") + b"(" + shell + b"tR.", "'posix.system'"),
        "eval": (_global("builtins", "eval") + b"(" + python + b"tR.", "'builtins.eval'"),
        "exec of Python 2": (_global("__builtin__", "eval") + b"(" + python + b"tR.", "eval'"),
        "stack": (_text("os") + _text("system") + b"\x93(" + shell + b"tR.", "'os.system'"),
        "stack through dots": (_text("torch._utils") + _text("os.system") + b"\x93(" + shell + b"tR.", "os.system'"),
        "instance": (b"(" + shell + b"ios\nsystem\n.", "'os.system'"),
        "object": (b"(" + _global("os", "system") + shell + b"o.", "'os.system'"),
        "new object": (_global("subprocess", "Popen") + b"(" + shell + b"t\x81.", "'subprocess.Popen'"),
        "torch's own": (_global("torch", "load") + b"(" + shell + b"tR.", "'torch.load'"),
        "torch.hub": (_global("torch.hub", "load") + b"(" + shell + b"tR.", "'torch.hub.load'"),
        "storage's loader": (_global("torch.storage", "_load_from_bytes") + b"(" + shell + b"tR.", "_load_from_bytes'"),
        "nested": (
            _global("torch._utils", "_rebuild_parameter") + b"(" + _global("os", "system") + b"(" + shell + b"tRtR.",
            "'os.system'",
        ),
        "getattr": (_global("builtins", "getattr") + b"(" + shell + b"tR.", "'builtins.getattr'"),
        "in a persistent id": (b"(" + _global("os", "system") + b"(" + shell + b"tRtQ.", "'os.system'"),
        "extension": (b"\x82\x01.", "EXT1"),
        "out of band": (b"\x97.", "NEXT_BUFFER"),
        "called storage": (_global("torch", "FloatStorage") + b"(" + shell + b"tR.", "no function"),
        "persistent text": (b"Pos.system\n.", "that torch never does"),
        "persistent number": (b"K\x01Q.", "that torch never does"),
        "persistent type": (b"(" + _text("storage") + _text("FloatStorage") + _text("0") * 2 + b"K\x01tQ.", "never"),
        "persistent count": (
            b"(" + _text("storage") + _global("torch", "FloatStorage") + _text("0") * 2 + b"J\xff\xff\xff\xfftQ.",
            "never does",
        ),
        "attributes of a function": (
            _global("torch._utils", "_rebuild_tensor_v2") + b"}" + _text("_call") + shell + b"sb.",
            "changes what is no state",
        ),
        "slots of a function": (
            _global("torch._utils", "_rebuild_tensor_v2") + b"(N}" + _text("_call") + shell + b"stb.",
            "changes what is no state",
        ),
        "slots of a type": (
            _global("torch", "FloatStorage") + b"(N}" + _text("find_class") + shell + b"stb.",
            "changes what is no state",
        ),
        "memo": (b"}r\xff\xff\xff\x7fj\xff\xff\xff\x3f.", "it has no object 1073741823"),
        "endless tuples": (b"}K\x01" + b"\x85" * 600_000 + b"K\x01s.", "more than 500,000 instructions"),
        "deep tuples": (b"}K\x01" + b"\x85" * 400_000 + b"K\x01s.", "a key is neither text nor a number"),
        "deep tuples made by a call": (
            _global("torch", "Size") + b"q\x000Nq\x010" + b"(h\x00]h\x01aoq\x010" * 300_000 + b"}h\x01Ns.",
            "uses OBJ",
        ),
        "shared tuples": (b"Nq\x010" + b"h\x01h\x01h\x01\x87q\x010" * 60 + b"}h\x01Ns.", "neither text nor a number"),
        "shared tuples in a set": (
            b"Nq\x010" + b"h\x01h\x01h\x01\x87q\x010" * 60 + b"(h\x01\x91.",
            "no dict of tensors",
        ),
        "shared tuples as a storage": (b"Nq\x010" + b"h\x01h\x01h\x01\x87q\x010" * 60 + b"h\x01Q.", "torch never does"),
        "one list, copied": (
            b"](" + b"N" * 300_000 + b"eq\x000(" + (_global("torch", "Size") + b"h\x00\x85R") * 9 + b"l.",
            "more than 500,000 instructions",
        ),
        "a list in itself": (b"]q\x00h\x00a.", "no dict of tensors"),
        "a dict in itself": (b"}q\x00" + _text("model") + b"h\x00s.", "no dict of tensors"),
        "a long number": (b"\x8b" + struct.pack("<i", 1 << 22) + b"\x7f" * (1 << 22) + b".", "more than 127 bits"),
        "digits": (b"I" + b"9" * 5000 + b"\n.", "is damaged"),
        "a later protocol": (b"\x95" + bytes(8) + b"\x80\x09" + b"K\x01.", "no dict of tensors"),
        "no end": (b"}", "is damaged"),
        "no stack": (b"R.", "is damaged"),
        "bytes that are not there": (b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", "is damaged"),
        "only numbers": (b"K\x01.", "no dict of tensors"),
    }


@pytest.mark.parametrize("write", [zipped, legacy])
@pytest.mark.parametrize("name", attacks(""))
def test_pickles_are_not_run(tmp_path: Path, write: Write, name: str) -> None:
    canary = tmp_path / "canary"
    pickle, message = attacks(str(canary))[name]
    error = refused(write(tmp_path / "x", b"\x80\x02" + pickle))
    assert message in error.message
    assert not canary.exists()
    # And dnc still reads what it should.
    assert len(read(write(tmp_path / "y", STATE))[1]) == 7


def test_the_attacks_would_work(tmp_path: Path) -> None:
    """Python's own unpickler runs them: the tests above test something."""
    import pickle

    for name in ("os.system", "eval", "stack", "instance", "object", "nested"):
        canary = tmp_path / name.replace(".", "")
        code = attacks(str(canary))[name][0].replace(
            _global("torch._utils", "_rebuild_parameter"), _global("copy", "copy")
        )
        pickle.loads(b"\x80\x02" + code)
        assert canary.exists(), name


def test_attributes_of_a_state_dict_are_passed_over(tmp_path: Path) -> None:
    metadata = Raw(pickled(STATE)[2:-1] + b"}" + _text("_metadata") + _text("x") + b"sb")
    path = zipped(tmp_path / "x", b"\x80\x02" + metadata.code + b".", members=_members(STATE))
    assert len(read(path)[1]) == 7


def _members(state: dict[str, Any]) -> dict[str, bytes]:
    return {f"data/{key}": stored_bytes(array.reshape(-1)) for key, array in enumerate(state.values())}


def test_a_whole_module_is_refused_by_name(tmp_path: Path) -> None:
    error = refused(zipped(tmp_path / "x", b"\x80\x02ctorchvision.models\nResNet\n)\x81."))
    assert "'torchvision.models.ResNet', which was not run" in error.message
    assert "state_dict()" in error.hint


def test_state_dicts_within_checkpoints(tmp_path: Path) -> None:
    wrapped = {f"module.{name}": array for name, array in STATE.items()}
    checkpoint, _ = read(
        zipped(tmp_path / "x", {"epoch": 3, "ema": STATE, "model": {"state_dict": wrapped}, "lr": 0.1})
    )
    assert [unit.name for unit in checkpoint.units] == ["stem.conv", "stem.bn", "fc"]
    assert checkpoint.notes == (
        "the state_dict is 'model.state_dict' of the checkpoint",
        "'module.' before every name is passed over",
    )
    assert checkpoint.find("module.fc") is checkpoint.find("fc") is checkpoint.units[2]
    assert "no dict of tensors" in refused(zipped(tmp_path / "x", {"a": {"b": 1}, "c": {"d": 1}})).message


def test_torchscript_and_other_zips(tmp_path: Path) -> None:
    assert "TorchScript" in refused(zipped(tmp_path / "x", STATE, members={"constants.pkl": b""})).message
    assert "TorchScript" in refused(zipped(tmp_path / "x", STATE, members={"code/__torch__.py": b""})).message
    assert "big-endian" in refused(zipped(tmp_path / "x", STATE, members={"byteorder": b"big"})).message
    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        archive.writestr("weights.npy", b"")
    assert "no PyTorch checkpoint" in refused(tmp_path / "x").message


@pytest.mark.parametrize("kind", [*WRITERS, "onnx"])
def test_truncated_files(tmp_path: Path, kind: str) -> None:
    whole = tmp_path / "whole"
    if kind == "onnx":
        save(whole, [onnx.helper.make_node("Conv", ["x", "w"], ["y"])], w=np.ones((2, 3, 3, 3)))
    else:
        WRITERS[kind](whole, STATE)
    data = whole.read_bytes()
    for length in (*range(0, len(data), max(1, len(data) // 100)), len(data) - 1):
        (tmp_path / "x").write_bytes(data[:length])
        refused(tmp_path / "x")


@pytest.mark.parametrize("kind", WRITERS)
def test_damaged_files_raise_nothing_else(tmp_path: Path, kind: str) -> None:
    data = bytearray(WRITERS[kind](tmp_path / "x", STATE).read_bytes())
    generator = np.random.default_rng(0)
    read_anyway = 0
    for _ in range(150):
        changed = bytearray(data)
        for place in generator.integers(0, len(data), 3):
            changed[place] = generator.integers(0, 256)
        (tmp_path / "x").write_bytes(changed)
        try:
            read(tmp_path / "x")
            read_anyway += 1
        except WeightsError:
            pass
    # What is changed is often a weight, which may have any value; a zip has a checksum for each.
    assert read_anyway < 150


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"[net]\nwidth=3\n", "neither a PyTorch checkpoint nor safetensors nor ONNX"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of git-lfs"),
        (b"\x89HDF\r\n\x1a\n" + bytes(20), "Keras' HDF5"),
        (b"\x1c\0\0\0TFL3" + bytes(20), "TensorFlow Lite"),
        (struct.pack("<3iQ", 0, 2, 5, 0) + bytes(80), "neither"),
        (struct.pack("<Q", 1 << 60) + b"{}", "does not fit the file's 10"),
        (struct.pack("<Q", 99_000_000) + b"{}", "does not fit the file's 10"),
        (b"\x80\x04K\x01.", "no PyTorch checkpoint"),
        (b"\x08\x07\x12\x04text", "no nodes"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, message: str) -> None:
    for name in ("x", "x.onnx", "x.pth"):
        (tmp_path / name).write_bytes(content)
        if name == "x.onnx" and message.startswith("neither"):
            message = "cannot be read as ONNX"
        assert message in refused(tmp_path / name).message
        message = message.replace("cannot be read as ONNX", "neither")


def test_no_file(tmp_path: Path) -> None:
    assert "a folder" in refused(tmp_path).message
    with pytest.raises(WeightsError, match="No such file"), open_checkpoint(tmp_path / "missing"):
        pass


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 12]}, "takes 12 bytes"),
        ({"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 1 << 62]}, "ends at byte"),
        ({"dtype": "F32", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 16]}, "takes 16 bytes"),
        ({"dtype": "F32", "shape": [-2, -2], "data_offsets": [0, 16]}, "whole numbers"),
        ({"dtype": "F32", "shape": [2.0, 2], "data_offsets": [0, 16]}, "whole numbers"),
        ({"dtype": "F32", "shape": [2, 2], "data_offsets": [16, 0]}, "takes -16 bytes"),
        ({"dtype": "Q4", "shape": [2, 2], "data_offsets": [0, 16]}, "unknown type"),
        ({"dtype": ["F32"], "shape": [2, 2], "data_offsets": [0, 16]}, "unknown type"),
        ({"shape": [2, 2]}, "says nothing useful"),
        ([], "says nothing useful"),
        ({"dtype": "F32", "shape": [3], "data_offsets": [4, 16]}, "leaves a hole"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "overlaps|are left|leaves a hole"),
    ],
)
def test_safetensors_headers(tmp_path: Path, entry: object, message: str) -> None:
    state = {"a.weight": np.zeros((2, 2), np.float32)}
    with pytest.raises(WeightsError, match=message):
        read(safetensors(tmp_path / "x", state, **{"a.weight": entry}))


def test_safetensors_may_not_overlap(tmp_path: Path) -> None:
    state = {name: np.zeros((2, 2), np.float32) for name in ("a.weight", "b.weight")}
    entry = {"dtype": "F32", "shape": [2, 2], "data_offsets": [8, 24]}
    assert "overlaps" in refused(safetensors(tmp_path / "x", state, **{"b.weight": entry})).message


@pytest.mark.parametrize("kind", WRITERS)
def test_half_modules_and_integers(tmp_path: Path, kind: str) -> None:
    write = WRITERS[kind]
    state: dict[str, Any] = {k: v for k, v in STATE.items() if k != "stem.bn.running_var"}
    assert "running_mean but no running_var" in refused(write(tmp_path / "x", state)).message
    assert "is I8, not floats" in refused(write(tmp_path / "x", {"a.weight": np.zeros((2, 2), np.int8)})).message
    state = {**STATE, "stem.bn.bias": np.zeros(3, np.float32)}
    assert "has shape (3,), not (2,)" in refused(write(tmp_path / "x", state)).message
    state = {**STATE, "fc.weight": np.array([[1, np.nan]], np.float32)}
    assert "'fc.weight' of the source holds nan at [0, 1]" in refused(write(tmp_path / "x", state)).message
    assert "none of the source's 1 tensors" in refused(write(tmp_path / "x", {"a": np.zeros(2, np.float32)})).message


def _state(*names: str) -> dict[str, Any]:
    """Convolutions and batch normalisations (whose names have an n) of 2 channels, in this order."""
    state: dict[str, Any] = {}
    for name in names:
        if "n" in name.rpartition(".")[2].replace("conv", ""):
            state |= {
                f"{name}.{leaf}": np.ones(2, np.float32) for leaf in ("weight", "bias", "running_mean", "running_var")
            }
        else:
            state[f"{name}.weight"] = np.ones((2, 2, 1, 1), np.float32)
    return state


@pytest.mark.parametrize(
    ("names", "partners"),
    [
        (("conv1", "bn1", "conv2", "bn2"), {"conv1": "bn1", "conv2": "bn2"}),
        (("conv1", "conv2", "bn1", "bn2"), {"conv1": "bn1", "conv2": "bn2"}),
        (("bn1", "conv1", "bn2", "conv2"), {"conv1": "bn2"}),
        (("a.conv", "b.bn"), {}),
        (("dw", "n1", "pw", "n2"), {"dw": "n1", "pw": "n2"}),
    ],
)
def test_partners(tmp_path: Path, names: tuple[str, ...], partners: dict[str, str]) -> None:
    assert read(zipped(tmp_path / "x", _state(*names)))[0].norms == partners


def save(path: Path, nodes: list[onnx.NodeProto], **initializers: Any) -> Path:
    """An ONNX model with input x and output y."""
    values = [onnx.helper.make_tensor_value_info(name, 1, None) for name in ("x", "y")]
    arrays = {k: np.asarray(v) for k, v in initializers.items()}
    tensors = [
        onnx.numpy_helper.from_array(v.astype(np.float32) if v.dtype == np.float64 else v, k) for k, v in arrays.items()
    ]
    graph = onnx.helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=8), path)
    return path


def unit_of(path: Path) -> tuple[Unit, dict[str, Any]]:
    """The only unit, with the arrays of its weights and biases."""
    with open_checkpoint(path) as checkpoint:
        (unit,) = checkpoint.units
        assert unit.weights is not None
        return unit, {"weights": unit.weights.array(), "bias": None if unit.bias is None else unit.bias.array()}


def test_onnx_convolution(tmp_path: Path) -> None:
    node = onnx.helper.make_node
    weights = np.arange(18).reshape(2, 1, 3, 3)
    conv = node("Conv", ["x", "w", "b"], ["c"], name="/stem/Conv", strides=[2, 1], pads=[0, 1, 1, 1], group=3)
    channel = np.array([2, 4]).reshape(1, 2, 1, 1)
    nodes = [
        conv,
        node("Mul", ["c", "m"], ["d"]),
        node("Add", ["a", "d"], ["e"]),
        node("Sub", ["e", "s"], ["f"]),
        node("Div", ["f", "m"], ["g"]),
        node("Add", ["g", "three"], ["h"]),
        node("Relu", ["h"], ["y"]),
    ]
    a, s = (np.array(v).reshape(2, 1, 1) for v in ((10, 20), (1, 2)))
    path = save(
        tmp_path / "x",
        nodes,
        w=weights.astype(float),
        b=[1.0, 2],
        m=channel.astype(float),
        a=a * 1.0,
        s=s * 1.0,
        three=3.0,
    )
    unit, arrays = unit_of(path)
    assert (unit.name, unit.pads, unit.strides, unit.epsilon) == ("stem", (0, 1, 1, 1), (2, 1), None)
    np.testing.assert_array_equal(arrays["weights"], weights)
    # ((b * m) + a - s) / m; the scalar is an activation's.
    np.testing.assert_array_equal(arrays["bias"], [(1 * 2 + 10 - 1) / 2, (2 * 4 + 20 - 2) / 4])


@pytest.mark.parametrize(
    ("auto_pad", "pads"), [("SAME_UPPER", "SAME_UPPER"), ("SAME_LOWER", "SAME_LOWER"), ("VALID", (0, 0, 0, 0))]
)
def test_onnx_auto_pad(tmp_path: Path, auto_pad: str, pads: object) -> None:
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], auto_pad=auto_pad)
    assert unit_of(save(tmp_path / "x", [node], w=np.ones((2, 3, 3, 3))))[0].pads == pads


def test_onnx_pad_nodes(tmp_path: Path) -> None:
    conv = onnx.helper.make_node("Conv", ["p", "w"], ["y"], name="c", pads=[1, 0, 0, 0])

    def padded(**changes: Any) -> Path:
        amounts = changes.pop("pads", np.array([0, 0, 0, 1, 0, 0, 2, 3]))
        inputs, given = ["x", "amounts"], {"amounts": amounts, "w": np.ones((2, 3, 3, 3))}
        if "fill" in changes:
            inputs.append("fill")
            given["fill"] = np.float32(changes.pop("fill"))
        pad = onnx.helper.make_node("Pad", inputs, ["p"], **changes)
        return save(tmp_path / "x", [pad, conv], **given)

    assert unit_of(padded())[0].pads == (1, 1, 2, 3)
    assert unit_of(padded(fill=0))[0].pads == (1, 1, 2, 3)
    for changes in ({"fill": 1}, {"mode": "reflect"}, {"pads": np.array([1] * 8)}):
        assert "padded" in refused(padded(**changes)).message
    shape = onnx.helper.make_node("Shape", ["x"], ["amounts"])
    pad = onnx.helper.make_node("Pad", ["x", "amounts"], ["p"])
    assert unit_of(save(tmp_path / "x", [shape, pad, conv], w=np.ones((2, 3, 3, 3))))[0].pads == "COMPUTED"


def test_onnx_products(tmp_path: Path) -> None:
    node = onnx.helper.make_node
    weights = np.arange(6).reshape(2, 3)
    gemm = node("Gemm", ["x", "w", "b"], ["y"], transB=1, alpha=0.5, beta=2.0)
    unit, arrays = unit_of(save(tmp_path / "x", [gemm], w=weights * 1.0, b=[[1.0, 2.0]]))
    assert (unit.name, unit.kind, unit.kernel) == ("w", "linear", (2, 3, 1, 1))
    np.testing.assert_array_equal(arrays["weights"], weights / 2)
    np.testing.assert_array_equal(arrays["bias"], [2, 4])
    product = [
        node("Transpose", ["w"], ["t"], perm=[1, 0]),
        node("MatMul", ["x", "t"], ["p"]),
        node("Add", ["p", "b"], ["y"]),
    ]
    unit, arrays = unit_of(save(tmp_path / "x", product, w=weights * 1.0, b=[1.0, 2.0]))
    np.testing.assert_array_equal(arrays["weights"], weights)
    np.testing.assert_array_equal(arrays["bias"], [1, 2])
    constant = node("Constant", [], ["k"], value=onnx.numpy_helper.from_array(weights.T.astype(np.float32), ""))
    unit, arrays = unit_of(save(tmp_path / "x", [constant, node("MatMul", ["x", "k"], ["y"])]))
    np.testing.assert_array_equal(arrays["weights"], weights)
    assert arrays["bias"] is None
    # Attention multiplies what is computed.
    both = [node("MatMul", ["x", "x"], ["z"]), node("MatMul", ["z", "w"], ["y"])]
    assert unit_of(save(tmp_path / "x", both, w=np.ones((3, 2))))[0].kernel == (2, 3, 1, 1)


def test_onnx_batch_normalisation(tmp_path: Path) -> None:
    node = onnx.helper.make_node
    names = ["bn.weight", "bn.bias", "bn.mean", "bn.var"]
    nodes = [
        node("Conv", ["x", "stem.weight"], ["c"]),
        node("BatchNormalization", ["c", *names], ["d"], epsilon=1e-3),
        node("Sub", ["d", "d"], ["e"]),
        node("BatchNormalization", ["e", *names], ["y"]),
    ]
    arrays = {name: np.ones(2) * number for number, name in enumerate(names)}
    path = save(tmp_path / "x", nodes, **{"stem.weight": np.ones((2, 3, 1, 1)), **arrays, "unused": np.ones(5)})
    checkpoint, _ = read(path)
    assert [unit.name for unit in checkpoint.units] == ["stem", "bn", "bn#2"]
    assert [unit.epsilon for unit in checkpoint.units] == [None, 1e-3, 1e-5]
    assert checkpoint.norms == {"stem": "bn"}
    assert checkpoint.rest == ("unused",)


def test_onnx_that_is_refused_or_noted(tmp_path: Path) -> None:
    node = onnx.helper.make_node
    quantized = [node("DequantizeLinear", ["q", "s"], ["w"]), node("Conv", ["x", "w"], ["y"], name="c")]
    error = refused(save(tmp_path / "x", quantized, q=np.ones((2, 3, 1, 1), np.int8), s=np.float32(1)))
    assert "weights of Conv 'c' are computed by DequantizeLinear" in error.message
    assert "spatial" in refused(save(tmp_path / "x", [node("Conv", ["x", "w"], ["y"])], w=np.ones((2, 3, 1)))).message
    assert "no convolution" in refused(save(tmp_path / "x", [node("Relu", ["x"], ["y"])])).message
    assert "damaged" in refused(save(tmp_path / "x", [node("Conv", [], ["y"])])).message
    noted = [node("Sub", ["x", "m"], ["a"]), node("Conv", ["a", "w"], ["b"]), node("ConvTranspose", ["b", "w"], ["y"])]
    checkpoint, _ = read(save(tmp_path / "x", noted, m=np.ones((1, 3, 1, 1)), w=np.ones((2, 3, 1, 1))))
    assert checkpoint.notes == (
        "the model begins with Sub on its input, which is not imported: see --mean and --std",
        "ConvTranspose y is not imported",
    )


node = onnx.helper.make_node
CONV = node("Conv", ["x", "w"], ["y"], name="c")


def _with(made: onnx.NodeProto, name: str, value: object) -> onnx.NodeProto:
    """The node with an attribute that no checker looks at."""
    made.attribute.append(onnx.helper.make_attribute(name, value))
    return made


def _conv(**attributes: object) -> onnx.NodeProto:
    made = node("Conv", ["x", "w"], ["y"], name="c")
    for name, value in attributes.items():
        _with(made, name, value)
    return made


HOSTILE: dict[str, tuple[list[onnx.NodeProto], str]] = {
    "a circle of Identity": (
        [node("Identity", ["a"], ["v"]), node("Identity", ["v"], ["a"]), node("Conv", ["x", "v"], ["y"])],
        "are computed by Identity",
    ),
    "a circle behind a product": (
        [node("Conv", ["x", "w"], ["y0"]), node("Add", ["y0", "one"], ["y1"]), node("Add", ["y1", "one"], ["y0"])],
        "two nodes of the ONNX model compute 'y0'",
    ),
    "a circle at the start": (
        [node("Cast", ["x"], ["v"]), node("Cast", ["v"], ["x"]), node("Conv", ["x", "none"], ["y"])],
        "an input of the model",
    ),
    "twice the same value": ([CONV, CONV], "two nodes of the ONNX model compute 'y'"),
    "auto_pad is a number": ([_conv(auto_pad=1)], "auto_pad of Conv 'c' is 1, no text"),
    "auto_pad is no text": ([_conv(auto_pad=b"\xff")], "damaged"),
    "strides are a number": ([_conv(strides=2)], "not 2 numbers"),
    "strides are text": ([_conv(strides="ab")], "not 2 numbers"),
    "strides are broken": ([_conv(strides=[0.5, 1.0])], "not 2 numbers"),
    "strides are three": ([_conv(strides=[1, 1, 1])], "not 2 numbers"),
    "pads are negative": ([_conv(pads=[0, 0, -1, 0])], "not 4 numbers"),
    "pads are huge": ([_conv(pads=[0, 0, 1 << 60, 0])], "not 4 numbers"),
    "a graph for a number": ([_conv(dilations=onnx.GraphProto())], "not 2 numbers"),
    "transposed by nothing": (
        [node("Transpose", ["w"], ["t"], perm=[0, 0, 5, 9]), node("Conv", ["x", "t"], ["y"])],
        "is transposed by",
    ),
    "epsilon is text": (
        [CONV, _with(node("BatchNormalization", ["y", *["three"] * 4], ["z"]), "epsilon", "abc")],
        "damaged",
    ),
    "statistics of several shapes": (
        [CONV, node("BatchNormalization", ["y", "one", "one", "three", "one"], ["z"])],
        "statistics of several shapes",
    ),
    "a bias of another shape": ([node("Conv", ["x", "w", "three"], ["y"])], "has shape (3,)"),
    "a long name": ([node("Conv", ["x", "w"], ["y"], name="n" * 5000)], "a name of the source has 5,000 characters"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_onnx_that_is_hostile(tmp_path: Path, name: str) -> None:
    nodes, message = HOSTILE[name]
    arrays = {"w": np.ones((2, 3, 3, 3)), "one": np.ones((1, 2, 1, 1)), "three": np.ones(3)}
    assert message in refused(save(tmp_path / "x", nodes, **arrays)).message


@pytest.mark.parametrize(
    "dims", [[1 << 60, 1, 1, 1], [1 << 31, 1 << 31, 1, 1], [-1, 3, 3, 3], [2] * 100, [0, 3, 3, 3], [2]]
)
def test_onnx_shapes_that_no_value_has(tmp_path: Path, dims: list[int]) -> None:
    tensors = [onnx.TensorProto(name="w", data_type=1, dims=dims, raw_data=b"abcd")]
    tensors.append(onnx.TensorProto(name="w", data_type=1, dims=dims, float_data=[1.0]))
    for tensor in tensors:
        graph = onnx.helper.make_graph([CONV, node("Gemm", ["y", "w"], ["z"], alpha=2.0)], "g", [], [], [tensor])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)])
        (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
        assert "damaged" in (message := refused(tmp_path / "x.onnx").message) or "has shape" in message


def test_onnx_of_many_nodes(tmp_path: Path) -> None:
    """Identities in a row, behind which each convolution looks for its weights; and names that are all the same."""
    nodes = [node("Identity", [f"w{n}" if n else "w"], [f"w{n + 1}"]) for n in range(5000)]
    nodes += [node("Transpose", [f"t{n}" if n else "w"], [f"t{n + 1}"]) for n in range(5001)]
    nodes += [node("Conv", ["x", "t5001" if n % 2 else "w5000"], [f"y{n}"], name="same") for n in range(2000)]
    with open_checkpoint(save(tmp_path / "x", nodes, w=np.arange(54).reshape(2, 3, 3, 3) * 1.0)) as checkpoint:
        first, second = checkpoint.units[:2]
        assert len(checkpoint.units) == 2000
        assert first.weights is not None
        assert second.weights is not None
        np.testing.assert_array_equal(first.weights.array(), second.weights.array().transpose())


def test_onnx_values_beside_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "inside").mkdir(parents=True)
    weights = np.arange(54, dtype=np.float32)

    def model(**where: object) -> Path:
        tensor = onnx.TensorProto(name="w", data_type=1, dims=[2, 3, 3, 3], data_location="EXTERNAL")
        for key, value in where.items():
            tensor.external_data.add(key=key, value=str(value))
        graph = onnx.helper.make_graph([CONV], "g", [], [], [tensor])
        made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)])
        (folder / "x.onnx").write_bytes(made.SerializeToString())
        return folder / "x.onnx"

    for place in (folder / "w.bin", folder / "inside" / "w.bin", tmp_path / "w.bin"):
        place.write_bytes(bytes(8) + weights.tobytes())
    for location in ("w.bin", "inside/w.bin"):
        _, arrays = unit_of(model(location=location, offset=8, length=216))
        np.testing.assert_array_equal(arrays["weights"].ravel(), weights)
        _, arrays = unit_of(model(location=location, offset=8))
        np.testing.assert_array_equal(arrays["weights"].ravel(), weights)
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    os.mkfifo(folder / "pipe")
    for location in ("../w.bin", str(tmp_path / "w.bin"), "link.bin", "inside/../../w.bin", "/dev/zero"):
        assert "outside of the model's folder" in refused(model(location=location, offset=8, length=216)).message
    assert "which cannot be read" in refused(model(location="none")).message
    for location, begin, length in (("w.bin", 9, 216), ("w.bin", 0, 1 << 62), ("pipe", 0, 216)):
        assert "end behind the end" in refused(model(location=location, offset=begin, length=length)).message
    assert "216" in refused(model(location="w.bin", offset=0, length=200)).message
    for offset in ("abc", -8):
        message = refused(model(location="w.bin", offset=offset)).message
        assert "damaged" in message or "end behind the end" in message


@pytest.mark.parametrize("what", ["pipe", "/dev/zero", "sparse"])
def test_what_is_no_file(tmp_path: Path, what: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    for start in (
        b"PK",
        b"\x80\x02",
        b"\x08",
        struct.pack("<Q", 20) + b"{",
        b"\x80\x02\x8e" + struct.pack("<Q", 1 << 39),
    ):
        with (tmp_path / "sparse").open("wb") as file:
            file.write(start)
            file.truncate(1 << 40)
        refused(tmp_path / what)


def test_zips_and_headers_that_take_long(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        for number in range(70):
            archive.writestr(f"archive/data/{number:060000}", b"")
    assert "its directory has more than 4 MiB" in refused(tmp_path / "x").message
    weights = np.zeros((2, 2), np.float32)
    entry = {"dtype": "F32", "shape": [1] * 100_000 + [2, 2], "data_offsets": [0, 16]}
    assert "whole numbers" in refused(safetensors(tmp_path / "x", {"a.weight": weights}, **{"a.weight": entry})).message
    for name in ("model." * 100_000 + "weight", "1" * 100_000 + "a.weight"):
        for write in WRITERS.values():
            assert "characters" in refused(write(tmp_path / "x", {name: weights})).message
    many = {f"n{number}.weight": Stored(weights.reshape(-1), (2, 2), (2, 1)) for number in range(5001)}
    assert "more than 5,000 layers" in refused(zipped(tmp_path / "x", many)).message
    assert (
        "repeats 4 elements"
        in refused(zipped(tmp_path / "x", {"a.weight": Stored(weights.reshape(-1), (1 << 60, 2), (0, 1))})).message
    )
