"""Ray Serve: two replicas, each with a session, behind HAProxy.

HAProxy and the settings for throughput are what its guide to performance says. With its proxy in Python
an echo is seven times slower.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

os.environ.update(RAY_SERVE_THROUGHPUT_OPTIMIZED="1", RAY_SERVE_ENABLE_HA_PROXY="1")

import ray
from ray import serve
from ray.serve.schema import LoggingConfig
from starlette.requests import Request
from starlette.responses import Response
from work import CORES, classifier

QUIET = LoggingConfig(enable_access_log=False, log_level="WARNING")
OPTIONS: dict[str, Any] = {
    "num_replicas": CORES,
    "max_ongoing_requests": 100,
    "ray_actor_options": {"num_cpus": 1},
    "logging_config": QUIET,
}


@serve.deployment(**OPTIONS)
class Classify:
    def __init__(self, model: str) -> None:
        self.classify = classifier(model)

    async def __call__(self, request: Request) -> Any:
        return self.classify(await request.body())


@serve.deployment(**OPTIONS)
class Echo:
    def __init__(self, model: str) -> None:
        pass

    async def __call__(self, request: Request) -> Response:
        return Response(await request.body(), media_type="application/octet-stream")


if __name__ == "__main__":
    what, port, model = sys.argv[1:]
    ray.init(num_cpus=CORES, include_dashboard=False, logging_level="warning")
    serve.start(logging_config=QUIET, http_options={"host": "127.0.0.1", "port": int(port)})
    serve.run({"classify": Classify, "echo": Echo}[what].bind(model), route_prefix=f"/{what}")
    signal.pause()
