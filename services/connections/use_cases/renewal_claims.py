"""A claimed turn to renew a session, and what those are told who do not get one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from services.connections.connection import Connection
from services.connections.providers.failures import FailureKind
from services.connections.providers.provider import Material, Provider, RefreshPolicy
from services.runtime.errors import ErrorKind, ServiceError


class Turn(Enum):
    """What came of asking for a renewal's turn."""

    MINE = "mine"
    BUSY = "busy"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Claimed:
    """A turn: whose it is and what to work with."""

    turn: Turn
    connection: Connection
    provider: Provider
    material: Material
    generations: tuple[int, int]
    claim_id: str
    attempts: int
    maybe_done: bool
    now: datetime
    claimed_at: float

    @property
    def single_use(self) -> bool:
        """Whether presenting a token twice ends the grant, with the newer token."""
        return self.provider.policy(self.material.settings) is RefreshPolicy.STRICT

    @property
    def generation(self) -> int:
        """The session's generation that is renewed."""
        return self.generations[1]


def in_progress() -> ServiceError:
    """Somebody else is renewing, and took too long."""
    return ServiceError(
        ErrorKind.UNAVAILABLE,
        "REFRESH_IN_PROGRESS",
        "The credential is being renewed by another call.",
        retry_after=timedelta(seconds=1),
    )


def put_off(reason: str, wait: timedelta) -> ServiceError:
    """Nobody asks the provider before `wait` is over."""
    limited = reason == FailureKind.RATE_LIMITED.value
    return ServiceError(
        ErrorKind.RESOURCE_EXHAUSTED if limited else ErrorKind.UNAVAILABLE,
        reason or FailureKind.UNAVAILABLE.value,
        "The provider failed or asked to wait; it is not asked again before the delay is over.",
        retry_after=wait,
    )
