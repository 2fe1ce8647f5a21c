"""HTTP connections with a deadline for the head of a request, and an end for those that break the protocol.

uvicorn waits for the head for ever, as long as a byte comes now and then: a thousand such clients would take all
connections. The body's deadline is kept by security.py.
"""

from __future__ import annotations

import asyncio

from h11 import LocalProtocolError
from uvicorn.protocols.http.h11_impl import H11Protocol


class DeadlineProtocol(H11Protocol):
    """A connection whose next request must have begun, its head complete, within the keep-alive time."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client connects."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """A part of a request."""
        super().data_received(data)
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP; where no answer fits, after HEAD or another answer, uvicorn would log a traceback."""
        try:
            super().send_400_response(msg)
        except LocalProtocolError:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end."""
        super().connection_lost(exc)
        if self._deadline:
            self._deadline.cancel()

    def _watch(self) -> None:
        """Start the clock while a head is incomplete, stop it when a request is being answered."""
        if self.cycle is not None and not self.cycle.response_complete:
            if self._deadline:
                self._deadline.cancel()
            self._deadline = None
        elif not self._deadline:
            self._deadline = self.loop.call_later(self.config.timeout_keep_alive, self._give_up)

    def _give_up(self) -> None:
        self._deadline = None
        if (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing():
            self.transport.close()
