"""A Triton in small, for tests: it reads a model repository as Triton's documentation says, refuses what Triton and its
backends would refuse, runs ensembles step by step, and answers by HTTP as far as tritonclient asks.

Of the documents that `dnc.destinations.triton` names it knows the shape of tensors (`dims`, `reshape`, max_batch_size),
what the ONNX Runtime and OpenVINO backends compare with the model, and how an ensemble hands tensors on.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from dnc.runtime.runners.openvino import openvino_core
from dnc.typing import Array

__all__ = ["Message", "SmallTriton", "parse", "serving"]

Message = dict[str, list[Any]]
"""The values of each field."""

_TOKEN = re.compile(r'\s*(?:(?P<text>"(?:[^"\\]|\\.)*")|(?P<mark>[{}\[\]:,])|(?P<word>[^\s{}\[\]:,"]+))')
_TYPES = {"TYPE_FP32": "float32", "TYPE_UINT8": "uint8", "TYPE_INT64": "int64"}
_CALLED = {"FP32": "float32", "UINT8": "uint8", "INT64": "int64"}


def parse(text: str) -> Message:
    """A message in protobuf's text format, as far as config.pbtxt needs it."""
    tokens = [match for match in _TOKEN.finditer(text) if match.lastgroup]
    message, place = _message(tokens, 0)
    assert place == len(tokens), tokens[place]
    return message


def _message(tokens: Sequence[re.Match[str]], place: int) -> tuple[Message, int]:
    fields: Message = {}
    while place < len(tokens) and tokens[place]["mark"] != "}":
        name = tokens[place]["word"]
        assert name.isidentifier(), name
        place += 1
        if tokens[place]["mark"] == "{":
            value, place = _message(tokens, place + 1)
            assert tokens[place]["mark"] == "}"
            fields.setdefault(name, []).append(value)
            place += 1
            continue
        assert tokens[place]["mark"] == ":"
        if tokens[place + 1]["mark"] == "[":
            end = next(at for at in range(place, len(tokens)) if tokens[at]["mark"] == "]")
            fields.setdefault(name, []).extend(_value(token) for token in tokens[place + 2 : end : 2])
            assert all(token["mark"] == "," for token in tokens[place + 3 : end : 2])
            place = end + 1
        else:
            fields.setdefault(name, []).append(_value(tokens[place + 1]))
            place += 2
    return fields, place


def _value(token: re.Match[str]) -> Any:
    if token["text"]:
        octal = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), token["text"][1:-1].encode())
        return octal.decode()
    return int(token["word"]) if re.fullmatch(r"-?\d+", token["word"]) else token["word"]


def _one(message: Message, name: str, default: Any = None) -> Any:
    values = message.get(name, [default])
    assert len(values) == 1, f"{name} stands there {len(values)} times"
    return values[0]


def _pairs(message: Message, name: str) -> dict[str, Any]:
    entries = message.get(name, [])
    found = {_one(entry, "key"): _one(entry, "value") for entry in entries}
    assert len(found) == len(entries)
    return found


class _Model:
    """A model of the repository that is no ensemble."""

    def __init__(self, folder: Path, config: Message) -> None:
        self.config, self.name = config, folder.name
        assert _one(config, "name") == folder.name
        self.most = _one(config, "max_batch_size", 0)
        self.inputs = {_one(tensor, "name"): tensor for tensor in config.get("input", [])}
        self.outputs = {_one(tensor, "name"): tensor for tensor in config.get("output", [])}
        assert len(self.inputs) == len(config["input"])
        assert len(self.outputs) == len(config["output"])
        assert ("dynamic_batching" in config) <= (self.most > 1)
        versions = [path for path in folder.iterdir() if path.is_dir()]
        assert [path.name for path in versions] == ["1"]
        self.version = versions[0]
        for tensor in (*self.inputs.values(), *self.outputs.values()):
            dims, inner = tensor["dims"], _reshaped(tensor)
            assert dims
            assert inner
            assert all(side == -1 or side > 0 for side in (*dims, *inner))
            assert dims.count(-1) == inner.count(-1)
            assert math.prod(map(abs, dims)) == math.prod(map(abs, inner))
            if "label_filename" in tensor:
                labels = (folder / _one(tensor, "label_filename")).read_text(encoding="utf-8").removesuffix("\n")
                assert len(labels.split("\n")) == math.prod(side for side in dims if side > 0)

    def full(self, tensor: Message) -> list[int]:
        """The shape in requests."""
        return [-1, *tensor["dims"]] if self.most else tensor["dims"]

    def given(self, name: str, value: Array) -> None:
        """What every request is held against."""
        tensor = self.inputs[name]
        assert value.dtype == _TYPES[_one(tensor, "data_type")], (self.name, name, value.dtype)
        assert _same(value.shape, self.full(tensor)), (self.name, name, value.shape, tensor["dims"])
        assert not self.most or value.shape[0] <= self.most

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        raise NotImplementedError


