"""Encrypted models: what goes in comes out, and nothing that was changed is ever used."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import networks
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torchpipe
from torchpipe import ConfigError, Pipe
from torchpipe.__main__ import main
from torchpipe.encryption import files as encryption
from torchpipe.encryption.files import CHUNK, HEADER, KEY_MARK, TAG, Key, find_key, new_key
from torchpipe.utils.encrypt import main as older_main

ROOT = Path(__file__).parents[2]
KEY = Key(new_key())
PASSPHRASE = "correct horse battery staple"


@pytest.fixture
def key(monkeypatch):
    """The environment's key."""
    for variable in encryption.VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    text = new_key()
    monkeypatch.setenv("TORCHPIPE_KEY", text)
    return text


def encrypted(content: bytes, key: Key = KEY) -> bytes:
    target = io.BytesIO()
    encryption.encrypt(io.BytesIO(content), target, key)
    return target.getvalue()


def decrypted(content: bytes, key: Key = KEY) -> bytes:
    return b"".join(encryption.decrypt(io.BytesIO(content), key, "net.onnx.encrypted"))


def three_chunks() -> bytes:
    return bytes(range(256)) * (2 * CHUNK // 256) + b"the end"


# The format


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=2000))
def test_what_was_encrypted_comes_back(content):
    inside = encrypted(content)
    assert decrypted(inside) == content
    assert len(inside) == HEADER + len(content) + TAG


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 7])
def test_any_number_of_chunks_comes_back(size):
    content = os.urandom(size)
    assert decrypted(encrypted(content)) == content


def test_the_same_file_never_looks_the_same_and_shows_nothing_of_itself():
    content = b"secret weights " * 10
    first, second = encrypted(content), encrypted(content)
    assert first[HEADER:] != second[HEADER:]
    assert b"secret" not in first


def test_every_single_flipped_bit_is_refused():
    inside = encrypted(b"a small network")
    for place in range(len(inside)):
        for bit in range(8):
            changed = bytearray(inside)
            changed[place] ^= 1 << bit
            with pytest.raises(ConfigError, match=r"net\.onnx\.encrypted"):
                decrypted(bytes(changed))


def test_every_shortened_file_is_refused():
    inside = encrypted(b"a small network")
    for size in range(len(inside)):
        with pytest.raises(ConfigError):
            decrypted(inside[:size])


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, len(three_chunks()) + HEADER + 3 * TAG - 1), change=st.integers(1, 255))
def test_a_changed_byte_anywhere_in_a_long_file_is_refused(place, change, long_file):
    changed = bytearray(long_file)
    changed[place] ^= change
    with pytest.raises(ConfigError):
        decrypted(bytes(changed))


@pytest.fixture(scope="module")
def long_file():
    return encrypted(three_chunks())


def pieces(inside: bytes) -> tuple[bytes, list[bytes]]:
    step = CHUNK + TAG
    return inside[:HEADER], [inside[i : i + step] for i in range(HEADER, len(inside), step)]


@pytest.mark.parametrize("order", ["0", "01", "02", "102", "0112", "0122", "012012", "210", "12", ""])
def test_chunks_left_out_repeated_or_moved_are_refused(order, long_file):
    header, chunks = pieces(long_file)
    with pytest.raises(ConfigError):
        decrypted(header + b"".join(chunks[int(i)] for i in order))


def test_something_added_at_the_end_is_refused(long_file):
    for more in (b"\0", bytes(TAG), bytes(CHUNK)):
        with pytest.raises(ConfigError, match="changed, lost or added"):
            decrypted(long_file + more)


def test_chunks_of_another_file_are_refused(long_file):
    other = encrypted(three_chunks())
    header, chunks = pieces(long_file)
    with pytest.raises(ConfigError, match=f"at or after byte {HEADER + CHUNK + TAG}"):
        decrypted(header + chunks[0] + pieces(other)[1][1] + chunks[2])


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(st.binary(max_size=300), st.binary(max_size=300).map(lambda rest: b"TPIPEENC\x01\x00" + rest))
)
def test_whatever_is_no_encrypted_file_is_refused(content):
    with pytest.raises(ConfigError):
        decrypted(content)


def test_a_later_version_is_refused_by_its_number():
    inside = bytearray(encrypted(b"x"))
    inside[len(encryption.MAGIC)] = 2
    with pytest.raises(ConfigError, match="format version 2"):
        decrypted(bytes(inside))


# Keys


def test_another_key_is_refused_and_called_a_wrong_key():
    with pytest.raises(ConfigError, match="the key is not the one"):
        decrypted(encrypted(b"x"), Key(new_key()))


