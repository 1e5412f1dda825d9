"""python -m torchpipe: run, backends, explain, bench."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from torchpipe.__main__ import main

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "demo" / "images"

OWN = """
import beside, numpy as np, torch, torchpipe

assert __name__ != "__main__"

@torchpipe.register_backend
def own(data):
    return beside.twice(len(data))

@torchpipe.register_backend
class Everything(torchpipe.Backend):
    def forward_one(self, request):
        request["result"] = "text"
        request["floats"] = np.arange(4.0)
        request["half"] = torch.ones(3, dtype=torch.bfloat16)
        request["list"] = [np.zeros((2, 2), np.uint8), (b"plain", 5)]
        request["by name"] = {"a/b": torch.arange(3)}
        request["score"] = np.float32(0.5)
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "pipe.toml"
    path.write_text('backend = "S[DecodeMat,ResizeMat]"\nresize_h = 8\nresize_w = 9\n')
    return str(path)


@pytest.fixture
def own(tmp_path):
    """A file that registers backends and needs a module beside it, and a configuration of one of them."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "beside.py").write_text("def twice(x):\n    return 2 * x\n")
    (folder / "own.py").write_text(OWN)
    (folder / "own.toml").write_text('backend = "own"\n')
    (folder / "all.toml").write_text('backend = "Everything"\n')
    return folder


def torchpipe(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "torchpipe", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        **options,
    )


def test_run_prints_what_came_out_of_each_file(config, capsys):
    assert main(["run", config, str(IMAGES / "cat.jpg")]) == 0
    assert "ndarray (8, 9, 3) uint8" in capsys.readouterr().out


def test_run_reports_a_file_that_could_not_be_processed_and_goes_on(config, capsys):
    assert main(["run", config, str(IMAGES / "broken.jpg"), str(IMAGES / "cat.jpg")]) == 1
    broken, cat = capsys.readouterr().out.splitlines()
    assert "no result: " in broken
    assert "(8, 9, 3)" in cat


def test_run_prints_how_many_bytes_there_are_not_the_bytes(tmp_path, capsys):
    path = tmp_path / "bytes.toml"
    path.write_text('backend = "S[DecodeMat,EncodeMat]"\n')
    assert main(["run", str(path), str(IMAGES / "cat.jpg")]) == 0
    printed = capsys.readouterr().out
    assert " bytes" in printed
    assert len(printed) < 200


def test_run_writes_images_as_they_look_whatever_the_order_of_their_colours(tmp_path, capsys):
    written = []
    for order in ("rgb", "bgr"):
        path = tmp_path / f"{order}.toml"
        path.write_text(f'backend = "S[DecodeMat,CvtColorMat]"\ncolor = "{order}"\n')
        out = tmp_path / "new" / order
        assert main(["run", str(path), str(IMAGES / "coffee.jpg"), "--out", str(out)]) == 0
        assert f"wrote {out / 'coffee-result.png'}" in capsys.readouterr().out
        written.append(cv2.imread(str(out / "coffee-result.png")))
    assert np.array_equal(*written)
    assert np.array_equal(written[0], cv2.imread(str(IMAGES / "coffee.jpg")))


def test_run_writes_bytes_as_they_are_under_a_name_that_says_what_they_are(tmp_path):
    path = tmp_path / "bytes.toml"
    path.write_text('backend = "S[DecodeMat,EncodeMat]"\n')
    assert main(["run", str(path), str(IMAGES / "cat.jpg"), "--out", str(tmp_path)]) == 0
    assert cv2.imread(str(tmp_path / "cat-result.jpg")) is not None


def test_run_writes_arrays_and_tensors_wherever_they_are_in_an_answer(own, capsys):
    out = own / "out"
    arguments = ["run", str(own / "all.toml"), "--load", str(own / "own.py"), "--out", str(out)]
    assert main([*arguments, str(IMAGES / "cat.jpg")]) == 0
    printed = capsys.readouterr().out
    assert "'score': 0.5" in printed
    assert "'floats': ndarray (4,) float64 [0.0, 1.0, 2.0, 3.0]" in printed
    assert "(5 bytes, 5)" in printed
    assert sorted(path.name for path in out.iterdir()) == [
        "cat-by_name-a_b.npy",
        "cat-floats.npy",
        "cat-half.pt",
        "cat-list-0.png",
        "cat-list-1-0.bin",
    ]
    assert np.load(out / "cat-floats.npy").tolist() == [0, 1, 2, 3]
    assert np.load(out / "cat-by_name-a_b.npy").tolist() == [0, 1, 2]
    assert torch.equal(torch.load(out / "cat-half.pt"), torch.ones(3, dtype=torch.bfloat16))
    assert (out / "cat-list-1-0.bin").read_bytes() == b"plain"


def test_files_of_one_name_in_two_folders_do_not_overwrite_each_others_answers(config, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.jpg").write_bytes((IMAGES / "cat.jpg").read_bytes())
    files = [str(tmp_path / "a" / "x.jpg"), str(tmp_path / "b" / "x.jpg")]
    for _ in range(2):  # a second run replaces what the first one wrote
        assert main(["run", config, *files, "--out", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["x-2-result.png", "x-result.png"]


def test_an_out_that_is_a_file_is_refused(config, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["run", config, str(IMAGES / "cat.jpg"), "--out", str(tmp_path / "file")]) == 2
    assert "file" in capsys.readouterr().err


def test_backends_lists_all_or_shows_one(capsys):
    assert main(["backends"]) == 0
    assert "Sequential" in capsys.readouterr().out
    assert main(["backends", "ResizeMat"]) == 0
    assert "resize_h: int, 1 to 1048576 (required)" in capsys.readouterr().out


def test_backends_searches_names_aliases_and_summaries(capsys):
    assert main(["backends", "yolo"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "YoloV5Boxes",
        "YoloV8Boxes",
        "YoloXBoxes",
    ]
    assert main(["backends", "subprocess"]) == 0  # an alias
    assert capsys.readouterr().out.startswith("Process ")
    assert main(["backends", "WORKER", "processes"]) == 0  # its summary, in any case
    assert capsys.readouterr().out.startswith("Process ")


def test_backends_shows_those_that_a_file_registers(own, capsys):
    assert main(["backends", "own", "--load", str(own / "own.py")]) == 0
    assert capsys.readouterr().out.startswith("own\n")


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
    ("command", "more", "printed"),
    [
        ("run", [IMAGES / "cat.jpg"], f"'result': {2 * (IMAGES / 'cat.jpg').stat().st_size}"),
        ("explain", [], "own"),
        ("bench", [IMAGES, "--clients", "1", "--total", "5"], "'requests': "),
        ("show", ["--mermaid"], "own"),
    ],
)
def test_every_command_with_a_configuration_loads_own_backends(command, more, printed, own):
    done = torchpipe(command, own / "own.toml", *more, "--load", own / "own.py")
    assert done.returncode == 0, done.stderr
    assert printed in done.stdout


def test_own_backends_run_in_worker_processes_too(own):
    (own / "process.toml").write_text('backend = "Process[plain]"\n')
    (own / "plain.py").write_text(
        "import torchpipe\n\ndef half(x):\n    return x // 2\n\n"
        "@torchpipe.register_backend\ndef plain(data):\n    return half(len(data))\n"
    )
    done = torchpipe("run", own / "process.toml", IMAGES / "cat.jpg", "--load", own / "plain.py")
    assert f"'result': {(IMAGES / 'cat.jpg').stat().st_size // 2}" in done.stdout, done.stderr


def test_a_file_to_load_that_raises_is_shown_where_it_does(own):
    (own / "broken.py").write_text("import torchpipe\n\nvalue = 1 / 0\n")
    done = torchpipe("explain", own / "own.toml", "--load", own / "broken.py")
    assert done.returncode == 2
    assert "broken.py" in done.stderr
    assert "value = 1 / 0" in done.stderr
    assert "ZeroDivisionError" in done.stderr


@pytest.mark.parametrize("command", ["backends", "backends Sequential", "explain {config}"])
def test_a_reader_that_goes_away_ends_a_command_quietly(command, config):
    done = subprocess.run(
        f"set -o pipefail; {sys.executable} -u -m torchpipe {command.format(config=config)} | head -c 1",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stderr == ""
    assert len(done.stdout) == 1
    assert done.returncode in (0, 141)


def test_a_reader_that_was_never_there_ends_a_command_quietly(config):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "torchpipe", "explain", config],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    os.close(write)
    assert done.stderr == ""
    assert done.returncode == 141


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["backends", "RezizeMat"], "Did you mean 'ResizeMat'"),
        (["explain", "missing.toml"], "cannot read 'missing.toml'"),
        (["run", "{config}", "missing.jpg"], "missing.jpg"),
        (["explain", "{config}", "--load", "missing.py"], "missing.py"),
    ],
)
def test_a_mistake_ends_with_status_2_and_one_line_without_a_traceback(arguments, message, config):
    done = torchpipe(*(argument.format(config=config) for argument in arguments), cwd=ROOT)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_make_alone_lists_its_targets():
    done = subprocess.run(["make", "-C", str(ROOT)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    listed = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("  make ")}
    (targets,) = (line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith(".PHONY"))
    assert listed == set(targets.split()[1:])