def _reshaped(tensor: Message) -> list[int]:
    return list(_one(tensor, "reshape")["shape"]) if "reshape" in tensor else list(tensor["dims"])


def _same(sides: Sequence[int], others: Sequence[int]) -> bool:
    return len(sides) == len(others) and all(
        -1 in pair or len(set(pair)) == 1 for pair in zip(sides, others, strict=True)
    )


class _Network(_Model):
    """A model that a backend runs."""

    def __init__(self, folder: Path, config: Message) -> None:
        super().__init__(folder, config)
        backend = _one(config, "backend")
        open_ = {"onnxruntime": self._open_onnx, "openvino": self._open_openvino}[backend]
        known_inputs, known_outputs = open_()
        assert self.inputs.keys() == known_inputs.keys()
        assert self.outputs.keys() <= known_outputs.keys()
        for known, configured in ((known_inputs, self.inputs), (known_outputs, self.outputs)):
            for name, tensor in configured.items():
                dtype, shape = known[name]
                assert _TYPES[_one(tensor, "data_type")] == dtype, name
                wanted = [-1, *_reshaped(tensor)] if self.most else _reshaped(tensor)
                assert len(shape) == len(wanted), (name, shape, wanted)
                assert not self.most or shape[0] == -1, name
                # Outputs are compared as they are; of inputs, what the model leaves free may be fixed.
                free = known is known_inputs and backend == "onnxruntime"
                fits = (side == want or (free and side == -1) for side, want in zip(shape, wanted, strict=True))
                assert all(fits), (name, shape, wanted)
        for warmup in config.get("model_warmup", []):
            assert 1 <= _one(warmup, "batch_size") <= max(self.most, 1)
            for name, tensor in _pairs(warmup, "inputs").items():
                assert tensor["dims"] == self.inputs[name]["dims"]

    def _open_onnx(self) -> tuple[dict[str, Any], dict[str, Any]]:
        self._session: Any = onnxruntime.InferenceSession(
            self.version / "model.onnx", providers=["CPUExecutionProvider"]
        )

        def known(nodes: Any) -> dict[str, Any]:
            types = {"tensor(float)": "float32", "tensor(uint8)": "uint8", "tensor(int64)": "int64"}
            sides = ([side if isinstance(side, int) else -1 for side in node.shape] for node in nodes)
            return {node.name: (types[node.type], shape) for node, shape in zip(nodes, sides, strict=True)}

        return known(self._session.get_inputs()), known(self._session.get_outputs())

    def _open_openvino(self) -> tuple[dict[str, Any], dict[str, Any]]:
        model = openvino_core().read_model(self.version / "model.xml")
        told = {key: _one(value, "string_value") for key, value in _pairs(self.config, "parameters").items()}
        assert told.keys() <= {"HINT_BF16", "TARGET_DEVICE"}
        # Left to itself, OpenVINO takes bfloat16 where the CPU has it.
        precision = "bf16" if told.get("HINT_BF16") == "YES" else "f32"
        self._session = openvino_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})

        def known(ports: Any) -> dict[str, Any]:
            shapes = ([-1 if side.is_dynamic else side.get_length() for side in port.partial_shape] for port in ports)
            return {
                port.any_name: (port.element_type.to_dtype().name, shape)
                for port, shape in zip(ports, shapes, strict=True)
            }

        return known(model.inputs), known(model.outputs)

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        assert feeds.keys() == self.inputs.keys()
        for name, value in feeds.items():
            self.given(name, value)
        if _one(self.config, "backend") == "openvino":
            found = self._session(dict(feeds))
            values = {name: np.array(found[name]) for name in self.outputs}
        else:
            values = dict(zip(self.outputs, self._session.run(list(self.outputs), dict(feeds)), strict=True))
        lead = [-1] if self.most else []
        for name, value in values.items():
            tensor = self.outputs[name]
            assert value.dtype == _TYPES[_one(tensor, "data_type")]
            assert _same(value.shape, [*lead, *_reshaped(tensor)]), (name, value.shape)
            if "reshape" in tensor:
                values[name] = value.reshape([*value.shape[: len(lead)], *tensor["dims"]])
        return values


