"""The benchmarks' own rules: a limit is one, and every contestant gets our settings."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import report

    return report


def measured(report, limit, ours):
    """One point with these figures of each repeat."""
    from harness import Series

    rows = {"limit: a bare loop": limit, "ours": ours}
    return {
        ("4 callers", name): Series("4 callers", name, [{"throughput": value} for value in values], {})
        for name, values in rows.items()
    }


def test_what_beats_its_limit_in_every_repeat_fails_the_report(report):
    (found,) = report.exceeded(measured(report, [140, 144, 146], [199, 202, 207]), ["ours"])
    assert "4 callers" in found
    assert "'ours'" in found
    assert "'limit: a bare loop'" in found


def test_what_comes_near_its_limit_within_the_spread_is_fine(report):
    assert report.exceeded(measured(report, [140, 144, 146], [145, 146, 147]), ["ours"]) == []
    assert report.exceeded(measured(report, [140, 144, 146], [199, 202, 207]), ["another"]) == []


def test_the_best_of_several_limits_counts(report):
    results = measured(report, [140, 144, 146], [199, 202, 207])
    from harness import Series

    full = Series(
        "4 callers", "limit: full batches", [{"throughput": value} for value in (210, 211, 212)], {}
    )
    results["4 callers", full.contestant] = full
    assert report.exceeded(results, ["ours"]) == []


def test_a_published_report_says_so_and_ends_with_an_error(report, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    from harness import Options

    results = measured(report, [140, 144, 146], [199, 202, 207])
    with pytest.raises(SystemExit, match="NO LIMIT"):
        report.publish(
            "service", "Service", Options(3, 1.0, False), results, ["ours"], [], ["none"], tables=["none"]
        )
    assert "NO LIMIT" in (tmp_path / "service.md").read_text()


def test_every_contestant_has_the_settings_that_a_pipe_makes_for_its_process():
    code = """
import handmade
handmade.level()
import torchpipe.environment as memory, cv2
assert (handmade.LARGE, handmade.KEEP) == (memory.LARGE, memory.KEEP)
assert cv2.getNumThreads() == 1
"""
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=BENCHMARKS,
        check=True,
        env={"PYTHONPATH": f"{BENCHMARKS}:{BENCHMARKS.parent}"},
    )


def test_what_is_written_by_hand_gives_the_pixels_of_the_backends(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import handmade
    import torch

    import torchpipe

    jpeg = (BENCHMARKS.parent / "demo" / "images" / "coffee.jpg").read_bytes()
    config = {"backend": "S[DecodeMat,ResizeMat,CvtColorMat,Mat2Tensor]", "color": "rgb", "device": "cpu"}
    with torchpipe.pipe({**config, "resize_h": 224, "resize_w": 224}) as pipe:
        request = {"data": jpeg}
        pipe(request)
    split = handmade.planes(handmade.resize(handmade.decode(jpeg), 224))
    assert torch.equal(request["result"], torch.from_numpy(split)[None])
    wanted = (torch.from_numpy(split).float() - 127) / 128
    assert torch.equal(torch.from_numpy(handmade.normalised(split, 127, 128))[0], wanted)


@pytest.fixture
def network(monkeypatch):
    """What runs servers, with the folder of the small ones."""
    for library in ("uvloop", "httptools"):
        pytest.importorskip(library)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import network

    return network


def bare_server(network, folder, right=b"x" * 100):
    """The limit of front.py: it answers anything with 100 bytes."""
    body = folder / "body"
    body.write_bytes(b"x" * 100)
    asked = network.Asked("/", body, {"Content-Type": "text/plain"}, right)
    program = str(network.FRONT / "bare.py")
    return network.Server(lambda port: [sys.executable, program, "echo", str(port), ""], asked, ["uvloop"])


def test_random_arrivals_are_all_sent_and_answered_and_the_same_for_every_server(network, tmp_path):
    running = network.Running("bare", bare_server(network, tmp_path))
    try:
        assert list(running.ready()) == ["uvloop"]
        found = [running.run({"rate": 200.0, "seconds": 1.0}, repeat=1) for _ in range(2)]
    finally:
        running.stop()
    from load import poisson

    assert [each["calls"] for each in found] == [len(poisson(200.0, 1.0, seed=1))] * 2
    assert [each["failed"] for each in found] == [0, 0]


def test_a_server_with_wrong_answers_is_not_measured(network, tmp_path):
    running = network.Running("bare", bare_server(network, tmp_path, right=b"another answer"))
    try:
        with pytest.raises(RuntimeError, match="a wrong answer"):
            running.ready()
    finally:
        running.stop()


def test_a_server_that_ends_by_itself_is_told_with_its_log(network, tmp_path):
    server = bare_server(network, tmp_path)
    broken = network.Server(lambda port: [sys.executable, "-c", "raise OSError('no room')"], server.asked)
    running = network.Running("broken", broken)
    try:
        with pytest.raises(RuntimeError, match=r"broken does not start(.|\n)*OSError: no room"):
            running.ready()
    finally:
        running.stop()


def test_a_server_is_ended_with_what_it_has_started(network, tmp_path):
    code = (
        "import subprocess, sys, time; subprocess.run([sys.executable, '-c', 'import time; time.sleep(300)'])"
    )
    server = network.Server(lambda port: [sys.executable, "-c", code], bare_server(network, tmp_path).asked)
    running = network.Running("parent", server)
    end = time.monotonic() + 30
    while not (children := network.descendants(running._process.pid)) and time.monotonic() < end:
        time.sleep(0.05)
    running.stop()
    assert children
    while time.monotonic() < end and any(runs(child) for child in children):  # a killed one takes a moment
        time.sleep(0.05)
    assert not any(runs(child) for child in children)


def runs(pid):
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_the_rivals_of_the_network_give_the_answers_of_our_backend(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS / "front"))
    import torch
    import work

    import torchpipe

    scores = torch.randn(1, 1000) * 5
    with torchpipe.pipe({"backend": "SoftmaxArgMaxTensor"}) as pipe:
        request = {"data": scores}
        pipe(request)
    answer = work.best(scores.numpy()[0])
    assert answer["class"] == request["result"]
    assert answer["score"] == pytest.approx(request["score"], rel=1e-5)
