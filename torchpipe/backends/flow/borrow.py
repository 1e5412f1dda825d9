"""BorrowReplay: a fixed batch that is not full borrows rows of requests that wait, and pays back."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from pydantic import Field

from ...errors import RequestError, shown
from ...parameters import Count
from ...reason import Reason
from ...registry import built_in
from ...request import Request
from ..base import Backend
from ..tensor.shared import own
from .keys import value_of


@dataclass
class Donor:
    """A request whose rows may be borrowed: what is left of them, and what was computed from the others."""

    tensors: list[Any]
    rows: int
    lent: int = 0  # from the first row on
    returned: dict[int, list[Any]] = field(default_factory=dict)  # outputs by the row that they begin at
    missing: int = 0  # rows not returned yet


class Lending:
    """Who stored which rows, and who borrowed them. Any thread may call; getting back blocks."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._donors: dict[Any, Donor] = {}  # by id, the oldest first
        self._loans: dict[Any, list[tuple[Donor, int, int]]] = {}  # by borrower: donor, first row, rows

    def borrow_or_insert(self, who: Any, tensors: list[Any], most: int) -> list[list[Any]] | None:
        """The rows that fill a batch of ``most`` up, or None: these were stored, for others to borrow."""
        rows = _rows(tensors)
        if rows >= most:
            raise RequestError(f"BorrowReplay: {rows} rows are not fewer than max_batch_size = {most}")
        with self._changed:
            if self._waiting() + rows >= most:
                return self._borrow(who, most - rows)
            if who in self._donors:
                raise RequestError(f"BorrowReplay: id {shown(who)} has rows stored already")
            self._donors[who] = Donor(list(tensors), rows, missing=rows)
            return None

    def borrow_all(self, who: Any) -> list[list[Any]]:
        """All rows that are stored."""
        with self._changed:
            return self._borrow(who, self._waiting())

    def set_replay(self, who: Any, outputs: Any) -> None:
        """What a borrower computed, piece by piece, for the donors."""
        with self._changed:
            if who not in self._loans:
                raise RequestError(f"BorrowReplay: id {shown(who)} has borrowed nothing")
            loan = self._loans[who]
            if not isinstance(outputs, (list, tuple)) or len(outputs) != len(loan):
                raise RequestError(
                    f"BorrowReplay: id {shown(who)} borrowed {len(loan)} pieces, got {shown(outputs)}"
                )
            del self._loans[who]
            for (donor, first, rows), output in zip(loan, outputs, strict=True):
                donor.returned[first] = output
                donor.missing -= rows
            self._changed.notify_all()

    def get_replay(self, who: Any, seconds: float) -> list[list[Any]]:
        """What borrowers computed of a donor's rows, by row; blocks until all is there."""
        with self._changed:
            donor = self._donors.get(who)
            if donor is None:
                raise RequestError(f"BorrowReplay: id {shown(who)} has no rows stored")
            if not self._changed.wait_for(
                lambda: not donor.missing or self._donors.get(who) is not donor, seconds
            ):
                raise TimeoutError(
                    f"BorrowReplay: {donor.missing} of {donor.rows} rows of id {shown(who)} not back after "
                    f"{seconds:g} s; each request that waits holds an instance: is instance_num large enough?"
                )
            if self._donors.get(who) is not donor:
                raise RequestError(f"BorrowReplay: the rows of id {shown(who)} were taken, or dropped")
            del self._donors[who]
            return [output for _, output in sorted(donor.returned.items())]

    def reset(self) -> None:
        """Forget everything; who waits gets an error."""
        with self._changed:
            self._donors.clear()
            self._loans.clear()
            self._changed.notify_all()

    def _waiting(self) -> int:
        return sum(donor.rows - donor.lent for donor in self._donors.values())

    def _borrow(self, who: Any, wanted: int) -> list[list[Any]]:
        if who in self._loans:
            raise RequestError(f"BorrowReplay: id {shown(who)} has not returned what it borrowed before")
        loan = self._loans[who] = []
        pieces = []
        for donor in self._donors.values():
            first, rows = donor.lent, min(donor.rows - donor.lent, wanted)
            if rows:
                whole = rows == donor.rows
                pieces.append(donor.tensors if whole else [t[first : first + rows] for t in donor.tensors])
                loan.append((donor, first, rows))
                donor.lent += rows
                wanted -= rows
                if donor.lent == donor.rows:
                    donor.tensors = []  # only who borrowed them holds them now
        return pieces


