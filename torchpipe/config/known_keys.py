"""Keys that configurations of v0 and its successor hold, and that a node may have no use for."""

from __future__ import annotations

_ENGINE = "only engines take it"
_TENSORRT = "only TensorrtTensor takes it"
_IMAGES = "only backends that make images of a certain size take it"
_SCHEDULING = "a pipe decides this by itself; 'scheduler', 'max' and 'batching_timeout' are what can be said"

KNOWN = {
    "jump": "only Jump and MapReduce take it",
    "split": "only MapReduce takes it; a subclass of Jump has methods",
    "merge": "only MapReduce takes it; a subclass of Jump has methods",
    "save_dir": "only SaveMat, SaveMats and SaveTensor write files",
    "min": "only TensorrtTensor takes it; what a backend takes at least is its own affair",
    "max": "only engines, Max and Identities take it; what other backends take is their own affair",
    "opt": _TENSORRT,
    "range": "only Range takes it",
    "force_range": _ENGINE,
    "model": _ENGINE,
    "model_type": "the engine follows from the file's suffix",
    "precision": _ENGINE,
    "postprocessor": "only TensorrtTensor takes it; put a backend such as SoftmaxArgMaxTensor behind others",
    "post_processor": "put a backend behind the engine, S[engine,A]",
    "pre_processor": "put a backend in front of the engine, S[A,engine]",
    "preprocessor": "engines join their inputs by themselves",
    "save_engine": "TensorrtTensor writes the file that 'model::cache' names",
    "allocator": "PyTorch's is used",
    "calibrate_input": _TENSORRT,
    "calibrate_cache": _TENSORRT,
    "max_workspace_size": _TENSORRT,
    "force_layer_norm_pattern_fp32": _TENSORRT,
    "weight_budget_percentage": _TENSORRT,
    "only_keep_last_batch": "only TensorrtTensor takes it; put LastBatchTensor behind other engines",
    "log_level": _TENSORRT,
    "hardward_compatibility": "an engine is built for the GPU that is here",
    "resize_h": _IMAGES,
    "resize_w": _IMAGES,
    "max_h": _IMAGES,
    "max_w": _IMAGES,
    "pad_value": _IMAGES,
    "pad_val": _IMAGES,
    "color": "only backends that decode or convert colours take it",
    "data_format": "only DecodeTensor and Mat2Tensor take it",
    "device": "only backends that compute on a device take it",
    "device_id": "only Torch takes it",
    "priority": "only SyncTensor and Torch take it",
    "shape": "only CreateTensor takes it",
    "type": "only CreateTensor takes it",
    "multiple_instances": _SCHEDULING,
    "instance_handle": _SCHEDULING,
    "contiguous_batching": _SCHEDULING,
    "node_entrypoint": _SCHEDULING,
    "entrypoint": _SCHEDULING,
    "continue": "only the restart loop takes it",
    "register_config": "nothing here looks for another configuration",
}
"""Keys by name, and what to say of one where nobody takes it.

Not among them are keys of engines that would make answers wrong if they were ignored: ``mean``, ``std``,
``input_reorder``, ``output_reorder``, ``batch_process``.
"""

_PREFIXES = {
    "model::": _TENSORRT,
    "precision::": _TENSORRT,
    "Logger::": "only global keys set up the log",
    **dict.fromkeys(
        (
            *("PipelineV3::", "PipelineReviser::", "PhysicalView::", "BaselineSchedule::", "Schedule::"),
            *("ScheduleV3::", "SortSchedule::", "ScoreSchedule::", "RangeMerger::", "MultipleInstances::"),
            *("InstanceHandler::", "EnsureInputHasEvent::", "EventGuard::", "EventLoop::", "Ring::"),
            *("SyncRing::", "Batching::", "InstanceDispatcher::", "SharedInstancesState::"),
            *("BackgroundThread::", "DagDispatcher::"),
        ),
        _SCHEDULING,
    ),
}


def of_no_use(key: str) -> str:
    """Why a key of v0 or its successor may be without effect; "" for a key that neither had."""
    return KNOWN.get(key) or next((why for start, why in _PREFIXES.items() if key.startswith(start)), "")
