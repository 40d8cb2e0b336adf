"""Cuts a credential down to what a tool asked for, where its provider can mint such a one."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from datetime import datetime

from services.connections.connection import Connection
from services.connections.providers.failures import ProviderError
from services.connections.providers.http import Http
from services.connections.providers.provider import LeaseWish, Material, Provider
from services.connections.secret import Session
from services.connections.use_cases.known import Known
from services.runtime.errors import ErrorKind, ServiceError

# Tools ask for the same few cuts again and again; the oldest goes first.
_KEPT_MAX = 1000
_Key = tuple[str, str, int, LeaseWish]


@dataclass(frozen=True, slots=True)
class Ready:
    """A connection whose credential can be leased now, opened at `opened_at` by the clock."""

    known: Known
    material: Material
    session_end: datetime | None
    opened_at: float


class Narrowing:
    """Mints narrowed sessions and keeps them in memory until a part of their life is over."""

    def __init__(self, http: Http) -> None:
        self._http = http
        self._kept: OrderedDict[_Key, tuple[float, Session]] = OrderedDict()

    def asks_nobody(
        self, provider: Provider, connection: Connection, generation: int, wish: LeaseWish
    ) -> bool:
        """Whether a credential for this wish is at hand without a call of the provider."""
        if provider.narrow is None or not (wish.scopes or wish.resources):
            return True
        return self._find(_key(connection, generation, wish)) is not None

    async def narrowed(self, ready: Ready, wish: LeaseWish) -> Ready:
        """The same with a narrower session; as it is where nothing is asked or nothing can be
        done. Raises ServiceError."""
        known = ready.known
        narrow = known.provider.narrow
        if narrow is None or not (wish.scopes or wish.resources):
            return ready
        key = _key(known.connection, known.stored.session_generation, wish)
        session = self._find(key)
        if session is None:
            now = known.now(ready.opened_at)
            try:
                session = await narrow(ready.material, wish, self._http, now)
            except ProviderError as failure:
                raise failure.to_service_error() from failure
            self._keep(key, session, now)
        return replace(
            ready,
            material=replace(ready.material, session=session),
            session_end=session.expire_time,
        )

    def _find(self, key: _Key) -> Session | None:
        kept = self._kept.get(key)
        return kept[1] if kept is not None and kept[0] > time.monotonic() else None

    def _keep(self, key: _Key, session: Session, now: datetime) -> None:
        if session.expire_time is None:
            return
        # Half its life: what is lent from here still lasts as long as a lease can.
        until = time.monotonic() + (session.expire_time - now).total_seconds() / 2
        self._kept[key] = (until, session)
        while len(self._kept) > _KEPT_MAX:
            self._kept.popitem(last=False)


def _key(connection: Connection, generation: int, wish: LeaseWish) -> _Key:
    return (connection.tenant_id, connection.connection_id, generation, wish)


def check_scopes(provider: Provider, connection: Connection, wish: LeaseWish) -> None:
    """Raise SCOPES_MISSING when the connection does not cover what a tool asked for, as far as its
    provider tells: else it refuses when the credential is cut down or used."""
    if not wish.scopes or provider.missing_scopes is None:
        return
    missing = provider.missing_scopes(connection.scopes, wish.scopes)
    if missing:
        raise ServiceError(
            ErrorKind.FAILED_PRECONDITION,
            "SCOPES_MISSING",
            f"The connection lacks {', '.join(missing)}; connect again with these scopes.",
            metadata={"scopes": " ".join(missing)},
        )