class _Ensemble(_Model):
    """Steps, and the tensors that go from one to the other."""

    def __init__(self, folder: Path, config: Message, models: Mapping[str, _Model]) -> None:
        super().__init__(folder, config)
        assert _one(config, "platform") == "ensemble"
        assert "instance_group" not in config
        self._steps = []
        known: dict[str, tuple[_Model, Message]] = {name: (self, tensor) for name, tensor in self.inputs.items()}
        for step in _one(config, "ensemble_scheduling")["step"]:
            model = models[_one(step, "model_name")]
            assert _one(step, "model_version") == -1
            assert not model.most or model.most >= self.most
            inputs, outputs = _pairs(step, "input_map"), _pairs(step, "output_map")
            assert inputs.keys() == model.inputs.keys()
            assert outputs.keys() <= model.outputs.keys()
            for name, tensor in inputs.items():
                _consistent(known[tensor], (model, model.inputs[name]))
            for name, tensor in outputs.items():
                assert tensor not in known, f"{tensor} is written twice"
                known[tensor] = (model, model.outputs[name])
            self._steps.append((model, inputs, outputs))
        for name, tensor in self.outputs.items():
            _consistent(known[name], (self, tensor))

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        assert feeds.keys() == self.inputs.keys()
        for name, value in feeds.items():
            self.given(name, value)
        values = {name: (self.most > 0, value) for name, value in feeds.items()}
        for model, inputs, outputs in self._steps:
            given = {
                name: _handed_on(*values[tensor], model.most > 0, model.inputs[name]["dims"])
                for name, tensor in inputs.items()
            }
            found = model.infer(given)
            values |= {tensor: (model.most > 0, found[name]) for name, tensor in outputs.items()}
        found = {
            name: _handed_on(*values[name], self.most > 0, tensor["dims"]) for name, tensor in self.outputs.items()
        }
        for name, tensor in self.outputs.items():
            assert _same(found[name].shape, self.full(tensor)), (name, found[name].shape)
        return found


def _consistent(one: tuple[_Model, Message], other: tuple[_Model, Message]) -> None:
    """Two ends of a tensor: the same but for an axis of the batch that one of them does not spell out."""
    (model, tensor), (reader, wanted) = one, other
    assert _one(tensor, "data_type") == _one(wanted, "data_type")
    fits = _same(tensor["dims"], wanted["dims"]) or _same(model.full(tensor), reader.full(wanted))
    assert fits, (_one(tensor, "name"), tensor["dims"], wanted["dims"])


def _handed_on(batched: bool, value: Array, wanted: bool, dims: Sequence[int]) -> Array:
    if wanted and not batched and _same(dims, value.shape):
        return value[None]
    if batched and not wanted and not _same(dims, value.shape) and value.shape[0] == 1:
        without: Array = value[0]
        return without
    return value


class SmallTriton:
    """The models of a repository by name; raises AssertionError for what Triton would not load."""

    def __init__(self, repository: Path) -> None:
        self.models: dict[str, _Model] = {}
        folders = {path: parse((path / "config.pbtxt").read_text()) for path in repository.iterdir() if path.is_dir()}
        for folder, config in folders.items():
            if "platform" not in config:
                self.models[folder.name] = _Network(folder, config)
        for folder, config in folders.items():
            if "platform" in config:
                self.models[folder.name] = _Ensemble(folder, config, self.models)

    def infer(self, name: str, **feeds: Array) -> dict[str, Array]:
        """The outputs of a model by name."""
        return self.models[name].infer(feeds)


@contextmanager
def serving(triton: SmallTriton) -> Iterator[str]:
    """HOST:PORT, where it answers as KServe's protocol has it, with Triton's binary tensors."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            length = int(self.headers["Inference-Header-Content-Length"])
            request, rest = json.loads(body[:length]), memoryview(body)[length:]
            feeds = {}
            for tensor in request["inputs"]:
                size = tensor["parameters"]["binary_data_size"]
                value = np.frombuffer(rest[:size], _CALLED[tensor["datatype"]]).reshape(tensor["shape"])
                feeds[tensor["name"]], rest = value, rest[size:]
            name = re.fullmatch(r"/?v2/models/([^/]+)/infer", self.path.lstrip("/"))
            assert name is not None, self.path
            found = triton.infer(name[1], **feeds)
            called = {numpy: kind for kind, numpy in _CALLED.items()}
            outputs = [
                {
                    "name": key,
                    "datatype": called[value.dtype.name],
                    "shape": value.shape,
                    "parameters": {"binary_data_size": value.nbytes},
                }
                for key, value in found.items()
            ]
            head = json.dumps({"model_name": name[1], "model_version": "1", "outputs": outputs}).encode()
            content = head + b"".join(value.tobytes() for value in found.values())
            self.send_response(200)
            self.send_header("Inference-Header-Content-Length", str(len(head)))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
