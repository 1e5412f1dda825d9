"""Fuzzing with Atheris, which is not among the development packages: ``pip install atheris`` (Python 3.11+).

``python tests/fuzz/run.py expression|toml|config FOLDER [libFuzzer's options, such as -max_total_time=600]``

Starts from the corpus kept beside it and writes what it finds into FOLDER: inputs that reach new code, and
``crash-*`` for inputs that broke something. Once that is mended, keep the input in the corpus: the test suite
replays it.
"""

import sys
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import torchpipe.registry  # noqa: E402 - first without instruments: torch and the backends

torchpipe.registry.load_built_in()
for name in [name for name in sys.modules if name.split(".")[0] in ("tomllib", "tomli", "lark")]:
    del sys.modules[name]
for name in [name for name in sys.modules if name.startswith(("torchpipe.config", "torchpipe.parameters"))]:
    del sys.modules[name]
with atheris.instrument_imports(include=["torchpipe", "tomllib", "tomli", "lark"]):
    from targets import CORPUS, TARGETS


def main() -> None:
    if len(sys.argv) < 3 or sys.argv[1] not in TARGETS:
        sys.exit(__doc__)
    _, target, folder, *options = sys.argv
    Path(folder).mkdir(parents=True, exist_ok=True)
    dictionary = Path(__file__).parent / "words.txt"
    atheris.Setup(
        [
            sys.argv[0], folder, str(CORPUS / target),
            f"-dict={dictionary}", f"-artifact_prefix={folder}/", *options,
        ],
        TARGETS[target],
    )  # fmt: skip
    atheris.Fuzz()


main()
