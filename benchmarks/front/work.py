"""What every rival does with a request: classify a JPEG, or give 100 bytes back."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))

import handmade

SIDE, MEAN, STD = 224, 127.0, 128.0
CORES = 2
"""Sessions of one thread, and workers, as each rival's documentation recommends for a machine of 2 cores."""

Answer = dict[str, Any]


def classifier(model: str) -> Callable[[bytes], Answer]:
    """A function of a JPEG, with a session of one thread of its own."""
    handmade.level()
    run = handmade.network(model)

    def classify(jpeg: bytes) -> Answer:
        return best(run(image(jpeg))[0])

    return classify


def batch_classifier(model: str) -> Callable[[Sequence[bytes]], list[Answer]]:
    """The same of several JPEGs, which the network gets together."""
    import numpy as np

    handmade.level()
    run = handmade.network(model)

    def classify(jpegs: Sequence[bytes]) -> list[Answer]:
        return [best(row) for row in run(np.concatenate([image(jpeg) for jpeg in jpegs]))]

    return classify


def image(jpeg: bytes) -> Any:
    """A normalised tensor of 1 x 3 x 224 x 224."""
    return handmade.normalised(handmade.planes(handmade.resize(handmade.decode(jpeg), SIDE)), MEAN, STD)


def best(scores: Any) -> Answer:
    """The class and its softmax, as SoftmaxArgMaxTensor gives them."""
    import numpy as np

    index = int(scores.argmax())
    return {"class": index, "score": float(1 / np.exp(scores - scores[index]).sum())}
