"""Triton's server from the wheel of pytriton: two instances in Python, with its dynamic batcher."""

from __future__ import annotations

import os
import sys
import sysconfig
from typing import Any

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig
from work import CORES, batch_classifier

MAX = 8


def classify(triton: Any, model: str) -> None:
    def instance() -> Any:
        session = batch_classifier(model)

        @batch
        def infer(data: Any) -> dict[str, Any]:
            answers = session([jpeg for (jpeg,) in data])
            return {
                "class": np.array([[answer["class"]] for answer in answers], np.int64),
                "score": np.array([[answer["score"]] for answer in answers], np.float32),
            }

        return infer

    triton.bind(
        model_name="classify",
        infer_func=[instance() for _ in range(CORES)],
        inputs=[Tensor(name="data", dtype=bytes, shape=(1,))],
        outputs=[
            Tensor(name="class", dtype=np.int64, shape=(1,)),
            Tensor(name="score", dtype=np.float32, shape=(1,)),
        ],
        config=ModelConfig(max_batch_size=MAX, batcher=DynamicBatcher()),
        strict=False,
    )


def echo(triton: Any, model: str) -> None:
    @batch
    def infer(data: Any) -> dict[str, Any]:
        return {"result": data}

    triton.bind(
        model_name="echo",
        infer_func=[infer] * CORES,
        inputs=[Tensor(name="data", dtype=bytes, shape=(1,))],
        outputs=[Tensor(name="result", dtype=bytes, shape=(1,))],
        config=ModelConfig(max_batch_size=64, batcher=DynamicBatcher()),
        strict=False,
    )


if __name__ == "__main__":
    what, port, model = sys.argv[1:]
    # The server embeds Python: that of this process, not another one of the system.
    libraries = [sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH")]
    os.environ["LD_LIBRARY_PATH"] = ":".join(filter(None, libraries))
    first = int(port)
    config = TritonConfig(
        http_address="127.0.0.1", http_port=first, grpc_port=first + 1, allow_metrics=False, log_verbose=0
    )
    with Triton(config=config) as triton:
        {"classify": classify, "echo": echo}[what](triton, model)
        triton.serve()
