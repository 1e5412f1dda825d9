"""torchpipe.model: a network made into a thread-safe function on tensors."""

from __future__ import annotations

import copy
import os
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .encryption.files import SUFFIX
from .errors import ConfigError, NoResultError, RequestError, shown
from .pipe import Pipe
from .reason import told
from .waits import Answer

if TYPE_CHECKING:
    import torch

ENGINES = {
    ".onnx": "OnnxTensor",
    ".pt2": "ModuleTensor",
    ".pt": "TorchScriptTensor",
    ".pth": "TorchScriptTensor",
    ".ts": "TorchScriptTensor",
    ".jit": "TorchScriptTensor",
    ".xml": "OpenvinoTensor",
}


class Model:
    """A network that any number of threads may call, each with its own tensors.

    Calls that come at the same time are batched on axis 0, unless an output turns out to have no rows; the
    page on engines says how that is found. ``pipe`` is the pipe inside, with its ``stats()`` and
    ``explain()``.
    """

    def __init__(self, config: dict[str, Any], warmup: Any = ()) -> None:
        self.pipe = Pipe(config, warmup=warmup)

    def __call__(self, *inputs: torch.Tensor, data: Any = None) -> torch.Tensor | list[torch.Tensor]:
        """The network's output for ``inputs``: one tensor of k rows (k x ...) for each input of the network.

        ``data``, one tensor or a list of them, is another way to give them. Returns what the network gives
        for these rows, a tensor, or a list of them for several outputs.

        Raises:
            RequestError: the inputs do not fit the network or its types, or come in both ways.
            NoResultError: the network gave nothing.
        """
        request = self._request(inputs, data)
        self.pipe(request)
        result: torch.Tensor | list[torch.Tensor] = _result(request)
        return result

    def submit(self, *inputs: torch.Tensor, data: Any = None) -> Future[Any]:
        """The same without waiting: a future of the output, which may be cancelled until it starts."""
        outer: Future[Any] = Answer()

        def finish(inner: Future[Any]) -> None:
            if not outer.set_running_or_notify_cancel():
                return
            try:
                outer.set_result(_result(inner.result()))
            except BaseException as error:
                outer.set_exception(error)

        started = self.pipe.submit(self._request(inputs, data))
        started.add_done_callback(finish)
        outer.add_done_callback(lambda future: started.cancel() if future.cancelled() else None)
        return outer

    def close(self) -> None:
        """Wait for the calls inside and release the network; a copy closes nothing."""
        self.pipe.close()

    def __copy__(self) -> Model:
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__, pipe=copy.copy(self.pipe))
        return copied

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @staticmethod
    def _request(inputs: tuple[torch.Tensor, ...], data: Any) -> dict[str, Any]:
        if data is not None:
            if inputs:
                raise RequestError(
                    "the inputs of the network come either as they are or as data = ..., not both"
                )
            return {"data": data}
        return {"data": inputs[0] if len(inputs) == 1 else list(inputs)}


def model(
    path_or_module: str | os.PathLike[str] | torch.nn.Module | None = None,
    *,
    max: int = 1,
    instance_num: int = 1,
    batching_timeout: float = 0,
    warmup: int | torch.Tensor | list[torch.Tensor] = 0,
    **parameters: Any,
) -> Model:
    """Make a network into a thread-safe function on tensors: ``y = model(x)``.

    The engine follows from the file's suffix: ``.onnx`` (ONNX Runtime), ``.pt2`` (torch.export), ``.pt``,
    ``.pth``, ``.ts`` and ``.jit`` (TorchScript), ``.xml`` (OpenVINO); all but the last also with
    ``.encrypted`` behind. An ``nn.Module`` runs as it is, in eval mode.

    >>> import torch
    >>> double = model(torch.nn.Identity(), max=4, device="cpu")
    >>> double(torch.ones(1, 2))
    tensor([[1., 1.]])

    Args:
        path_or_module: a file or an ``nn.Module``; ``model = ...`` is the same.
        max: the most calls that are batched together.
        instance_num: how many copies run at the same time.
        batching_timeout: the longest that a call waits for company, in milliseconds, where that pays.
        warmup: how many batches of each size each copy runs before it takes calls, where the network's file
            says what its inputs are; or the input of one call (a list of several) to run these batches with.
        **parameters: the engine's own, such as ``precision``, ``device``, ``threads``, ``mean``, ``std``,
            ``rows``, ``cast``; ``torchpipe.backends("OnnxTensor")`` lists them.

    Raises:
        ConfigError: neither a file nor a module; unknown suffix or parameter, missing or corrupt file, no
            such device.
    """
    import torch

    if path_or_module is None:
        path_or_module = parameters.pop("model", None)
    for key in ("backend", "model"):
        if key in parameters:
            raise ConfigError(f"{key} = {shown(parameters[key])}: it follows from the network given")
    if isinstance(path_or_module, (str, os.PathLike)):
        target: Any = os.fsdecode(path_or_module)
        suffix = Path(target.removesuffix(SUFFIX)).suffix
        if suffix not in ENGINES:
            raise ConfigError(f"no engine for {target!r}: its name must end in one of {', '.join(ENGINES)}")
        backend = ENGINES[suffix]
    elif isinstance(path_or_module, torch.nn.Module):
        target, backend = path_or_module, "ModuleTensor"
    else:
        raise ConfigError(f"a network is the path of a file or an nn.Module, not {shown(path_or_module)}")
    requests: Any = ()
    if isinstance(warmup, (torch.Tensor, list, tuple)):
        requests, warmup = {"data": list(warmup) if isinstance(warmup, tuple) else warmup}, 0
    scheduling = {"max": max, "instance_num": instance_num, "batching_timeout": batching_timeout}
    if warmup:
        parameters["warmup"] = warmup
    return Model({"backend": backend, "model": target, **scheduling, **parameters}, requests)


def _result(request: dict[str, Any]) -> Any:
    if "result" not in request:
        raise NoResultError(f"the network gave no result for this input{told(request)}")
    return request["result"]
