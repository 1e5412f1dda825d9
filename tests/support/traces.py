"""What a trace file says, taken apart; and what must hold in every one."""

from __future__ import annotations

import gzip
import json
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path


class Read:
    """A trace file: slices by what they are; times are nanoseconds."""

    def __init__(self, path: Path) -> None:
        text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
        whole = json.loads(text)
        self.about, events = whole["otherData"], whole["traceEvents"]
        self.processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
        self.lanes = {
            (self.processes[e["pid"]], e["args"]["name"]) for e in events if e["name"] == "thread_name"
        }
        slices = [e for e in events if e["ph"] == "X"]
        for each in slices:
            each["from"], each["to"] = nanos(each["ts"]), nanos(each["ts"]) + nanos(each["dur"])
            each["node"] = self.processes[each["pid"]].removeprefix("node ")
        self.slices = slices
        self.batches = [e for e in slices if e["pid"] != 1]
        inside = [e for e in slices if e["pid"] == 1]
        self.requests = {
            e["args"]["request"]: e for e in inside if "node" not in e["args"] and "beside" not in e["name"]
        }
        self.runs = [e for e in inside if e["name"].endswith(": run")]
        self.queues = [e for e in inside if e["name"].endswith(": queue")]
        self.away = [e for e in inside if e["name"].endswith(": parts away")]
        self.starts = [e for e in events if e["ph"] == "s"]
        self.arrows = {e["id"]: e for e in events if e["ph"] == "f"}

    def members(self, batch: dict) -> list[str]:
        return batch["args"]["requests"]

    def of(self, number: int) -> Counter:
        """The nodes whose batches had this request, or parts of it."""
        return Counter(
            batch["node"]
            for batch in self.batches
            for member in self.members(batch)
            if member.split(".")[0] == str(number)
        )

    def check(self) -> None:
        """What holds in every file."""
        lanes = defaultdict(list)
        for each in self.slices:
            lanes[each["pid"], each["tid"]].append(each)
        for some in lanes.values():
            nest(some)
        for process, lane in lanes:
            if process != 1:
                run_apart(lanes[process, lane])
        for batch in self.batches:
            assert batch["args"]["size"] >= len(self.members(batch)) >= 1
        ran = Counter((e["args"]["request"], e["from"], e["to"]) for e in self.runs)
        had = Counter(
            (member, b["from"], b["to"])
            for b in self.batches
            if not b["args"].get("unfinished")
            for member in self.members(b)
        )
        assert ran == had, "a request ran in other batches than those that say so"
        assert len(self.starts) == len(self.arrows) == len(self.runs)
        for start in self.starts:
            end = self.arrows[start["id"]]
            (batch,) = [b for b in lanes[start["pid"], start["tid"]] if b["from"] == nanos(start["ts"])]
            at = nanos(end["ts"])
            run = next(
                e
                for e in lanes[end["pid"], end["tid"]]
                if e["name"].endswith(": run") and e["from"] == at and e["to"] == batch["to"]
            )
            assert run["args"]["request"] in self.members(batch)
        for each in [*self.runs, *self.queues, *self.away]:
            whole = self.requests[int(each["args"]["request"].split(".")[0])]
            assert whole["from"] <= each["from"] <= each["to"] <= whole["to"]


def nanos(micros: float) -> int:
    return round(micros * 1000)


def nest(slices: list[dict]) -> None:
    """In a lane each is inside another one or apart from it, as viewers need it."""
    open_: list[dict] = []
    for each in sorted(slices, key=lambda e: (e["from"], -e["to"])):
        while open_ and open_[-1]["to"] <= each["from"]:
            open_.pop()
        assert not open_ or each["to"] <= open_[-1]["to"], f"{each} overlaps {open_[-1]}"
        open_.append(each)


def run_apart(slices: list[dict]) -> None:
    """An instance runs one batch at a time."""
    ordered = sorted(slices, key=lambda e: (e["from"], e["to"]))
    for before, after in pairwise(ordered):
        assert before["to"] <= after["from"], f"{before} and {after} run at once"
