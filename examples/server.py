"""An image in, its boxes out, over HTTP: what comes at the same time runs as one batch, what is too much gets a 503.

    python examples/server.py yolov4-tiny.engine --batch 8 --waiting 32
    curl --data-binary @dog.jpg http://127.0.0.1:8000/detect

Needs the runtime and FastAPI: pip install "darknet-compiler[runtime-onnx]" fastapi uvicorn
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from starlette.requests import ClientDisconnect

import dnc

LARGEST = 16 << 20  # Bytes of an image file.


def service(engine: dnc.Engine, batch: int, waiting: int) -> FastAPI:
    """The application: one task runs all images, `batch` at once at most, and `waiting` more may wait for it."""
    queue: asyncio.Queue[tuple[Any, asyncio.Future[list[dnc.Detection]]]] = asyncio.Queue(waiting)

    async def run_batches() -> None:
        while True:
            group = [await queue.get()]
            while len(group) < batch and not queue.empty():
                group.append(queue.get_nowait())
            try:
                results = await asyncio.to_thread(engine.detect, [pixels for pixels, _ in group])
            except Exception as error:
                results = [error for _ in group]
            for (_, answer), result in zip(group, results, strict=True):
                if not answer.done():  # The client may have gone.
                    (answer.set_exception if isinstance(result, Exception) else answer.set_result)(result)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(run_batches())
        yield
        task.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.post("/detect")
    async def detect(request: Request) -> list[dict[str, Any]]:
        file = b""
        with suppress(ClientDisconnect):  # In the middle of a file, which is none then.
            async for part in request.stream():
                if len(file := file + part) > LARGEST:
                    raise HTTPException(413, f"more than {LARGEST} bytes")
        answer: asyncio.Future[list[dnc.Detection]] = asyncio.get_running_loop().create_future()
        try:
            if queue.full():  # Before the work of decoding, and once more after it.
                raise asyncio.QueueFull
            queue.put_nowait((await asyncio.to_thread(engine.inputs.pixels, file), answer))
        except dnc.DncError as error:
            raise HTTPException(400, error.message) from error
        except asyncio.QueueFull:
            raise HTTPException(503, "too many images wait already", {"Retry-After": "1"}) from None
        return [box.to_json() for box in await answer]

    return app


if __name__ == "__main__":
    import uvicorn

    parser = argparse.ArgumentParser(description="Boxes over HTTP.")
    parser.add_argument("engine", help="an engine folder or package")
    parser.add_argument("--batch", type=int, default=8, help="images of a run, at most")
    parser.add_argument("--waiting", type=int, default=32, help="images that wait; more are refused")
    given = parser.parse_args()
    uvicorn.run(service(dnc.load(given.engine), given.batch, given.waiting))
