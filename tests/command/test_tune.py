"""python -m torchpipe tune: on pipes whose costs are known it finds the known best, and says why."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree
from pathlib import Path

import pytest

import torchpipe
from torchpipe.__main__ import main
from torchpipe.config.pipe_config import load as load_config
from torchpipe.tune import costs as costs_module
from torchpipe.tune import load, model, space
from torchpipe.tune.costs import Measured, NodeCosts
from torchpipe.tune.model import Model
from torchpipe.tune.search import Search, Trial
from torchpipe.tune.space import Knob, Space

ROOT = Path(__file__).parents[2]

OWN = """
import threading, time, torchpipe

running, lock = [0], threading.Lock()


@torchpipe.register_backend
class Timed(torchpipe.Backend):
    '''A batch takes ``fixed`` + ``each`` * size ms, without the interpreter lock.

    ``crowded``: as many times as long as there are batches running.
    '''

    def __init__(
        self, max: int = 1, threads: int = 1, fixed: float = 0.0, each: float = 0.0, crowded: bool = False
    ) -> None:
        self.max, self.threads, self.fixed, self.each, self.crowded = max, threads, fixed, each, crowded

    def forward(self, batch):
        with lock:
            running[0] += 1
            others = running[0] if self.crowded else 1
        time.sleep((self.fixed + self.each * len(batch)) / self.threads * others * others / 1000)
        with lock:
            running[0] -= 1
        for request in batch:
            if request["data"] == b"raises":
                raise ValueError("no such thing")
            if request["data"] != b"bad":
                request["result"] = request["data"]
