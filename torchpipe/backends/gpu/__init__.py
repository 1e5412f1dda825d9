"""Backends on GPUs: streams, JPEG files decoded in batches, one launch for images of any sizes.

Which to take:

* **From JPEG files to what a network takes**: ``S[DecodeTensor,PreprocessTensor]``. Both work on whole
  batches.
* **A stream of its own for what runs inside**: ``SyncTensor``. ``Torch`` also chooses the GPU and moves the
  data there.
"""
