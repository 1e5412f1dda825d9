"""What all tests share."""

import pytest
from threads import Gate, backend, copy_data

from torchpipe.testing import registrations


@pytest.fixture(autouse=True)
def registry_as_before():
    """Forget at the end of a test what it registered."""
    with registrations():
        yield


@pytest.fixture
def gate():
    """Where backends of a test stop until it opens, at its end at the latest."""
    gate = Gate()
    yield gate
    gate.open()


@pytest.fixture
def held(gate):
    """A backend ``Held`` that stops at the gate for ``hold``."""

    def forward(batch):
        if batch[0]["data"] == "hold":
            gate.stop()
        copy_data(batch)

    backend("Held", forward)
