"""What is logged, where it goes when a configuration asks, and that nothing is configured by itself."""

import logging
import re
import time

import numpy as np
import pytest
import torch
from threads import all_at_once, until

from torchpipe import ConfigError, MissingKeyError, Pipe, RequestError
from torchpipe.backends.log_files import LOGGER


def run(config, **request) -> dict:
    with Pipe(config if isinstance(config, dict) else {"backend": config}) as pipe:
        pipe(request)
    return request


@pytest.fixture(autouse=True)
def _the_logger_is_as_before():
    before = (list(LOGGER.handlers), LOGGER.level, LOGGER.propagate)
    yield
    assert (LOGGER.handlers, LOGGER.level, LOGGER.propagate) == before


# What is logged


def test_a_tensor_is_shown_with_shape_dtype_device_and_values(caplog):
    tensor = torch.arange(4.0).reshape(2, 2)
    assert run("PrintTensor", data=tensor)["result"] is tensor
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("torchpipe", logging.WARNING)
    assert "(2, 2), torch.float32, cpu" in record.getMessage()
    assert "[2., 3.]" in record.getMessage()


def test_of_a_list_each_is_shown_and_a_large_one_is_cut_short(caplog):
    run("PrintTensor", data=[torch.zeros(1), torch.zeros(1000, 1000)])
    first, second = (record.getMessage() for record in caplog.records)
    assert "0 of 2" in first
    assert "1 of 2" in second
    assert len(second) < 2000


def test_what_is_no_tensor_is_not_printed():
    with pytest.raises(RequestError, match="PrintTensor takes a tensor"):
        run("PrintTensor", data=np.ones(3))


def test_keys_are_shown_sorted(caplog):
    assert run("PrintKeys", data=5, b=1, a=2)["result"] == 5
    assert [record.getMessage() for record in caplog.records] == ["PrintKeys: a, b, data"]


def test_the_time_is_noted_and_what_passed_since_is_logged(caplog):
    before = time.time()
    request = run("S[TimeStamp(start),Sleep(time=20),LogTime(start)]", data=5)
    assert before <= request["start"] <= time.time()
    assert request["result"] == 5
    passed = re.fullmatch(r"LogTime: start was ([\d.]+) ms ago", caplog.records[-1].getMessage())
    assert passed
    assert float(passed[1]) >= 19


def test_a_time_that_is_missing_or_none_is_an_error():
    with pytest.raises(MissingKeyError, match="'start'"):
        run("LogTime(start)", data=5)
    with pytest.raises(RequestError, match="start = 'noon' is no time"):
        run("LogTime(start)", data=5, start="noon")
    for key in ("data", "result"):
        with pytest.raises(ConfigError, match="must be another key"):
            Pipe({"backend": "TimeStamp", "key": key})


# Where it goes


def logged(path) -> list[str]:
    return path.read_text().splitlines()


def test_without_a_logger_in_the_configuration_nothing_is_configured():
    with Pipe({"backend": "S[Identity,PrintKeys]"}):
        assert LOGGER.handlers == []
        assert LOGGER.level == logging.NOTSET


def test_lines_go_to_a_file_while_the_pipe_is_open(tmp_path):
    path = tmp_path / "log.txt"
    config = {
        "backend": "FileLogger",
        "path": str(path),
        "flush_every": 0,
        "pattern": "%(levelname)s %(message)s",
    }
    with Pipe(config) as pipe:
        LOGGER.info("one")
        LOGGER.debug("too little")
        request = {"data": 7}
        pipe(request)
        assert request["result"] == 7
        assert logged(path) == ["INFO one"]
    LOGGER.warning("after")
    assert logged(path) == ["INFO one"]


def test_a_child_of_the_logger_is_written_too(tmp_path):
    path = tmp_path / "log.txt"
    with Pipe({"backend": "FileLogger", "path": str(path), "pattern": "%(name)s %(message)s"}):
        logging.getLogger("torchpipe.engine").info("from below")
    assert logged(path) == ["torchpipe.engine from below"]


def test_logger_writes_to_the_console_as_well(tmp_path, capsys):
    path = tmp_path / "log.txt"
    with Pipe({"backend": "Logger", "path": str(path), "pattern": "%(message)s"}):
        LOGGER.info("both")
    assert logged(path) == ["both"]
    assert capsys.readouterr().err == "both\n"
    with Pipe({"backend": "Logger", "pattern": "%(message)s"}):
        LOGGER.info("console")
    assert capsys.readouterr().err == "console\n"


def test_instances_and_pipes_that_ask_for_the_same_share_one_handler(tmp_path):
    path = tmp_path / "log.txt"
    config = {"backend": "FileLogger", "path": str(path), "pattern": "%(message)s", "instance_num": 4}
    with Pipe(config):
        with Pipe(config):
            assert len(LOGGER.handlers) == 1
            LOGGER.info("once")
        LOGGER.info("still")
    assert logged(path) == ["once", "still"]


def test_the_most_talkative_handler_decides_and_the_users_level_stays(tmp_path):
    quiet = {"backend": "FileLogger", "path": str(tmp_path / "quiet"), "level": "error"}
    chatty = {"backend": "FileLogger", "path": str(tmp_path / "chatty"), "level": "debug"}
    with Pipe(quiet), Pipe(chatty):
        LOGGER.debug("detail")
    assert len(logged(tmp_path / "chatty")) == 1
    assert logged(tmp_path / "quiet") == []
    LOGGER.setLevel(logging.ERROR)
    try:
        with Pipe(chatty):
            assert LOGGER.level == logging.ERROR
        assert LOGGER.level == logging.ERROR
    finally:
        LOGGER.setLevel(logging.NOTSET)