def _own(pieces: Any) -> Any:
    """Pieces of several requests, each in memory of its own: none keeps, or shows, rows of another one."""
    if not isinstance(pieces, (list, tuple)):
        return pieces
    return [
        [own(each) if isinstance(each, torch.Tensor) else each for each in piece]
        if isinstance(piece, (list, tuple))
        else piece
        for piece in pieces
    ]


def _rows(tensors: Any) -> int:
    listed = tensors if isinstance(tensors, (list, tuple)) else []
    shapes: list[tuple[int, ...]] = [tuple(getattr(tensor, "shape", ())) for tensor in listed]
    rows = {shape[0] if shape else 0 for shape in shapes}
    if len(rows) != 1 or 0 in rows:
        what = f"shapes {shapes}" if shapes else shown(tensors)
        raise RequestError(f"BorrowReplay takes a list of tensors with the same number of rows, got {what}")
    return rows.pop()


@built_in()
class BorrowReplay(Backend):
    """Fills batches of a fixed size with rows of requests that wait, and hands them what was computed.

    What it does stands in the request's key ``borrow_type``; ``id`` says whose rows they are:

    * ``borrow_or_insert``: ``data`` is a list of tensors with the same rows (axis 0), fewer than
      ``max_batch_size``. If they and all that are stored are still fewer, they are stored, and there is no
      ``result``. Else ``result`` has the rows that make ``max_batch_size`` of them, the oldest first: one
      list of tensors for each donor. The borrower's own are not stored.
    * ``borrow_all``: ``result`` has all rows that are stored.
    * ``set_replay``: ``data`` is a list with the outputs (a list of tensors) of each borrowed piece, ``id``
      the borrower's. ``result`` is ``data``.
    * ``get_replay``: ``id`` is a donor's. Waits until all of its rows have come back; ``result`` is a list of
      their outputs, one for each piece, in the order of the rows.
    * ``reset``: forgets everything. ``result`` is ``data``.

    All instances of a node share what is stored. A request that waits holds an instance.

    Args:
        max_batch_size: the rows of a full batch.
        lending: what all instances of the node know.
        replay_timeout: the most milliseconds that ``get_replay`` waits.

    Raises:
        RequestError: ``borrow_type``, ``data`` or ``id`` do not fit together.
        MissingKeyError: ``borrow_type`` or ``id`` is missing.
        TimeoutError: rows have not come back in time.

    Example:
        >>> rows = {"data": [torch.zeros(3, 2)], "id": 1, "borrow_type": "borrow_or_insert"}
        >>> "result" in run("BorrowReplay", rows, max_batch_size=8)
        False
    """

    shared = True

    def __init__(
        self,
        max_batch_size: Count,
        lending: Annotated[Lending, "shared"],
        replay_timeout: Annotated[float, Field(ge=0, le=3_600_000)] = 60_000.0,
    ) -> None:
        self.rows, self.lending, self.seconds = max_batch_size, lending, replay_timeout / 1000

    def forward_one(self, request: Request) -> None:
        wanted = value_of(request, "borrow_type", "BorrowReplay")
        data, lending = request["data"], self.lending
        if wanted == "reset":
            lending.reset()
            request["result"] = data
            return
        kinds = ("borrow_or_insert", "borrow_all", "set_replay", "get_replay", "reset")
        if wanted not in kinds:
            raise RequestError(f"BorrowReplay: borrow_type = {shown(wanted)} is none of {', '.join(kinds)}")
        who = value_of(request, "id", "BorrowReplay")
        if wanted == "borrow_or_insert":
            pieces = lending.borrow_or_insert(who, data, self.rows)
            if pieces is not None:
                request["result"] = _own(pieces)
            else:
                request["reason"] = Reason("its rows are stored until others borrow them: see get_replay")
        elif wanted == "borrow_all":
            request["result"] = _own(lending.borrow_all(who))
        elif wanted == "set_replay":
            lending.set_replay(who, _own(data))
            request["result"] = data
        else:
            request["result"] = lending.get_replay(who, self.seconds)
