"""What all tests share."""

import pytest

from torchpipe import registry


@pytest.fixture(autouse=True)
def registry_as_before():
    """Forget at the end of a test what it registered."""
    registry.load_built_in()
    tables = (registry._backends, registry._originals, registry._filters)
    copies = [dict(table) for table in tables]
    yield
    for table, copy in zip(tables, copies, strict=True):
        table.clear()
        table.update(copy)