def test_a_passphrase_opens_what_it_closed_and_another_one_does_not():
    inside = encrypted(b"x", Key(PASSPHRASE))
    assert decrypted(inside, Key(PASSPHRASE + "\n")) == b"x"
    with pytest.raises(ConfigError, match="the key is not the one"):
        decrypted(inside, Key(PASSPHRASE + "!"))


def test_a_passphrase_does_not_open_what_a_random_key_closed():
    with pytest.raises(ConfigError, match="with a random key, and the key given is a passphrase"):
        decrypted(encrypted(b"x"), Key(PASSPHRASE))


@pytest.mark.parametrize("text", ["", "short", "x" * 15, KEY_MARK, KEY_MARK + "AAAA", KEY_MARK + "é" * 44])
def test_a_weak_or_damaged_key_is_refused_without_showing_it(text):
    with pytest.raises(ConfigError, match=r"passphrase has at least 16|starts like a random key") as caught:
        Key(text)
    assert not text or text not in str(caught.value)


def test_a_key_does_not_show_itself():
    assert PASSPHRASE not in repr(Key(PASSPHRASE))


def test_the_key_comes_from_a_file_or_the_environment_and_never_from_a_default(tmp_path):
    text = new_key()
    file = tmp_path / "key"
    file.write_text(text + "\n")
    inside = encrypted(b"x", Key(text))
    for environment in (
        {"TORCHPIPE_KEY": text},
        {"TORCHPIPE_KEY": text, "TORCHPIPE_KEY_FILE": "elsewhere"},
        {"TORCHPIPE_KEY_FILE": str(file)},
        {"TORCHPIPE_KEY": "", "IPIPE_KEY": text},
    ):
        assert decrypted(inside, find_key(environment=environment)) == b"x"
    assert decrypted(inside, find_key(file, {"TORCHPIPE_KEY": PASSPHRASE})) == b"x"
    with pytest.raises(ConfigError, match="no key: set TORCHPIPE_KEY"):
        find_key(environment={"PATH": "/bin"})


def test_a_key_file_that_is_missing_or_no_text_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"key in '.*gone', which TORCHPIPE_KEY_FILE names, cannot be read"):
        find_key(environment={"TORCHPIPE_KEY_FILE": str(tmp_path / "gone")})
    (tmp_path / "binary").write_bytes(b"\xff\xfe" * 20)
    with pytest.raises(ConfigError, match="is no text"):
        find_key(tmp_path / "binary")


# Engines


@pytest.fixture(scope="module")
def plain_files(tmp_path_factory):
    return networks.classifier_files(tmp_path_factory.mktemp("net"))


def lock(path: str, folder: Path) -> Path:
    target = folder / f"{Path(path).name}.encrypted"
    assert main(["encrypt", path, str(target)]) == 0
    return target


