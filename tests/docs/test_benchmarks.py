"""The benchmarks' own rules: a limit is one, and every contestant gets our settings."""

import subprocess
import sys
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
