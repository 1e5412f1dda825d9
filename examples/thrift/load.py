"""Puts the service under load: clients that ask again as soon as they are answered."""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from pathlib import Path

from client import connect, interface


def ask(
    options: argparse.Namespace, image: bytes, end: float, times: list[float], refused: list[str]
) -> None:
    """One client, until the end."""
    client = connect(options.host, options.port)
    before = time.monotonic()
    while before < end:
        try:
            client.brightness(image, 0)
            times.append(time.monotonic() - before)
        except interface.Refused as error:
            refused.append(interface.Why._VALUES_TO_NAMES[error.why])
            time.sleep(error.retry_after)
        before = time.monotonic()
    client.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9090)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    times: list[float] = []
    refused: list[str] = []
    arguments = (options, options.picture.read_bytes(), time.monotonic() + options.seconds, times, refused)
    threads = [threading.Thread(target=ask, args=arguments) for _ in range(options.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"{options.clients} clients: {len(times) / options.seconds:.0f} answers/s, {len(refused)} refused")
    if len(times) > 1:
        percent = statistics.quantiles(times, n=100)
        print(f"p50 {1000 * percent[49]:.1f} ms, p99 {1000 * percent[98]:.1f} ms")


if __name__ == "__main__":
    main()