IMAGES = torch.rand(2, 3, 8, 9, generator=torch.Generator().manual_seed(1))
ENGINES = {".onnx": "OnnxTensor", ".pt": "TorchScriptTensor", ".pt2": "ModuleTensor"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", list(ENGINES))
def test_an_engine_runs_an_encrypted_file_as_it_runs_the_plain_one(kind, plain_files, tmp_path, key):
    request = {"data": IMAGES}
    with Pipe({"backend": ENGINES[kind], "model": plain_files[kind], "max": 2, "device": "cpu"}) as pipe:
        pipe(request)
    with torchpipe.model(str(lock(plain_files[kind], tmp_path)), max=2, device="cpu") as model:
        assert torch.equal(model(IMAGES), request["result"])


def test_half_precision_is_made_from_an_encrypted_network_too(plain_files, tmp_path, key):
    locked = lock(plain_files[".onnx"], tmp_path)
    with (
        torchpipe.model(plain_files[".onnx"], precision="fp16") as plain,
        torchpipe.model(str(locked), precision="fp16") as model,
    ):
        assert torch.equal(model(IMAGES), plain(IMAGES))


LOADING = """
import resource, sys, torch, torchpipe
resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
with torchpipe.model(sys.argv[1], device="cpu") as model:
    model(torch.rand(1, 3, 8, 9))
open(sys.argv[2], "wb", buffering=0).write(bytes(500))
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", list(ENGINES))
def test_nothing_decrypted_is_written_to_a_disk(kind, plain_files, tmp_path, key):
    assert Path(plain_files[kind]).stat().st_size > 600
    locked = lock(plain_files[kind], tmp_path)
    probe = tmp_path / "probe"
    command = [sys.executable, "-c", LOADING, str(locked), str(probe)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    assert probe.stat().st_size == 300  # no file of that process can have been larger


@pytest.mark.parametrize("kind", list(ENGINES))
def test_a_changed_byte_is_refused_when_the_pipe_is_built(kind, plain_files, tmp_path, key):
    locked = lock(plain_files[kind], tmp_path)
    content = bytearray(locked.read_bytes())
    content[len(content) // 2] ^= 1
    locked.write_bytes(content)
    with pytest.raises(ConfigError, match="is damaged at or after byte"):
        Pipe({"backend": ENGINES[kind], "model": str(locked), "device": "cpu"})


def test_without_the_key_or_with_another_one_no_pipe_is_built(plain_files, tmp_path, key, monkeypatch):
    locked = str(lock(plain_files[".onnx"], tmp_path))
    monkeypatch.setenv("TORCHPIPE_KEY", new_key())
    with pytest.raises(ConfigError, match="the key is not the one"):
        torchpipe.model(locked)
    monkeypatch.delenv("TORCHPIPE_KEY")
    with pytest.raises(ConfigError, match="no key: set TORCHPIPE_KEY"):
        torchpipe.model(locked)


def test_a_plain_file_called_encrypted_is_refused(plain_files, tmp_path, key):
    path = tmp_path / "net.onnx.encrypted"
    path.write_bytes(Path(plain_files[".onnx"]).read_bytes())
    with pytest.raises(ConfigError, match="is no encrypted file"):
        torchpipe.model(str(path))


@pytest.mark.parametrize("name", ["net.encrypted", "net.trt.encrypted", "net.onnx.encrypted.encrypted"])
def test_the_suffix_below_encrypted_says_which_engine(name, tmp_path, key):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ConfigError, match="its name must end in"):
        torchpipe.model(str(tmp_path / name))


# The command line


def test_encrypt_and_decrypt_give_the_file_back(tmp_path, key):
    source, locked, back = (tmp_path / name for name in ("net.onnx", "net.onnx.encrypted", "back.onnx"))
    source.write_bytes(b"weights" * 1000)
    assert main(["encrypt", str(source), str(locked)]) == 0
    assert main(["decrypt", str(locked), str(back)]) == 0
    assert back.read_bytes() == source.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.onnx", "net.onnx", "net.onnx.encrypted"]


def test_a_new_key_is_readable_by_its_owner_alone_and_never_overwritten(tmp_path, key, capsys):
    file = tmp_path / "key"
    assert main(["new-key", str(file)]) == 0
    assert file.stat().st_mode & 0o777 == 0o600
    assert find_key(file).kind == encryption.RANDOM
    before = file.read_text()
    assert main(["new-key", str(file)]) == 2
    assert "a key is never overwritten" in capsys.readouterr().err
    assert file.read_text() == before


def test_a_key_file_may_be_named_on_the_command_line(tmp_path, key):
    (tmp_path / "net").write_bytes(b"weights")
    assert main(["new-key", str(tmp_path / "key")]) == 0
    arguments = [str(tmp_path / "net"), str(tmp_path / "locked"), "--key-file", str(tmp_path / "key")]
    assert older_main(arguments) == 0
    assert encryption.decrypted(tmp_path / "locked", find_key(tmp_path / "key")) == b"weights"


def test_the_older_name_of_the_command_works(tmp_path, key):
    (tmp_path / "net").write_bytes(b"weights")
    command = [
        sys.executable,
        "-m",
        "torchpipe.utils.encrypt",
        str(tmp_path / "net"),
        str(tmp_path / "locked"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert encryption.decrypted(tmp_path / "locked") == b"weights"


def test_a_damaged_file_leaves_no_output_not_even_a_part_or_the_older_one_changed(tmp_path, key, capsys):
    source, locked, back = tmp_path / "net", tmp_path / "locked", tmp_path / "back"
    source.write_bytes(three_chunks())
    assert main(["encrypt", str(source), str(locked)]) == 0
    locked.write_bytes(locked.read_bytes()[:-1])
    assert main(["decrypt", str(locked), str(back)]) == 2
    assert "is damaged at or after byte" in capsys.readouterr().err
    assert not back.exists()
    back.write_bytes(b"older")
    assert main(["decrypt", str(locked), str(back)]) == 2
    assert back.read_bytes() == b"older"
    assert not list(tmp_path.glob("*.part"))


def test_the_key_itself_is_no_argument(tmp_path, key, capsys):
    for command in (["encrypt"], ["decrypt"]):
        with pytest.raises(SystemExit):
            main([*command, "a", "b", "--key", key])
    with pytest.raises(SystemExit):
        older_main(["a", "b", "--key", key])
    with pytest.raises(SystemExit):
        main(["encrypt", "--help"])
    printed = capsys.readouterr().out
    assert not re.search(r"--key[ =]", printed)
    assert "It is never given on the command line" in " ".join(printed.split())
