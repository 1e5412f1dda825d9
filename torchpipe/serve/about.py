"""What the protocol says of a server and its models: metadata, configuration, statistics."""

from __future__ import annotations

from typing import Any

from .. import __version__
from .counted import executions, queued_ns, totals_of_model
from .models import Counts, Model, Models
from .signature import Signature, Tensor

EXTENSIONS = ["binary_tensor_data", "statistics", "model_configuration", "model_repository"]


def server_metadata(shared_memory: bool = False) -> dict[str, Any]:
    """Name, version and extensions."""
    extensions = [*EXTENSIONS, "system_shared_memory"] if shared_memory else EXTENSIONS
    return {"name": "torchpipe", "version": __version__, "extensions": extensions}


def model_metadata(model: Model) -> dict[str, Any]:
    """What a model takes and gives; outputs only where its configuration lists them."""
    signature = model.signature
    return {
        "name": model.name,
        "versions": [signature.version],
        "platform": "torchpipe",
        "inputs": [_tensor(each, signature) for each in signature.inputs.values()],
        "outputs": [_tensor(each, signature) for each in signature.outputs.values()],
    }


def _tensor(tensor: Tensor, signature: Signature) -> dict[str, Any]:
    shape = [-1, *tensor.shape] if signature.max_batch_size else list(tensor.shape)
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": shape}


def model_config(model: Model) -> dict[str, Any]:
    """The same in the words of a Triton configuration."""
    signature = model.signature
    return {
        "name": model.name,
        "platform": "torchpipe",
        "backend": "torchpipe",
        "max_batch_size": signature.max_batch_size,
        "version_policy": {"specific": {"versions": [int(signature.version)]}},
        "input": [_configured(each) for each in signature.inputs.values()],
        "output": [_configured(each) for each in signature.outputs.values()],
    }


def _configured(tensor: Tensor) -> dict[str, Any]:
    name = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
    return {"name": tensor.name, "data_type": f"TYPE_{name}", "dims": list(tensor.shape)}


def statistics(models: list[Model]) -> dict[str, Any]:
    """What was counted, as Triton tells it; times in nanoseconds."""
    return {"model_stats": [_statistics(model) for model in models]}


def _statistics(model: Model) -> dict[str, Any]:
    counts: Counts = model.counts
    totals = totals_of_model(model)
    with counts.lock:
        calls, rows = counts.calls, counts.rows
        queued = min(queued_ns(totals) * calls // max(rows, 1), counts.infer_ns)  # rows wait side by side
        durations = {
            "success": (calls, counts.success_ns),
            "fail": (counts.failed, counts.failed_ns),
            "queue": (calls, queued),
            "compute_input": (calls, counts.input_ns),
            "compute_infer": (calls, counts.infer_ns - queued),
            "compute_output": (calls, counts.output_ns),
            "cache_hit": (0, 0),
            "cache_miss": (0, 0),
        }
        last = counts.last_ms
    return {
        "name": model.name,
        "version": model.signature.version,
        "last_inference": last,
        "inference_count": rows,
        "execution_count": executions(model, totals),
        "inference_stats": {name: {"count": count, "ns": ns} for name, (count, ns) in durations.items()},
        "batch_stats": [],
    }


def repository(models: Models, ready_only: bool) -> list[dict[str, Any]]:
    """All models, and whether each is ready."""
    listed = []
    for model in models:
        state = "READY" if model.ready else "LOADING" if model.why == "loading" else "UNAVAILABLE"
        if not ready_only or state == "READY":
            why = model.why or ("" if state == "READY" else "see /v2/models/NAME/ready")
            listed.append(
                {"name": model.name, "version": model.signature.version, "state": state, "reason": why}
            )
    return listed
