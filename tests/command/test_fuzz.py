"""Configurations come from outside: whatever they hold is understood or refused, and none of it is run."""

import ast
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "fuzz"))

from targets import TARGETS, corpus  # noqa: E402

WORDS = [
    ast.literal_eval(f"b{line}")
    for line in (ROOT / "tests" / "fuzz" / "words.txt").read_text().splitlines()
    if line
]


@pytest.mark.parametrize(
    ("target", "data"), [(target, data) for target in TARGETS for data in corpus(target)]
)  # fmt: skip
def test_every_input_that_fuzzing_kept_is_understood_or_refused(target, data):
    TARGETS[target](data)


@st.composite
def changed(draw: st.DrawFn, inputs: list[bytes]) -> bytes:
    """One of the inputs, cut and joined with others, words and rubbish in between."""
    parts = st.one_of(st.sampled_from(inputs), st.sampled_from(WORDS), st.binary(max_size=8))
    data = b""
    for part in draw(st.lists(parts, min_size=1, max_size=6)):
        start = draw(st.integers(0, len(part)))
        data += part[start : start + draw(st.integers(0, len(part)))] if draw(st.booleans()) else part
    return data


@pytest.mark.parametrize("target", list(TARGETS))
def test_whatever_is_made_of_them_is_understood_or_refused(target):
    @settings(max_examples=400, deadline=None)
    @given(changed(corpus(target)))
    def fuzz(data):
        TARGETS[target](data)

    fuzz()


FORBIDDEN = {"eval", "exec", "compile", "__import__"}
PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
# Pickles pass between a process and its own children there, over a socket pair; or within a cluster of Ray.
OWN = {"channel.py", "parent.py", "child.py", "process.py", "ray.py"}


def calls_and_imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node, node.func.id
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield node, ast.unparse(node.func)
        elif isinstance(node, ast.Import):
            yield from ((node, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node, (node.module or "").split(".")[0]


@pytest.mark.parametrize("path", sorted((ROOT / "torchpipe").rglob("*.py")), ids=lambda path: path.name)
def test_no_text_becomes_code_and_no_pickle_is_read(path):
    for node, name in calls_and_imports(path):
        where = f"{path.relative_to(ROOT)}:{node.lineno}: {name}"
        assert name not in FORBIDDEN, where
        assert name.split(".")[0] not in PICKLES or path.name in OWN, where
        if name in ("torch.load", "np.load", "numpy.load"):
            safe = {"torch.load": ("weights_only", True)}.get(name, ("allow_pickle", False))
            given_keywords = {
                k.arg: getattr(k.value, "value", None) for k in node.keywords if isinstance(node, ast.Call)
            }
            assert given_keywords.get(safe[0]) is safe[1], where
