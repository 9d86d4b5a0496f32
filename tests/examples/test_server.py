"""The service: batches form of what waits, a full queue refuses, a bad file spoils nobody else's."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import dnc
from tests.examples.conftest import load
from tests.patience import PATIENCE, until


class Held:
    """An engine whose first run waits, and which knows how large its batches were."""

    def __init__(self, engine: dnc.Engine) -> None:
        self.inputs = engine.inputs
        self.sizes: list[int] = []
        self.go_on = threading.Event()
        self._engine = engine

    def detect(self, images: list[Any]) -> Any:
        self.sizes.append(len(images))
        assert self.go_on.wait(PATIENCE)
        return self._engine.detect(images)


def test_batches_and_back_pressure(engine: dnc.Engine, image: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    pytest.importorskip("httpx")
    from fastapi.testclient import TestClient

    held, file = Held(engine), (tmp_path / "a.png").read_bytes()
    application = load("server").service(held, batch=4, waiting=6)
    with TestClient(application) as client, ThreadPoolExecutor(8) as pool:
        try:
            answers = [pool.submit(client.post, "/detect", content=file)]
            until(lambda: held.sizes == [1])
            answers += [pool.submit(client.post, "/detect", content=file) for _ in range(6)]
            # One more is taken, or refused where the six are there already.
            until(lambda: client.post("/detect", content=b"no image").status_code == 503)
            refused = client.post("/detect", content=file)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        finally:
            held.go_on.set()
        given = [answer.result(PATIENCE) for answer in answers]
        assert [one.status_code for one in given] == [200] * 7
        assert held.sizes == [1, 4, 2]
        expected = [box.to_json() for box in engine.detect(image)]
        assert len(expected) > 5
        for one in given:
            assert [box["name"] for box in one.json()] == [box["name"] for box in expected]
            assert [box["pixels"] for box in one.json()] == [box["pixels"] for box in expected]
        wrong = client.post("/detect", content=b"no image")
        assert wrong.status_code == 400
        assert wrong.json()["detail"]
        assert client.post("/detect", content=bytes((16 << 20) + 1)).status_code == 413


def test_what_fails_is_told(engine: dnc.Engine, image: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    """And the next one is served."""
    pytest.importorskip("fastapi")
    pytest.importorskip("httpx")
    from fastapi.testclient import TestClient

    class Failing(Held):
        def detect(self, images: list[Any]) -> Any:
            if self.sizes:
                return super().detect(images)
            self.sizes.append(0)
            raise dnc.DncError("the device is gone")

    failing, file = Failing(engine), (tmp_path / "a.png").read_bytes()
    failing.go_on.set()
    with TestClient(load("server").service(failing, 2, 2), raise_server_exceptions=False) as client:
        assert client.post("/detect", content=file).status_code == 500
        assert client.post("/detect", content=file).status_code == 200


def test_a_client_that_goes_in_the_middle(engine: dnc.Engine) -> None:
    """It is no fault of the server's, and no traceback in its log."""
    pytest.importorskip("fastapi")
    messages = [
        {"type": "http.request", "body": b"\x89PNG", "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/detect",
        "headers": [],
        "query_string": b"",
        "http_version": "1.1",
    }
    asyncio.run(load("server").service(engine, batch=4, waiting=6)(scope, receive, send))
    assert sent[0]["status"] == 400
