"""Engines: backends that run a network on tensors, a batch in one call.

Which to take:

* **A network in Python on a GPU**: ``CudaGraphTensor``. **On a CPU**: ``ModuleTensor``.
* **An ONNX file on a CPU**: ``OnnxTensor`` or ``OpenvinoTensor``; measure both. On a GPU:
  ``TensorrtTensor`` or ``OnnxTensor``.
* **A file of PyTorch**: ``.pt2`` by ``ModuleTensor`` or ``CudaGraphTensor``, TorchScript by
  ``TorchScriptTensor``.
* **A single image from array to array**: ``OpenvinoMat``, as v0 had it.
"""
