"""Backends on images in the host's memory: numpy arrays of HxWxC or HxW.

Which to take:

* **A fixed size, the shape may change**: ``ResizeMat``. ``PillowResizeMat`` if the network was trained on
  images that Pillow or torchvision resized: it is antialiased, and slower.
* **A fixed size, the shape is kept, the rest is padded**: ``LetterBoxMat`` puts the content in the middle
  and tells ``scale`` and ``offset``, as YOLO's code wants it. ``TopLeftResizeMat`` does so at the top left.
  ``ResizeCenterPadMat`` and ``ResizePadMat`` are v0's names for the two places; they tell only
  ``inverse_trans``, which all four give.
* **The shape is kept, nothing is padded**: ``FixRatioResizeMat``.
* **A fixed height for lines of text**: ``FixHResizePadMat`` to one width. ``AlignMat`` with
  ``DynamicResizeMat`` to the widest of a batch, and ``BatchFixHLimitW`` with ``DynamicFixHResizePadMat`` to
  the same with padding.
* **Parts**: ``CropMat`` for a straight box in pixels, ``CropResizeMat`` for one in fractions of the image,
  ``PerspectiveTransformMat`` for a turned one, ``PerspectiveTransformMats`` for many of them.
* **On a GPU**: see the families ``tensor`` and ``gpu``.
"""
