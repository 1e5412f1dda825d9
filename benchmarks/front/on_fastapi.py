"""Plain FastAPI by hand, on uvicorn: a process with a thread for each session; the echo in two processes."""

from __future__ import annotations

import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from work import CORES, classifier


def classify() -> FastAPI:
    app = FastAPI()
    sessions: SimpleQueue[Any] = SimpleQueue()
    for _ in range(CORES):
        sessions.put(classifier(os.environ["MODEL"]))
    threads = ThreadPoolExecutor(CORES)

    def work(jpeg: bytes) -> Any:
        session = sessions.get()
        try:
            return session(jpeg)
        finally:
            sessions.put(session)

    @app.post("/classify")
    async def answer(request: Request) -> Any:
        jpeg = await request.body()
        return await asyncio.get_running_loop().run_in_executor(threads, work, jpeg)

    return app


def echo() -> FastAPI:
    app = FastAPI()

    @app.post("/echo")
    async def answer(request: Request) -> Response:
        return Response(await request.body(), media_type="application/octet-stream")

    return app


if __name__ == "__main__":
    what, port, os.environ["MODEL"] = sys.argv[1:]
    uvicorn.run(
        f"on_fastapi:{what}",
        factory=True,
        app_dir=str(Path(__file__).parent),
        workers=CORES if what == "echo" else 1,
        port=int(port),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