"""


@pytest.fixture
def files(tmp_path):
    """A folder with three files that pipes can process."""
    folder = tmp_path / "files"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / f"{name}.bin").write_bytes(name.encode())
    return folder


@pytest.fixture
def tune(tmp_path, files, capsys):
    """The command on a configuration, with loads that are short: its status, and what it printed."""
    (tmp_path / "own.py").write_text(OWN)

    def run(text, *arguments, folder=files, p99="300ms"):
        config = tmp_path / "pipe.toml"
        config.write_text(text)
        given = ["tune", config, folder, "--p99", p99, "--load", tmp_path / "own.py", "--seconds", "0.2"]
        status = main([*map(str, given), *arguments])
        assert config.read_text() == text or str(config) in arguments
        return status, capsys.readouterr()

    return run


# What is found


@pytest.mark.timeout(180)
def test_more_instances_are_found_where_those_given_are_too_few(tune, tmp_path):
    status, printed = tune('[node]\nbackend = "Timed"\neach = 20\n', "--only", "node.instance_num=1,4")
    assert status == 0
    written = (tmp_path / "pipe.tuned.toml").read_text()
    assert torchpipe.parse_toml(tmp_path / "pipe.tuned.toml")["node"]["instance_num"] == 4
    assert "# tune: 4; measured: 1 gave" in written
    assert "Asked for: p99 at most 300 ms" in written
    with torchpipe.pipe(tmp_path / "pipe.tuned.toml") as pipe:
        assert pipe.health()["nodes"]["node"]["instances"] == 4
    assert "measuring batches of 'node'" in printed.err
    assert "a second: p99" in printed.err
    assert "requests/s" in printed.out  # the frontier
    assert "*node.instance_num = 4" in printed.out
    assert "o" in printed.out.split("300 ms |")[0] + printed.out.split("300 ms |")[1]


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_larger_batches_are_found_where_their_cost_is_fixed_and_small_ones_where_it_is_not(tune, tmp_path):
    text = (
        '[cheap]\nbackend = "Timed"\nfixed = 30\nnext = "dear"\n'
        '[dear]\nbackend = "Timed"\neach = 1\nmax = 1\n'
    )
    status, _ = tune(text, "--only", "cheap.max=1,8", "dear.instance_num=1,2")
    assert status == 0
    found = torchpipe.parse_toml(tmp_path / "pipe.tuned.toml")
    assert found["cheap"]["max"] == 8


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_fewer_instances_are_found_where_they_get_in_each_others_way(tune, tmp_path):
    text = '[node]\nbackend = "Timed"\neach = 10\ncrowded = true\ninstance_num = 4\n'
    status, _ = tune(text, "--only", "node.instance_num=1,4")
    assert status == 0
    assert torchpipe.parse_toml(tmp_path / "pipe.tuned.toml")["node"]["instance_num"] == 1


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_at_a_rate_the_threads_are_found_that_give_the_least_latency(tune, tmp_path):
    status, printed = tune(
        '[node]\nbackend = "Timed"\neach = 40\n', "--rate", "10", "--only", "node.threads=1,8"
    )
    assert status == 0
    assert torchpipe.parse_toml(tmp_path / "pipe.tuned.toml")["node"]["threads"] == 8
    assert "at 10 requests a second" in printed.out
    assert printed.out.splitlines()[0].split()[0] == "threads"


@pytest.mark.timeout(180)
def test_files_that_the_pipe_cannot_process_are_counted_named_and_left_out(tune, files):
    (files / "bad.bin").write_bytes(b"bad")
    (files / "worse.bin").write_bytes(b"raises")
    status, printed = tune('[node]\nbackend = "Timed"\neach = 5\n', "--only", "node.instance_num=1,2")
    assert status == 0
    assert "3 files of" in printed.err
    assert "2 files that the pipe cannot process are left out" in printed.err
    assert "bad.bin: node 'node', backend Timed left no result" in printed.err
    assert "worse.bin: no such thing" in printed.err
    assert "failed" not in printed.err


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_value_that_cannot_be_built_is_told_and_not_chosen(tune, tmp_path):
    text = OWN + (
        "\n\n@torchpipe.register_backend\nclass Picky(Timed):\n"
        "    def __init__(self, threads: int = 1, each: float = 0.0) -> None:\n"
        "        super().__init__(threads=threads, each=each)\n"
        "        if threads == 4:\n            raise OSError('no four')\n"
    )
    (tmp_path / "own.py").write_text(text)
    status, printed = tune('[node]\nbackend = "Picky"\neach = 20\n', "--only", "node.threads=1,2,4")
    assert status == 0
    assert "cannot be built with node.threads = 4: no four" in printed.err
    assert torchpipe.parse_toml(tmp_path / "pipe.tuned.toml")["node"]["threads"] == 2


@pytest.mark.timeout(180)
def test_a_plot_is_drawn_as_svg(tune, tmp_path):
    picture = tmp_path / "plot.svg"
    status, printed = tune(
        '[node]\nbackend = "Timed"\neach = 5\n', "--only", "node.instance_num=1,2", "--plot", str(picture)
    )
    assert status == 0
    assert f"drawn in {picture}" in printed.out
    root = xml.etree.ElementTree.parse(picture).getroot()
    circles = [one for one in root.iter() if one.tag.endswith("circle")]
    assert any(one.get("class") == "best" for one in circles)
    assert "node.instance_num" in picture.read_text()


# What is refused


@pytest.mark.timeout(180)
def test_a_latency_that_nothing_reaches_is_told_with_the_best_that_was_found(tune, tmp_path):
    status, printed = tune(
        '[node]\nbackend = "Timed"\neach = 50\n', "--only", "node.instance_num=1,2", p99="10ms"
    )
    assert status == 1
    assert "no setting answers 99 of 100 requests within 10 ms. The best found: " in printed.err
    assert not (tmp_path / "pipe.tuned.toml").exists()


def test_mistakes_are_told_before_anything_is_loaded(tune, tmp_path, files):
    text = '[node]\nbackend = "Timed"\n'
    empty = tmp_path / "empty"
    empty.mkdir()
    useless = tmp_path / "useless"
    useless.mkdir()
    (useless / "x.bin").write_bytes(b"bad")
    for arguments, options, told in (
        ((), {"folder": tmp_path / "no"}, "is no folder"),
        ((), {"folder": empty}, "there is no file in the folder"),
        ((), {"folder": useless}, "none of the 1 files in"),
        ((), {"folder": useless}, "x.bin: node 'node', backend Timed left no result"),
        (("--only", "nod.max"), {}, "is nothing to tune. Did you mean"),
        (("--only", "node.max=a"), {}, "write numbers"),
        (("--only", "node=1"), {}, "values belong to a key"),
        (("--only", "node.max=0"), {}, "max is 1 or more, not 0"),
        (("--plot", "x.jpg"), {}, ".svg or .png"),
        (("--out", str(tmp_path / "no" / "x.toml")), {}, "there is no folder"),
    ):
        status, printed = tune(text, *arguments, **options)
        assert status == 2, told
        assert told in printed.err
    status, printed = tune('[node]\nbackend = "Tymed"\n')
    assert status == 2
    assert "Timed" in printed.err
    status, printed = tune('[node]\nbackend = "Timed"\n"Interpreter::backend" = "Identity"\n')
    assert status == 2
    assert "without a scheduler" in printed.err


@pytest.mark.parametrize("text", ["50", "fast", "-1ms", "0ms", "1.2.3s", "50 minutes"])
def test_a_latency_is_a_number_of_ms_or_s(text, capsys):
    with pytest.raises(SystemExit):
        main(["tune", "x.toml", "files", f"--p99={text}"])
    assert "is no time such as 50ms or 1.5s" in capsys.readouterr().err


# Ctrl-C


def interrupted(tmp_path, files, word, count=1):
    """Status, output and errors of the command; it gets a SIGINT when ``word`` came ``count`` times."""
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "pipe.toml").write_text('[node]\nbackend = "Timed"\neach = 10\nfixed = 20\n')
    given = ["tune", tmp_path / "pipe.toml", files, "--p99", "400ms", "--load", tmp_path / "own.py"]
    given += ["--seconds", "0.2", "--only", "node.instance_num=1,2,4"]
    process = subprocess.Popen(
        [sys.executable, "-m", "torchpipe", *map(str, given)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    errors = []
    for line in process.stderr:
        errors.append(line)
        if sum(word in line for line in errors) >= count:
            process.send_signal(signal.SIGINT)
            break
    out, rest = process.communicate(timeout=150)
    return process.returncode, out, "".join(errors) + rest


@pytest.mark.timeout(180)
def test_ctrl_c_ends_the_search_and_writes_what_was_found(tmp_path, files):
    status, out, errors = interrupted(tmp_path, files, "instance_num", 3)
    assert status == 130
    assert "Traceback" not in errors
    assert "written to" in out
    assert "It was interrupted" in (tmp_path / "pipe.tuned.toml").read_text()
    with torchpipe_registered(tmp_path):
        load_config(str(tmp_path / "pipe.tuned.toml"))


def test_ctrl_c_before_anything_is_measured_writes_nothing(tmp_path, files):
    status, _, errors = interrupted(tmp_path, files, "measuring batches")
    assert status == 130
    assert "interrupted before anything was measured; nothing is written" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "pipe.tuned.toml").exists()


class torchpipe_registered:  # noqa: N801
    """With the backends of own.py."""

    def __init__(self, folder):
        self.folder = folder

    def __enter__(self):
        exec((self.folder / "own.py").read_text(), {})

    def __exit__(self, *exc):
        torchpipe.unregister("Timed")


# The model


def costs(fixed, each, most, cores=0.0, held=0.0):
    found = NodeCosts()
    for size in (1, 2, 4, 8, 16):
        if size <= most:
            found.seconds[size] = (fixed + each * size) / 1000
            found.cores[size], found.held[size] = cores, held
            for _ in range(5):
                found.fit.add(size, found.seconds[size])
    return found


def predicted(knobs, nodes, p99=0.2, rate=None, cores=None, monkeypatch=None):
    """The setting that a search holds for the best, by the names of its knobs; and the model."""
    if monkeypatch is not None:
        monkeypatch.setattr(model, "cores", lambda: cores)
    tried = Space(knobs)
    base = {name: {"instance_num": 1, "batching_timeout": 0.0} for name in nodes}
    spread = {name: [0.8, 1.0, 1.2] for name in nodes}
    measured = Measured([dict.fromkeys(nodes, 1)], nodes, spread, base)
    made = Model(tried, measured, p99, rate)
    with torchpipe.pipe({"backend": "Identity"}) as pipe:
        search = Search(pipe, load.Work([], [b""], {}), tried, made, 1.0, print)
        best = search.predicted()[0]
    return {knob.name: value for knob, value in zip(knobs, best, strict=True)}, made, best


def test_the_model_finds_the_fewest_instances_that_use_all_cores(monkeypatch):
    knob = Knob("node", "instance_num", "instance_num", (1, 2, 4, 8), 1)
    best, *_ = predicted([knob], {"node": {0: costs(10, 0, 1, 1.0)}}, cores=4, monkeypatch=monkeypatch)
    assert best == {"node.instance_num": 4}


def test_the_model_knows_that_what_is_held_is_no_use_to_have_twice(monkeypatch):
    knob = Knob("node", "instance_num", "instance_num", (1, 2, 4, 8), 1)
    nodes = {"node": {0: costs(10, 0, 1, 0.0, held=1.0)}}
    best, *_ = predicted([knob], nodes, cores=4, monkeypatch=monkeypatch)
    assert best == {"node.instance_num": 1}


def test_the_model_finds_batches_where_the_cost_is_fixed(monkeypatch):
    knobs = [Knob(name, "max", "max", (1, 2, 4, 8, 16), 1) for name in ("fixed", "each")]
    nodes = {"fixed": {0: costs(20, 0.1, 16)}, "each": {0: costs(0, 2, 16)}}
    best, made, found = predicted(knobs, nodes, cores=4, monkeypatch=monkeypatch)
    assert best["fixed.max"] >= 8
    assert made.score(found) > 5 * made.score((1, 1))


def test_the_climb_ends_near_the_best_of_all_settings_of_the_model(monkeypatch):
    knobs = [
        *(Knob(name, "instance_num", "instance_num", (1, 2, 4), 1) for name in ("one", "two")),
        *(Knob(name, "max", "max", (1, 16), 1) for name in ("one", "two")),
        Knob("two", "threads", "threads", (1, 2), 1),
    ]
    nodes = {
        "one": {0: costs(2, 3, 16, 1.0)},
        "two": {1: costs(12, 1, 16, 1.0), 2: costs(7, 0.7, 16, 2.0)},
    }
    _, made, found = predicted(knobs, nodes, cores=2, monkeypatch=monkeypatch)
    every = [made.score(one) for one in itertools.product(*(knob.values for knob in knobs))]
    assert made.score(found) >= 0.95 * max(every)


def test_at_a_rate_the_model_finds_the_least_latency(monkeypatch):
    knob = Knob("node", "threads", "threads", (1, 2, 4), 1)
    by_threads = {n: costs(40 / n, 0, 1, n) for n in (1, 2, 4)}
    best, made, found = predicted([knob], {"node": by_threads}, rate=5.0, cores=4, monkeypatch=monkeypatch)
    assert best == {"node.threads": 4}
    assert -0.03 < made.score(found) < -0.01


def test_parts_of_a_request_are_followed_until_all_have_ended(monkeypatch):
    monkeypatch.setattr(model, "cores", lambda: 4)
    nodes = {name: {0: costs(10, 0, 1)} for name in ("page", "line", "text")}
    base = {name: {"instance_num": 1, "batching_timeout": 0.0} for name in nodes}
    spread = {name: [1.0] for name in nodes}
    measured = Measured([{"page": 1, "line": 5, "text": 1}], nodes, spread, base)
    made = Model(Space([]), measured, 1.0, None)
    assert made.p99_at((), 0.1) == pytest.approx(0.07)
    assert made.limit(()) == pytest.approx(20)


# What may be tried


def test_the_space_has_what_each_node_takes_and_says_why_others_are_left_alone(tmp_path):
    exec(OWN, {})
    config = {
        "a": {"backend": "Timed", "max": 3, "next": "b"},
        "b": {"backend": "MapReduce[c]", "next": "d"},
        "c": {"backend": "S[Identity,Timed(each=1)]"},
        "d": {"backend": "Timed&Timed", "max": "1&4"},
    }
    with torchpipe.pipe(config) as pipe:
        found = space.space_of(pipe, 0.1, 2)
    values = {knob.name: knob.values for knob in found.knobs}
    assert values["a.instance_num"] == (1, 2, 4)
    assert values["a.max"] == (1, 2, 3, 4, 8, 16, 32)
    assert values["a.threads"] == (1, 2)
    assert values["a.batching_timeout"][0] == 0.0
    assert set(found.left_alone) == {"b", "d"}


def test_batches_that_cannot_be_built_or_fail_are_told_and_not_tried(capsys):
    exec(OWN, {})

    @torchpipe.register_backend
    class Narrow(torchpipe.Backend):
        def __init__(self, max: int = 1, runs: int = 99) -> None:
            if max > 8:
                raise ValueError("eight at most")
            self.max, self.runs = max, runs

        def forward(self, batch):
            time.sleep(0.002)
            if len(batch) > self.runs:
                raise ValueError("too many")
            for request in batch:
                request["result"] = request["data"]

    for runs, most, told in ((99, 8, "node.max = 16: eight at most"), (2, 2, "no batches of 4: too many")):
        with torchpipe.pipe({"backend": "Narrow", "runs": runs}) as pipe:
            tried = space.space_of(pipe, 0.1, 2)
            costs_module.measure(pipe, [b"x"], tried, 0.1, print)
            assert tried.of("node")["max"].values[-1] == most
            assert told in capsys.readouterr().out
            assert pipe.explain()["node"]["max"] == 1  # it is as it was
            assert pipe.health()["nodes"]["node"]["instances"] == 1


def test_batches_that_take_longer_than_the_latency_are_not_tried(files):
    exec(OWN, {})
    with torchpipe.pipe({"backend": "Timed", "each": 30.0}) as pipe:
        tried = space.space_of(pipe, 0.1, 2)
        costs_module.measure(pipe, [b"x"], tried, 0.1, print)
        assert tried.of("node")["max"].values[-1] == 8  # on two threads


# What is written


def write(tmp_path, text, knobs, best, target="out.toml"):
    """The text that is written for a search of ``knobs`` that has found ``best``."""
    from torchpipe.tune.result import Tuned
    from torchpipe.tune.written import write as write_toml

    source = tmp_path / "in.toml"
    source.write_text(text)
    with torchpipe.pipe(source) as pipe:
        tried = Space(knobs)
        names = list(pipe.config.nodes)
        measured = Measured([dict.fromkeys(names, 1)], {name: {0: costs(1, 1, 4)} for name in names})
        measured.base = {name: {"instance_num": 1, "batching_timeout": 0.0} for name in names}
        measured.spread = {name: [1.0] for name in names}
        search = Search(
            pipe, load.Work(["x"], [b""], {}), tried, Model(tried, measured, 0.1, None), 1.0, print
        )
        shown = load.Load(50.0, 100, 0, 0.01, 0.02, False)
        search.trials[best] = Trial(best, [shown], 50.0)
        search.trials.setdefault(tried.given, Trial(tried.given, [shown], 20.0))
        write_toml(Tuned(search, "files", False, 1.0), pipe.config, str(source), str(tmp_path / target))
    return (tmp_path / target).read_text()


def test_lines_stay_where_they_are_and_their_comments_too(tmp_path):
    text = (
        '# mine\n[first]\nbackend = "Identity"   # "x" # y\n  instance_num = 1 # why\n\n# of second\n'
        '["second"]\nbackend = "Identity"\n# end\n'
    )
    knobs = [Knob(name, "instance_num", "instance_num", (1, 2), 1) for name in ("first", "second")]
    written = write(tmp_path, text, knobs, (2, 2))
    lines = [line for line in written.splitlines() if not line.startswith("# tune: ")]
    assert lines == [
        "# mine",
        "[first]",
        'backend = "Identity"   # "x" # y',
        "  # tune: 2; measured: 1 gave 20/s, 2 gave 50/s",
        "  instance_num = 2 # why",
        "",
        "# of second",
        '["second"]',
        'backend = "Identity"',
        "instance_num = 2",
        "# end",
    ]


def test_what_an_earlier_run_has_written_is_replaced(tmp_path):
    knobs = [Knob("node", "instance_num", "instance_num", (1, 2), 1)]
    once = write(tmp_path, '[node]\nbackend = "Identity"\n', knobs, (2,))
    again = write(tmp_path, once, knobs, (2,), "in.toml")
    assert again == once
    assert (tmp_path / "in.toml").read_text() == once


def test_a_flat_configuration_stays_flat(tmp_path):
    knobs = [Knob("node", "instance_num", "instance_num", (1, 2), 1)]
    written = write(tmp_path, 'backend = "Identity"\n', knobs, (2,))
    assert torchpipe.parse_toml(tmp_path / "out.toml") == {
        "global": {"backend": "Identity", "instance_num": 2}
    }
    assert "[" not in written.replace("# tune: ", "")


def test_a_text_whose_lines_cannot_be_changed_is_written_anew(tmp_path):
    text = 'a.backend = "Identity"\na.instance_num = 1\na.next = "b"\n[b]\nbackend = """\nIdentity"""\n'
    knobs = [Knob("a", "instance_num", "instance_num", (1, 2), 1)]
    write(tmp_path, text, knobs, (2,))
    before, after = (torchpipe.parse_toml(tmp_path / name) for name in ("in.toml", "out.toml"))
    before["a"]["instance_num"] = 2
    assert after == before


def test_relative_paths_lead_to_the_same_files_from_another_folder(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "x.jpg").write_bytes((ROOT / "demo" / "images" / "cat.jpg").read_bytes())
    text = '[node]\nbackend = "DecodeMat"\nwarmup = 1\nwarmup_data = "x.jpg"\n'
    knobs = [Knob("node", "instance_num", "instance_num", (1, 2), 1)]
    write(tmp_path, text, knobs, (2,), "there/out.toml")
    assert torchpipe.parse_toml(tmp_path / "there" / "out.toml")["node"]["warmup_data"] == "../x.jpg"
    with torchpipe.pipe(tmp_path / "there" / "out.toml") as pipe:
        assert pipe.health()["ready"]


# The load


def test_latencies_count_from_when_a_request_was_due_also_where_sending_is_held_up():
    gate = threading.Event()
    threading.Timer(0.6, gate.set).start()

    @torchpipe.register_backend
    def stop(data):
        gate.wait()
        return data

    with torchpipe.pipe({"backend": "stop", "max_pending": 1, "when_full": "wait"}) as pipe:
        found = load.open_loop(pipe, [b"x"], 100.0, 40, 10.0)
    assert found.sent == 40
    assert not found.ended_early
    assert found.p50 > 0.1  # they were sent late, and that counts


def test_requests_that_fail_under_load_are_counted_and_late():
    count = itertools.count()

    @torchpipe.register_backend
    def sometimes(data):
        if next(count) % 2:
            raise ValueError("every other")
        return data

    with torchpipe.pipe({"backend": "sometimes"}) as pipe:
        found = load.open_loop(pipe, [b"x"], 200.0, 50, 0.5)
        assert pipe.stats()["global"]["running"] == 0
    assert found.failed > 0
    assert found.failure == "every other"
    assert found.p99 > 0.5
