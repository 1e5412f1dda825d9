"""A pipe under FastAPI: right about too many requests, late answers, clients that hang up, and the end."""

import asyncio
import math
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

import torchpipe

TIMEOUT = 2.0  # seconds that a call may take
LARGEST = 10_000_000  # bytes of one upload

CONFIG = {
    "global": {"max_pending": 64, "when_full": "refuse"},  # more than 64 inside: refuse, do not wait
    "decode": {
        "backend": "S[DecodeMat,ResizeMat,Mat2Tensor]",
        "resize_h": 224,
        "resize_w": 224,
        "device": "cpu",
        "instance_num": 2,
        "next": "measure",
    },
    "measure": {"backend": "brightness"},
}


@torchpipe.register_backend
def brightness(image):
    return round(image.float().mean().item(), 1)


@asynccontextmanager
async def lifespan(app):
    app.state.pipe = await asyncio.to_thread(torchpipe.pipe, CONFIG)  # with warmup= for slow first calls
    yield
    await asyncio.to_thread(app.state.pipe.close, timeout=10)  # waits for what is inside


app = FastAPI(lifespan=lifespan)


@app.post("/brightness")
async def answer(http: Request):
    data = bytearray()
    try:
        async for chunk in http.stream():
            data += chunk
            if len(data) > LARGEST:
                return refused(413, f"more than {LARGEST} bytes")
    except ClientDisconnect:
        return refused(499, "nobody reads this")
    request = {"data": bytes(data)}
    try:
        if not await unless_hung_up(http, app.state.pipe.async_call(request, timeout=TIMEOUT)):
            return refused(499, "nobody reads this")
    except torchpipe.OverloadedError as error:
        return refused(503, error, math.ceil(error.retry_after) or 1)
    except torchpipe.PipeClosedError as error:
        return refused(503, error, 1)
    except torchpipe.DeadlineError as error:
        return refused(504, error)
    except torchpipe.RequestError as error:  # the client's mistake
        return refused(400, error)
    if "result" not in request:  # no error, and no answer
        return refused(422, request.get("reason", "the image could not be processed"))
    return {"brightness": request["result"]}


def refused(status, reason, retry_after=None):
    headers = {"Retry-After": str(retry_after)} if retry_after else None
    return JSONResponse({"error": str(reason)}, status, headers)


async def unless_hung_up(http, call):
    """Wait for `call`, but give it up when the client has gone; whether it was done."""
    work = asyncio.ensure_future(call)
    gone = asyncio.ensure_future(hang_up(http))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            return False
        await work  # raises what it raised
        return True
    finally:
        gone.cancel()
        work.cancel()  # nothing, if it is done


async def hang_up(http):
    while (await http.receive())["type"] != "http.disconnect":
        pass


@app.get("/live")
def live():
    return {}


@app.get("/ready")
def ready():
    health = app.state.pipe.health()
    shown = {key: health[key] for key in ("ready", "closed", "inside", "nodes")}
    return JSONResponse(shown, 200 if health["ready"] else 503)
