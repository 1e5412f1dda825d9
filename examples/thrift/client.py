"""Asks the service how bright pictures are: ``python examples/thrift/client.py PICTURE...``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import thriftpy2
from thriftpy2.rpc import make_client

interface = thriftpy2.load(str(Path(__file__).with_name("brightness.thrift")), "brightness_thrift")
LONGEST = 10_000  # milliseconds: more than the service takes for any answer


def connect(host: str, port: int) -> Any:
    """A client for one thread: a connection has one call at a time."""
    return make_client(interface.Brightness, host, port, timeout=LONGEST)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9090)
    options = parser.parse_args()
    client = connect(options.host, options.port)
    for picture in options.pictures:
        try:
            print(f"{picture.name}: {client.brightness(picture.read_bytes(), 0)}")
        except interface.Refused as refused:
            print(f"{picture.name}: {interface.Why._VALUES_TO_NAMES[refused.why]}: {refused.reason}")
    client.close()


if __name__ == "__main__":
    main()
