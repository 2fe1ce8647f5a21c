"""How often a client may ask, and how often a password may be guessed: token buckets, kept by this process."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field

from daedap.serve.errors import ApiError

_CLIENTS = 10_000
"""Clients that are remembered: the latest."""


@dataclass
class RateLimit:
    """So many a minute and client; as many at once after a pause. 0: no limit."""

    per_minute: int
    _buckets: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)
    """Client → what it may still ask, and when that was so."""

    def take(self, client: str) -> None:
        """Count a request. Raises ApiError (429) when it is one too many."""
        if not self.per_minute:
            return
        rate, now = self.per_minute / 60, time.monotonic()
        left, then = self._buckets.pop(client, (float(self.per_minute), now))
        left = min(float(self.per_minute), left + rate * (now - then))
        self._buckets[client] = (max(0.0, left - 1), now) if left >= 1 else (left, now)
        if len(self._buckets) > _CLIENTS:
            self._buckets.popitem(last=False)
        if left < 1:
            raise ApiError(429, "too_busy", "Too many requests. Try again soon.", retry_after=(1 - left) / rate)
