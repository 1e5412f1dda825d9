"""Backends that make answers of a network's output: scores, classes, boxes.

Which to take:

* **Classes**: ``SoftmaxArgMaxTensor`` for the best one with its probability, ``TopkTensor`` for the k best,
  ``ArgMaxTensor`` for the number alone.
* **Objects**: ``YoloV8Boxes`` for YOLOv8, YOLOv9 and YOLO11, ``YoloV5Boxes`` for YOLOv5 and YOLOv7,
  ``YoloXBoxes`` for YOLOX. All of them leave out boxes that overlap; ``NMSBoxes`` does so for boxes from
  elsewhere.
* **Lines of text**: ``DBBoxes``.
"""
