"""How a broken stream goes on: the rules of resuming and of waiting between tries, without I/O."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cogni.client.errors import CogniError, DeadlineExceeded, Unavailable

FIRST_WAIT_SECONDS = 0.1
WAIT_SECONDS_MAX = 5.0
# A watch gives up when nothing could be read for this long; any message starts it anew.
SILENCE_SECONDS_MAX = 120.0

Request = TypeVar("Request", bound=Any)


def resumed_at(request: Request, cursor: str) -> Request:
    """A copy of a stream's request that goes on after `cursor`, or begins as asked without one."""
    resumed: Request = type(request)()
    resumed.CopyFrom(request)
    resumed.cursor = cursor
    # Where a stream goes on is no news: servers refuse the two together.
    if cursor and "from_now" in request.DESCRIPTOR.fields_by_name:
        resumed.ClearField("from_now")
    return resumed


@dataclass
class Reconnecting:
    """Decides after each break of a stream whether to call again, and how long to wait first."""

    silence_seconds_max: float = SILENCE_SECONDS_MAX
    spread: Callable[[], float] = random.random
    _next_wait: float = field(default=FIRST_WAIT_SECONDS, init=False)
    _waited: float = field(default=0.0, init=False)

    def received(self) -> None:
        """A message arrived: the next break starts with the shortest wait again."""
        self._next_wait = FIRST_WAIT_SECONDS
        self._waited = 0.0

    def wait_seconds(self, error: CogniError | None) -> float:
        """How long to wait before calling again; raises `error` when that is no use.

        `error` is None when the server ended the stream in good order to be called again.
        """
        if error is None:
            return 0.0
        if not isinstance(error, Unavailable | DeadlineExceeded):
            raise error
        if self._waited >= self.silence_seconds_max:
            raise error
        # Full jitter, so that the clients of a restarted server do not all come back at once.
        wait = self._next_wait * self.spread()
        if error.retry_after is not None:
            wait = max(wait, error.retry_after.total_seconds())
        wait = min(wait, WAIT_SECONDS_MAX)
        self._waited += max(wait, FIRST_WAIT_SECONDS)
        self._next_wait = min(self._next_wait * 2, WAIT_SECONDS_MAX)
        return wait
