"""A promise: the future of a request, and what its cancellation does at once."""

from __future__ import annotations

from ..waits import Answer
from .call import Call


class Promise(Answer):
    """A future that withdraws what is only queued for its request when it is cancelled."""

    call: Call | None = None  # until one of the two has ended: no cycle may keep the request alive

    def of(self, call: Call) -> Promise:
        """Know the call that fulfils it, which has been started."""
        self.call = call
        if self.done():
            self.call = None
        return self

    def cancel(self) -> bool:
        """Cancel it, if it is not done; whether that is so."""
        if not super().cancel():
            return False
        call, self.call = self.call, None
        if call is not None:
            call.withdraw()
        return True
