"""Remembers connections as they were last read, sealed as they are stored: a lease opens them anew.

Nothing here decides: each lease names the version it was made of, and is given, behind the
tenant's head lock, only if that is still the present one. Nothing here is open either: what is
kept are rows with their ciphertexts, so the memory holds no secret that the database does not.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from services.connections.connection import Connection
from services.connections.providers.provider import Provider, ProviderSettings
from services.connections.store.credentials import StoredCredentials

KEPT_MAX = 5000
KEPT_FOR = timedelta(minutes=5)
# A provider's tokens have some kilobytes; what is larger is read each time.
KEPT_BYTES_MAX = 16 * 1024


@dataclass(frozen=True, slots=True)
class Known:
    """A connection, what it has, and when that was read (by the process's clock)."""

    connection: Connection
    stored: StoredCredentials
    provider: Provider
    settings: ProviderSettings
    version: str
    read_at: float

    def now(self, clock: float) -> datetime:
        """The database's time by now, as far as the process's clock goes on evenly."""
        return self.stored.now + timedelta(seconds=clock - self.read_at)


def version_of(connection: Connection, stored: StoredCredentials) -> str:
    """What a lease is made of, in the words of the SQL function give_leases."""
    rows = (stored.secret, stored.session)
    parts = [f"/{row.binding.kind} {row.generation} {row.envelope.key_id}" for row in rows if row]
    return f"{connection.revision}{''.join(parts)}"


class KnownConnections:
    """The connections read last; bounded in number, size and age."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: OrderedDict[tuple[str, str], Known] = OrderedDict()

    def find(self, tenant_id: str, connection_id: str) -> Known | None:
        """The connection as it was read some minutes ago at most, or None."""
        key = (tenant_id, connection_id)
        known = self._kept.get(key)
        if known is None:
            return None
        if self._clock() - known.read_at > KEPT_FOR.total_seconds():
            del self._kept[key]
            return None
        self._kept.move_to_end(key)
        return known

    def keep(self, known: Known) -> None:
        """Remember it, unless it is large."""
        rows = (known.stored.secret, known.stored.session)
        if sum(len(row.envelope.ciphertext) for row in rows if row) > KEPT_BYTES_MAX:
            return
        key = (known.connection.tenant_id, known.connection.connection_id)
        self._kept[key] = known
        self._kept.move_to_end(key)
        if len(self._kept) > KEPT_MAX:
            self._kept.popitem(last=False)

    def forget(self, tenant_id: str, connection_id: str) -> None:
        """Read it again next time."""
        self._kept.pop((tenant_id, connection_id), None)
