"""A server for tests: in a thread of this process, or in a process of its own; and small clients."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import torchpipe
from torchpipe.serve.run import Listening, bind, server_of

ROOT = Path(__file__).parents[2]


class Served:
    """Models behind a real socket, with uvicorn in a thread."""

    def __init__(self, models, listening=None, **options):
        listening = listening or Listening(http=0)
        self.application = torchpipe.serve.asgi(models, **options)
        self._bound = bind(listening)
        self.port = self._bound.getsockname()[1]
        self._server = server_of(self.application, listening)
        self._start()

    def _start(self):
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._bound]})
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.01)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._server.should_exit = True
        self._thread.join()
        self._bound.close()
        self.application.models.close()

    @property
    def connections(self):
        """Those that are open now."""
        return self._server.server_state.connections

    @property
    def threads(self):
        """How many threads of their own connections have."""
        return self._server.threads.count

    @property
    def url(self):
        return f"127.0.0.1:{self.port}"

    def ask(self, method, path, body=None, **headers):
        return ask(self.port, method, path, body, **headers)

    def infer(self, model="model", body=None, **headers):
        """Send a document as JSON, or bytes as they are."""
        if not isinstance(body, bytes):
            headers.setdefault("content_type", "application/json")
            body = json.dumps(body).encode()
        return self.ask("POST", f"/v2/models/{model}/infer", body, **headers)


class Answer:
    def __init__(self, response):
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        return self.json["error"]

    def output(self, name="result"):
        (one,) = [each for each in self.json["outputs"] if each["name"] == name]
        return one


def ask(port, method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, body, {key.replace("_", "-"): str(headers[key]) for key in headers})
        return Answer(connection.getresponse())


def document(*values, name="data", datatype="BYTES", shape=None, **more):
    """An inference request of one input."""
    one = {"name": name, "datatype": datatype, "shape": shape or [len(values), 1], "data": list(values)}
    return {"inputs": [one], **more}


class ServerProcess:
    """`python -m torchpipe serve` in a process of its own, until it says where it listens."""

    def __init__(self, *arguments, cwd):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "torchpipe", "serve", *map(str, arguments)],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log = []
        for line in self.process.stderr:
            self.log.append(line)
            if self.listens(line):
                break
        else:
            raise AssertionError("".join(self.log))
        self._reading = threading.Thread(target=self.log.extend, args=(self.process.stderr,))
        self._reading.start()

    def listens(self, line):
        """Whether this line of the log is the last one that says where it listens."""
        raise NotImplementedError

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reading.join()
        self.process.stderr.close()

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)


class Process(ServerProcess):
    """The same with HTTP."""

    def __init__(self, *arguments, cwd):
        super().__init__(*arguments, "--http", "0", cwd=cwd)

    def listens(self, line):
        if "serving" not in line:
            return False
        self.port = int(line.rsplit(":", 1)[1])
        return True

    def ask(self, method, path, body=None, **headers):
        return ask(self.port, method, path, body, **headers)