def test_a_full_file_is_renamed_and_the_oldest_is_dropped(tmp_path):
    path = tmp_path / "log.txt"
    config = {
        "backend": "FileLogger",
        "path": str(path),
        "maxBytes": 30,
        "backupCount": 2,
        "pattern": "%(message)s",
    }
    with Pipe(config):
        for i in range(20):
            LOGGER.info("line %02d...", i)  # 11 bytes with its end: two fit
    assert logged(path) == ["line 18...", "line 19..."]
    assert logged(tmp_path / "log.txt.1") == ["line 16...", "line 17..."]
    assert logged(tmp_path / "log.txt.2") == ["line 14...", "line 15..."]
    assert len(list(tmp_path.iterdir())) == 3


def test_without_backups_the_one_file_begins_anew(tmp_path):
    path = tmp_path / "log.txt"
    config = {
        "backend": "FileLogger",
        "path": str(path),
        "maxBytes": 30,
        "backupCount": 0,
        "pattern": "%(message)s",
    }
    with Pipe(config):
        for i in range(5):
            LOGGER.info("line %02d...", i)
    assert logged(path) == ["line 04..."]
    assert list(tmp_path.iterdir()) == [path]


def test_a_line_longer_than_the_file_may_be_is_written_whole(tmp_path):
    path = tmp_path / "log.txt"
    with Pipe({"backend": "FileLogger", "path": str(path), "maxBytes": 5, "pattern": "%(message)s"}):
        LOGGER.info("much longer than that")
    assert logged(path) == ["much longer than that"]


def test_an_existing_file_is_continued(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("before\n")
    with Pipe({"backend": "FileLogger", "path": str(path), "pattern": "%(message)s"}):
        LOGGER.info("after")
    assert logged(path) == ["before", "after"]


def test_lines_reach_the_file_within_the_time_that_was_set(tmp_path):
    path = tmp_path / "log.txt"
    with Pipe({"backend": "FileLogger", "path": str(path), "pattern": "%(message)s", "flush_every": 0.05}):
        LOGGER.info("soon")
        until(lambda: logged(path) == ["soon"], "the line is in the file")
    with Pipe({"backend": "FileLogger", "path": str(path), "pattern": "%(message)s", "flush_every": 3600}):
        LOGGER.info("later")
        assert logged(path) == ["soon"]
    assert logged(path) == ["soon", "later"]


def test_lines_of_many_threads_stay_whole(tmp_path):
    path = tmp_path / "log.txt"
    config = {
        "backend": "FileLogger",
        "path": str(path),
        "maxBytes": 1000,
        "backupCount": 100,
        "pattern": "%(message)s",
    }

    def client(number: int) -> None:
        for i in range(50):
            LOGGER.info("%d says %d", number, i)

    with Pipe(config):
        all_at_once([lambda n=n: client(n) for n in range(10)])
    lines = [line for file in tmp_path.iterdir() for line in logged(file)]
    assert sorted(lines) == sorted(f"{n} says {i}" for n in range(10) for i in range(50))
    assert all(file.stat().st_size <= 1000 for file in tmp_path.iterdir())


def test_v0s_patterns_are_understood(tmp_path):
    path = tmp_path / "log.txt"
    with Pipe(
        {
            "backend": "FileLogger",
            "path": str(path),
            "pattern": "[%Y-%m-%d %H:%M:%S.%e] [%n] [%^%l%$] %L %v 5%%",
        }
    ):
        LOGGER.warning("text with %v in it")
    pattern = r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}\] \[torchpipe\] \[warning\] W text with %v in it 5%"
    assert re.fullmatch(pattern, logged(path)[0])


def test_a_traceback_is_written_with_v0s_patterns_too(tmp_path):
    path = tmp_path / "log.txt"
    with Pipe({"backend": "FileLogger", "path": str(path), "pattern": "%v"}):
        try:
            raise KeyError("gone")
        except KeyError:
            LOGGER.exception("it failed")
    assert logged(path)[0] == "it failed"
    assert logged(path)[-1] == "KeyError: 'gone'"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"maxBytes": 0}, "maxBytes = 0"),
        ({"maxBytes": 2**30}, "maxBytes = "),
        ({"backupCount": 1024}, "backupCount = 1024"),
        ({"backupCount": -1}, "backupCount = -1"),
        ({"flush_every": -1}, "flush_every = -1"),
        ({"pattern": "%(nonsense)s"}, "pattern = "),
        ({"pattern": "%(message"}, "pattern = "),
        ({"level": "loud"}, "level = "),
        ({"path": ""}, "path"),
        ({"path": "/nowhere/at/all/log.txt"}, "path = .*No such file"),
    ],
)
def test_a_mistake_is_refused_when_the_pipe_is_built_and_leaves_no_handler(setting, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        Pipe({"backend": "FileLogger", "path": str(tmp_path / "log.txt"), **setting})
    assert LOGGER.handlers == []


def test_a_pipe_that_cannot_be_built_leaves_no_handler_behind(tmp_path):
    config = {
        "backend": "S[FileLogger,SaveTensor]",
        "path": str(tmp_path / "log.txt"),
        "save_dir": "/nowhere/at/all",
    }
    with pytest.raises(ConfigError, match="no such folder"):
        Pipe(config)
    assert LOGGER.handlers == []
