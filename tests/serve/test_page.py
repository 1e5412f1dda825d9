"""What docs/serve/http.md shows is what happens."""

import contextlib
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")
from served import Process

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serve" / "http.md").read_text()


@pytest.mark.timeout(120)
def test_the_first_service_of_the_page_answers_as_it_says(tmp_path, monkeypatch):
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    for name, code in re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```', PAGE, re.M | re.S):
        (tmp_path / name).write_text(code)
    shell = re.search(r"^```sh\n(.*?)^```", PAGE, re.M | re.S)[1]
    serve, curl = shell.splitlines()
    clients = re.findall(r"^```py\n(.*?)^```", PAGE, re.M | re.S)
    arguments = re.fullmatch(r"python -m torchpipe serve (.*) --http 8000 &", serve)[1].split()
    monkeypatch.chdir(tmp_path)
    with Process(*arguments, "--allow-shared-memory", cwd=tmp_path) as server:
        address = f"localhost:{server.port}"
        if shutil.which("curl"):
            words = curl.replace("localhost:8000", address).replace("curl ", "curl -s ").split()
            shown = subprocess.run(words, capture_output=True, check=True).stdout
            assert json.loads(shown) == json.loads(re.search(r"The answer is `(.*?)`", PAGE)[1])
        pytest.importorskip("tritonclient.http")
        for client, shown in zip(clients, re.findall(r"It prints `(.*?)`", PAGE), strict=True):
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(client.replace("localhost:8000", address), "page", "exec"), {})
            assert " ".join(out.getvalue().split()) == shown
        server.signal()
        assert server.process.wait(30) == 0
