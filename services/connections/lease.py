"""A lease: one credential for one invocation of one attempt, and whose leases end together."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from services.connections.credential import Credential
from services.connections.providers.provider import LeaseWish

DEFAULT_TTL = timedelta(minutes=5)
#: Stands for every attempt of a run, future ones too.
EVERY_EPOCH = 2**63 - 1


@dataclass(frozen=True, slots=True)
class LeaseWanted:
    """What a tool asks for."""

    connection_id: str
    invocation_id: str
    tool: str
    wish: LeaseWish
    ttl: timedelta
    #: The providers whose credential the tool can use; empty takes any.
    providers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Lease:
    """What it gets."""

    lease_id: str
    credential: Credential
    expire_time: datetime
    scopes: tuple[str, ...]
    provider: str


@dataclass(frozen=True, slots=True)
class Target:
    """Whose leases end: exactly one of the ids is set."""

    grant_id: str = ""
    run_id: str = ""
    up_to_epoch: int = 0
    connection_id: str = ""
