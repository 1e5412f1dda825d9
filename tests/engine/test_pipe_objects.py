"""Pipes as objects: copied, pickled, half built, and held by others."""

import contextlib
import copy
import gc
import pickle
import sys
import weakref

import pytest
import torch
from threads import backend, copy_data, pipe_threads

import torchpipe
from torchpipe import Pipe, PipeClosedError, model, pipe

COPIES = [copy.copy, copy.deepcopy]


class Service:
    """An object that holds a pipe, as a user would write it."""

    def __init__(self) -> None:
        self.pipe = pipe({"backend": "Identity"})
        self.names = ["a"]


def works(one: Pipe) -> bool:
    one(request := {"data": 1})
    return request["result"] == 1


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_that_goes_leaves_the_original_open(copied):
    with pipe({"backend": "Identity"}) as original:
        other = copied(original)
        assert works(other)
        del other
        gc.collect()
        assert works(original)


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_closes_nothing(copied):
    with pipe({"backend": "Identity"}) as original:
        other = copied(original)
        other.close()
        with copied(original) as another:
            assert works(another)
        copied(other).close()
        assert works(original) and works(other)
    with pytest.raises(PipeClosedError):
        works(other)
    assert other.health()["closed"]


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_keeps_the_pipe_open_when_the_original_goes(copied):
    original = pipe({"backend": "Identity"})
    gone = weakref.ref(original)
    other = copied(copied(original))
    del original
    gc.collect()
    assert works(other) and gone() is not None
    other.submit({"data": 2}).result(10)
    assert pipe_threads()
    del other
    gc.collect()
    assert gone() is None and not pipe_threads()


def test_an_original_in_a_cycle_with_its_copy_is_closed_with_it():
    original = pipe({"backend": "Identity"})
    original.submit({"data": 2}).result(10)
    original.twin = copy.copy(original)
    del original
    gc.collect()
    assert not pipe_threads()


def test_a_copy_is_the_same_pipe():
    backend("Counts", copy_data)
    with pipe({"a": {"backend": "Counts", "max_queue": 5}}) as original:
        other = copy.copy(original)
        assert works(other) and isinstance(other, Pipe)
        assert original.stats()["a"]["requests"] == 1
        other.reload("a", max_queue=7)
        assert "max_queue" in str(original.explain()) and str(other.explain()) == str(original.explain())
        original.reload("a", max_queue=9)
        assert other.config is original.config


def test_a_copy_of_a_users_class_is_of_that_class():
    class Mine(Pipe):
        def twice(self, data):
            self(request := {"data": data})
            return 2 * request["result"]

    with Mine({"backend": "Identity"}) as original:
        assert copy.copy(original).twice(3) == 6


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_of_what_holds_a_pipe_does_not_close_it(copied):
    service = Service()
    other = copied(service)
    del other
    gc.collect()
    assert works(service.pipe)
    service.pipe.close()


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_of_a_model_does_not_close_it(copied):
    with model(torch.nn.Identity(), device="cpu") as original:
        with copied(original) as other:
            assert other(torch.ones(1, 2)).tolist() == [[1, 1]]
        assert original(torch.ones(1, 2)).tolist() == [[1, 1]]
        assert other.submit(torch.ones(1, 2)).result(10).tolist() == [[1, 1]]


def holding() -> list:
    service = Service()
    network = model(torch.nn.Identity(), device="cpu")
    return [service.pipe, service, [service.pipe], copy.copy(service.pipe), network, copy.copy(network)]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickling_says_what_to_send_instead(protocol):
    kept = holding()
    for each in kept:
        with pytest.raises(TypeError, match=r"a pipe cannot be pickled.*torchpipe\.pipe\(config\)"):
            pickle.dumps(each, protocol)
    assert works(kept[0])
    kept[0].close()
    kept[-2].close()


def test_pickling_a_pipe_of_a_file_names_the_file(tmp_path):
    path = tmp_path / "service.toml"
    path.write_text('[node]\nbackend = "Identity"\n')
    with pipe(str(path)) as one, pytest.raises(TypeError, match=r"torchpipe\.pipe\('.*service\.toml'\)"):
        pickle.dumps(one)


def test_cloudpickle_says_it_too():
    cloudpickle = pytest.importorskip("cloudpickle")
    with pipe({"backend": "Identity"}) as one, pytest.raises(TypeError, match="a pipe cannot be pickled"):
        cloudpickle.dumps(lambda: one({"data": 1}))


def test_a_request_that_holds_a_pipe_says_it_where_it_would_go_to_another_process():
    pytest.importorskip("cloudpickle")
    with pipe({"backend": "Identity"}) as one, pipe({"backend": "Process[Identity]"}) as other:
        with pytest.raises(torchpipe.RequestError, match="'inner'"):
            other({"data": 1, "inner": one})
        assert works(other)


def test_what_was_never_built_goes_in_silence(capsys):
    for half in (object.__new__(Pipe), object.__new__(torchpipe.Pipe)):
        half.__del__()
        del half
    with contextlib.suppress(torchpipe.ConfigError):
        Pipe({"backend": "Nonsense"})
    gc.collect()
    assert not capsys.readouterr().err


def test_a_pipe_that_fails_at_the_end_of_its_building_leaves_no_thread(monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    closed = []
    backend("Held", copy_data, bound=True, close=lambda self: closed.append(self))
    monkeypatch.setattr(sys.modules[Pipe.__module__], "Entrance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pipe({"backend": "Held"})
    assert len(closed) == 1 and not pipe_threads()
