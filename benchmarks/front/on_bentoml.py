"""BentoML: two workers, each with a session."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import bentoml
from bentoml.validators import ContentType
from work import CORES, Answer, classifier

Jpeg = Annotated[Path, ContentType("image/jpeg")]


@bentoml.service(workers=CORES, traffic={"timeout": 60}, metrics={"enabled": False})
class Classify:
    def __init__(self) -> None:
        self.session = classifier(os.environ["MODEL"])

    @bentoml.api(route="/classify")
    def classify(self, jpeg: Jpeg, /) -> Answer:
        return self.session(jpeg.read_bytes())


@bentoml.service(workers=CORES, traffic={"timeout": 60}, metrics={"enabled": False})
class Echo:
    @bentoml.api(route="/echo")
    async def echo(self, text: str, /) -> str:
        return text


if __name__ == "__main__":
    what, port, model = sys.argv[1:]
    os.environ.update(MODEL=model, BENTOML_DO_NOT_TRACK="True")
    service = {"classify": "Classify", "echo": "Echo"}[what]
    here = str(Path(__file__).resolve().parent)
    bento = str(Path(sys.executable).parent / "bentoml")
    os.execv(
        bento,
        [
            bento,
            "serve",
            f"on_bentoml:{service}",
            "--working-dir",
            here,
            "--host",
            "127.0.0.1",
            "--port",
            port,
            "-q",
        ],
    )
