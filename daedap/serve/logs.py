"""What the server logs: ids, lengths, times, sources; never what people write, nor who they are."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path

_log = logging.getLogger("daedap.serve")


def log_failure(error: BaseException) -> None:
    """Log where a failure happened. Not its message: that may quote the text that caused it."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    places = " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    _log.error("failed: %s at %s", type(error).__name__, places)


def log_request(method: str, route: str, status: int, seconds: float) -> None:
    """One line for each request; `route` is the pattern of the path, without the ids in it."""
    _log.info("%s %s %d %.0f ms", method, route, status, 1000 * seconds)


def log_undelivered(reason: str) -> None:
    """An answer that was sent later, and that a channel's platform did not take."""
    _log.error("a late answer was not taken: %s", reason)


def log_reply(id: str, question: str, source: str, seconds: float) -> None:
    """One line for each reply."""
    _log.info("reply %s: %d characters, %s, %.0f ms", id, len(question), source, 1000 * seconds)
