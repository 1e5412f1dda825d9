"""What the server tells Prometheus: Triton's counters of its models, ours of their nodes, and the process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..errors import optional
from ..prometheus import Collector
from ..totals import Totals
from .counted import executions, queued_ns, totals_of_model
from .models import REASONS, Model, Models

KIND = b"text/plain; version=0.0.4; charset=utf-8"
"""The content type of what is told."""

LEAST = ("torchpipe_ready", "process_start_time_seconds", "python_info")
"""Metrics that are not added up over processes: the least of them counts."""


class Metrics:
    """The page ``/metrics`` of a server.

    Args:
        models: what is served.
    """

    def __init__(self, models: Models) -> None:
        self._models = models

    def text(self) -> bytes:
        """All metrics, in the text form of Prometheus.

        Raises:
            ImportError: ``prometheus_client`` is not installed.
        """
        client: Any = optional("prometheus_client", "metrics")
        told = [(model, totals_of_model(model)) for model in self._models]
        ours = Collector(lambda: [(model.name, totals) for model, totals in told])
        text: bytes = client.generate_latest(_Together(ours, client.ProcessCollector(registry=None)))
        return self._tritons(told).encode() + text

    def _tritons(self, told: list[tuple[Model, Totals]]) -> str:
        """Triton's names. Its counters do not end in ``_total``, as prometheus_client would have them."""
        counters: dict[str, tuple[str, Callable[[Model, Totals], int]]] = {
            "request_success": ("Calls with an answer", lambda model, _: model.counts.calls),
            "count": ("Rows that were answered", lambda model, _: model.counts.rows),
            "exec_count": ("Batches of the node that takes the largest ones", executions),
            "request_duration_us": ("Time of calls with an answer", _micros("success_ns")),
            "queue_duration_us": ("Time for which rows waited at nodes", _queued_us),
            "compute_input_duration_us": ("Time until inputs were read", _micros("input_ns")),
            "compute_infer_duration_us": ("Time inside the pipe, waits included", _micros("infer_ns")),
            "compute_output_duration_us": ("Time for writing outputs", _micros("output_ns")),
        }
        lines = []
        for name, (text, read) in counters.items():
            lines += _head(f"nv_inference_{name}", text, "counter")
            lines += [
                f"nv_inference_{name}{{{_labels(model)}}} {read(model, totals)}" for model, totals in told
            ]
        name = "nv_inference_request_failure"
        lines += _head(name, "Calls without an answer, by reason", "counter")
        for model, _ in told:
            failures = model.counts.failures.copy()
            lines += [
                f'{name}{{{_labels(model)},reason="{reason}"}} {failures.get(reason, 0)}'
                for reason in REASONS
            ]
        lines += _head("nv_inference_pending_request_count", "Requests that wait now", "gauge")
        for model, totals in told:
            pending = totals.waiting + sum(node.queued for node in totals.nodes.values())
            lines.append(f"nv_inference_pending_request_count{{{_labels(model)}}} {pending}")
        return "\n".join(lines) + "\n"


class _Together:
    """Several collectors as one."""

    def __init__(self, *collectors: Any) -> None:
        self._collectors = collectors

    def collect(self) -> Iterator[Any]:
        for collector in self._collectors:
            yield from collector.collect()


def merge(texts: Iterable[bytes]) -> bytes:
    """What several processes tell, as if one had told it: added up, but for ``LEAST``.

    Args:
        texts: what each tells, in the text form of Prometheus, without times.
    """
    heads: dict[str, list[str]] = {}
    samples: dict[str, dict[str, float]] = {}
    for text in texts:
        family = ""
        for line in text.decode().splitlines():
            if line.startswith("#"):
                family = line.split(" ", 3)[2]
                head = heads.setdefault(family, [])
                if line not in head:
                    head.append(line)
            elif line:
                name, _, value = line.rpartition(" ")
                found = samples.setdefault(family, {})
                if name not in found:
                    found[name] = float(value)
                elif family in LEAST:
                    found[name] = min(found[name], float(value))
                else:
                    found[name] += float(value)
    lines = []
    for family, head in heads.items():
        lines += head
        lines += [f"{name} {_number(value)}" for name, value in samples.get(family, {}).items()]
    return ("\n".join(lines) + "\n").encode()


def _number(value: float) -> str:
    return {"inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}.get(repr(value), repr(value))


def _micros(name: str) -> Callable[[Model, Totals], int]:
    return lambda model, _: getattr(model.counts, name) // 1000


def _queued_us(model: Model, totals: Totals) -> int:
    return queued_ns(totals) // 1000


def _head(name: str, text: str, kind: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _labels(model: Model) -> str:
    return f'model="{model.name}",version="{model.signature.version}"'
