"""Backends on tensors: moved, changed, resized, cut, joined, read and written.

Which to take:

* **From an image to a tensor**: ``Mat2Tensor``; its parameter ``device`` says where. ``Mat2CpuTensor`` and
  ``Mat2GpuTensor`` are the same for one device.
* **A fixed size**: ``ResizeTensor``. ``ResizePadTensor`` keeps the shape and pads. ``ResizeTensorV1`` gives
  the pixels of an older way, for networks that depend on them.
* **Many boxes of one image**: ``CropResizeTensors``, in one call. ``CropTensor`` cuts one.
* **All of it for a batch on a GPU**: ``PreprocessTensor``, in the family ``gpu``, needs one launch where a
  chain of these needs many.
* **Lists of tensors**: ``CatTensor`` joins, ``SplitTensor`` splits. ``AppendTensor``,
  ``AppendOtherTensor``, ``Append2OtherTensor`` and ``InsertTensor`` join with what another key of the
  request holds.
"""
