"""The orderly end of a process: streams end with a resume point, then the server stops."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterable
from datetime import timedelta

from services.runtime.errors import ServiceError, unavailable

#: Soon: a restart takes seconds, and other processes of the service serve already.
_RETRY_AFTER = timedelta(milliseconds=200)


class Drain:
    """Shared by a process's signals, server, streams and loops. For one event loop."""

    def __init__(self) -> None:
        #: Set when the process shall end: streams send their resume point and finish.
        self.draining = asyncio.Event()
        #: Set when it shall end at once, without waiting for calls under way.
        self.hurrying = asyncio.Event()

    def begin(self) -> None:
        """The first call begins the drain, the second cuts it short."""
        if self.draining.is_set():
            self.hurrying.set()
        self.draining.set()

    def begin_on(self, signals: Iterable[signal.Signals]) -> None:
        """Begins on any of the signals; call it inside the event loop of the main thread."""
        loop = asyncio.get_running_loop()
        for each in signals:
            loop.add_signal_handler(each, self.begin)


def stopping() -> ServiceError:
    """What a new call is told once the drain has begun."""
    return unavailable("The server is stopping; retry.", retry_after=_RETRY_AFTER)


def stream_drained() -> ServiceError:
    """What a stream raises after its resume message: connect again and continue from there."""
    return unavailable(
        "The server is stopping; connect again and continue after the last position you have.",
        retry_after=_RETRY_AFTER,
    )
