"""What importing torchpipe sets for the libraries below, and leaves alone."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(("given", "found"), [(None, "32"), ("4", "4")])
def test_cuda_gets_more_queues_unless_the_user_says_how_many(given, found):
    name = "CUDA_DEVICE_MAX_CONNECTIONS"
    environment = {key: value for key, value in os.environ.items() if key != name}
    if given is not None:
        environment[name] = given
    script = f"import torchpipe, os; print(os.environ[{name!r}])"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == found, done.stderr
