"""What tests of server processes start from: a backend that takes its time, and one that does not."""

import pytest

SLOW = """
import time
import torchpipe

@torchpipe.register_backend
def slow(data):
    time.sleep(float(data))
    return 1
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "slow.toml").write_text('backend = "slow"\ninstance_num = 4\n')
    (tmp_path / "echo.toml").write_text('backend = "Identity"\n')
    return tmp_path
