"""python -m torchpipe: run, backends, explain, bench."""

import subprocess
import sys
from pathlib import Path

import pytest

from torchpipe.__main__ import main

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "demo" / "images"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "pipe.toml"
    path.write_text('backend = "S[DecodeMat,ResizeMat]"\nresize_h = 8\nresize_w = 9\n')
    return str(path)


def test_run_prints_what_came_out_of_each_file(config, capsys):
    assert main(["run", config, str(IMAGES / "cat.jpg")]) == 0
    assert "ndarray (8, 9, 3) uint8" in capsys.readouterr().out


def test_run_reports_a_file_that_could_not_be_processed_and_goes_on(config, capsys):
    assert main(["run", config, str(IMAGES / "broken.jpg"), str(IMAGES / "cat.jpg")]) == 1
    broken, cat = capsys.readouterr().out.splitlines()
    assert "could not be processed" in broken
    assert "(8, 9, 3)" in cat


def test_backends_lists_all_or_shows_one(capsys):
    assert main(["backends"]) == 0
    assert "Sequential" in capsys.readouterr().out
    assert main(["backends", "ResizeMat"]) == 0
    assert "resize_h: int, 1 to 1048576 (required)" in capsys.readouterr().out


def test_explain_prints_what_was_understood(config, capsys):
    assert main(["explain", config]) == 0
    printed = capsys.readouterr().out
    assert "resize_w = 9  (node: resize_w)" in printed
    assert "DecodeMat" in printed


def test_bench_loads_the_pipe_with_a_folder_of_images(config, capsys):
    assert main(["bench", config, str(IMAGES), "--clients", "1", "2", "--total", "30"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("throughput::qps") == 2
    assert "batch_sizes" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["backends", "RezizeMat"], "Did you mean 'ResizeMat'"),
        (["explain", "missing.toml"], "cannot read 'missing.toml'"),
        (["run", "{config}", "missing.jpg"], "missing.jpg"),
    ],
)
def test_a_mistake_ends_with_status_2_and_one_line_without_a_traceback(arguments, message, config):
    filled = [argument.format(config=config) for argument in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "torchpipe", *filled], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
