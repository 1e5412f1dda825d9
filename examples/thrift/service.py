"""A pipe behind the threaded server of thriftpy2: each connection has a thread, and calls the pipe on it."""

from __future__ import annotations

import argparse
import logging
import signal
import socket
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import thriftpy2
from thriftpy2.server import TThreadedServer
from thriftpy2.thrift import TProcessor
from thriftpy2.transport import TServerSocket, TTransportException

import torchpipe

log = logging.getLogger("thrift_service")

interface = thriftpy2.load(str(Path(__file__).with_name("brightness.thrift")), "brightness_thrift")
Refused, Why = interface.Refused, interface.Why

TIMEOUT = 2.0  # seconds that a call may take, if its client does not say
SILENT = 60_000  # milliseconds after which a connection that says nothing is closed
DRAIN = 10.0  # seconds that calls inside may take at the end
ESTABLISHED = 1  # of the states of TCP

CONFIG = {
    "global": {"max_pending": 64, "when_full": "refuse"},  # more than 64 inside: refuse, do not wait
    "decode": {
        "backend": "S[DecodeMat,ResizeMat,Mat2Tensor]",
        "resize_h": 224,
        "resize_w": 224,
        "device": "cpu",
        "instance_num": 2,
        "next": "measure",
    },
    "measure": {"backend": "brightness"},
}


@torchpipe.register_backend
def brightness(image):
    return round(image.float().mean().item(), 1)


class Service:
    """What clients call, by the names in the .thrift file. What it raises is told by its kind."""

    def __init__(self, pipe: torchpipe.Pipe) -> None:
        self.pipe = pipe
        self.here = threading.local()  # the connection of this thread

    def brightness(self, image: bytes, timeout: float) -> float:
        request = {"data": image}
        has_left = partial(
            gone, self.here.connection
        )  # any thread may ask it, before a node and while it waits
        try:
            self.pipe(request, timeout=timeout or TIMEOUT, cancelled=has_left)
        except torchpipe.OverloadedError as error:
            raise Refused(Why.OVERLOADED, str(error), error.retry_after) from None
        except torchpipe.PipeClosedError as error:
            raise Refused(Why.CLOSED, str(error)) from None
        except torchpipe.DeadlineError as error:
            raise Refused(Why.LATE, str(error)) from None
        except torchpipe.CancelledError:
            raise TTransportException(message="the client has left") from None
        except torchpipe.RequestError as error:  # the client's mistake
            raise Refused(Why.WRONG, str(error)) from None
        except Exception as error:
            log.exception("a call failed")
            raise Refused(Why.FAILED, type(error).__name__) from None
        if "result" not in request:  # no error, and no answer
            raise Refused(Why.WRONG, request.get("reason", "the image could not be processed"))
        return request["result"]

    def ready(self) -> bool:
        return self.pipe.health()["ready"]


def gone(connection: socket.socket) -> bool:
    """Whether the other side has closed its end, as Linux tells without waiting."""
    try:
        return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != ESTABLISHED
    except OSError:
        return True


class Server(TThreadedServer):
    """The threaded server, which can be ended: calls that are inside get their answers."""

    def __init__(self, service: Service, host: str, port: int) -> None:
        listening = TServerSocket(host, port, client_timeout=SILENT)
        super().__init__(TProcessor(interface.Brightness, service), listening, daemon=True)
        self.service = service
        self.connections: dict[socket.socket, threading.Thread] = {}

    def serve(self) -> None:
        self.trans.listen()
        log.warning("serving at %s:%d", *self.trans.sock.getsockname()[:2])
        while not self.closed:
            try:
                client = self.trans.accept()
            except (OSError, AssertionError):
                if self.closed:
                    return
                raise
            thread = threading.Thread(target=self.handle, args=(client,), daemon=True)
            self.connections[client.sock] = thread
            thread.start()

    def handle(self, client: Any) -> None:
        connection = self.service.here.connection = client.sock
        transport = self.itrans_factory.get_transport(client)
        protocol = self.iprot_factory.get_protocol(transport)
        try:
            while not self.closed:
                self.processor.process(protocol, protocol)
        except (TTransportException, OSError):
            pass  # it has gone, or was silent for too long
        except Exception as error:
            log.warning("a connection that speaks something else: %r", error)
        finally:
            del self.connections[connection]
            transport.close()

    def close(self) -> None:
        """Take no more connections: ``serve`` returns."""
        self.closed = True
        self.trans.close()

    def drain(self, seconds: float) -> None:
        """Take no more calls on the connections that there are, and wait for those inside."""
        end = time.monotonic() + seconds
        for connection, thread in list(self.connections.items()):
            try:
                connection.shutdown(socket.SHUT_RD)  # whoever waits for the next call gets its end
            except OSError:
                pass  # it has gone
            thread.join(max(0.0, end - time.monotonic()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9090)
    options = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s")
    with torchpipe.pipe(CONFIG) as pipe:
        server = Server(Service(pipe), options.host, options.port)
        signal.signal(signal.SIGTERM, lambda *_: server.close())
        server.serve()
        server.drain(DRAIN)


if __name__ == "__main__":
    main()
