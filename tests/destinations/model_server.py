"""A stand-in for OpenVINO Model Server: it follows a config.json with OpenVINO itself, and answers KServe's REST API as
the server does, for the one kind of request that the client of destination `ovms` makes: every input in binary."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dnc.runtime.runners.openvino import openvino_core
from dnc.typing import Array

__all__ = ["check_config", "serving"]

_KINDS: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "UINT8": np.dtype("u1")}
_TEXTS = ("name", "base_path", "target_device")


def check_config(config: Any) -> None:
    """What the server's schema says of the keys that are used here; it refuses any other."""
    assert list(config) == ["model_config_list"]
    for entry in config["model_config_list"]:
        assert list(entry) == ["config"]
        told = dict(entry["config"])
        assert {"name", "base_path"} <= set(told)
        assert all(isinstance(told.pop(key, ""), str) for key in _TEXTS)
        plugin = told.pop("plugin_config", {})
        assert all(isinstance(value, str | bool | int | float) for value in plugin.values())
        assert not told


@contextmanager
def serving(config: Path) -> Iterator[str]:
    """Serves the models of a config.json at the address that it gives."""
    told = json.loads(config.read_text(encoding="utf-8"))
    check_config(told)
    models = {}
    for entry in told["model_config_list"]:
        model = entry["config"]
        # A relative path is one beside config.json, and of the versions the last one is served.
        versions = [path for path in (config.parent / model["base_path"]).iterdir() if path.name.isdecimal()]
        [file] = max(versions, key=lambda path: int(path.name)).glob("*.xml")
        models[model["name"]] = openvino_core().compile_model(
            file, model.get("target_device", "CPU"), model.get("plugin_config", {})
        )

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            empty, version, kind, name, action = self.path.split("/")
            assert (empty, version, kind, action) == ("", "v2", "models", "infer")
            if name not in models:
                return self._answer(404, {"error": "Model with requested name is not found"})
            try:
                feeds = _feeds(models[name], body, int(self.headers["Inference-Header-Content-Length"]))
            except _BadRequestError as error:
                return self._answer(400, {"error": str(error)})
            found = models[name](feeds)
            outputs = [
                {"name": port.any_name, "shape": list(value.shape), "datatype": "FP32", "data": value.ravel().tolist()}
                for port, value in found.items()
            ]
            return self._answer(200, {"model_name": name, "model_version": "1", "outputs": outputs})

        def _answer(self, code: int, content: Mapping[str, Any]) -> None:
            text = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


class _BadRequestError(Exception):
    """What the client is told."""


def _feeds(model: Any, body: bytes, length: int) -> dict[str, Array]:
    inputs, binary = json.loads(body[:length])["inputs"], body[length:]
    ports = {port.any_name: port for port in model.inputs}
    if sorted(ports) != sorted(entry["name"] for entry in inputs):
        raise _BadRequestError("Invalid number of inputs")
    feeds = {}
    for entry in inputs:
        # Values are in order; only a sole image needs not say its size.
        size = entry["parameters"]["binary_data_size"]
        content, binary = binary[:size], binary[size:]
        if len(content) < size:
            raise _BadRequestError("Invalid content size of tensor proto")
        port = ports[entry["name"]]
        if entry["datatype"] == "BYTES":
            feeds[entry["name"]] = _pictures(content, entry["shape"], port)
        else:
            value = np.frombuffer(content, _KINDS[entry["datatype"]]).reshape(entry["shape"])
            if port.element_type.to_dtype() != value.dtype or list(value.shape) != list(port.shape):
                raise _BadRequestError("Invalid input precision or shape")
            feeds[entry["name"]] = value
    assert not binary
    return feeds


def _pictures(content: bytes, shape: list[int], port: Any) -> Array:
    """Images as cv::imdecode gives them with IMREAD_UNCHANGED: as many channels as the file has, blue first."""
    pictures = []
    while content:
        size = int.from_bytes(content[:4], "little")
        try:
            pixels = np.asarray(Image.open(io.BytesIO(content[4 : 4 + size])))
        except OSError as error:
            raise _BadRequestError("Image parsing failed") from error
        pictures.append(pixels[:, :, None] if pixels.ndim == 2 else pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]])
        content = content[4 + size :]
    assert [len(pictures)] == shape
    batch, *_, channels = port.partial_shape
    if channels.is_static and channels.get_length() != pictures[0].shape[2]:
        raise _BadRequestError("Invalid number of channels")
    if batch.is_static and batch.get_length() != len(pictures):
        raise _BadRequestError("Invalid batch size")
    return np.stack(pictures)
