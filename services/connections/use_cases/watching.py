"""Streams a tenant's connections as they change; the log behind it misses nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from time import monotonic

from services.connections.connection import Change
from services.connections.connection_requests import ConnectionFilter
from services.connections.store import changes, connections
from services.runtime.caller import Caller
from services.runtime.cursor import Position, decode_cursor, encode_cursor
from services.runtime.database import Database
from services.runtime.drain import Drain
from services.runtime.listen import Listener

HEARTBEAT_SECONDS = 10.0
POLL_SECONDS = 1.0
_SNAPSHOT_ROWS = 200


@dataclass(frozen=True, slots=True)
class ChangeBatch:
    """Changes, and the cursor after them; `resume` in the last batch of a stopping server."""

    changes: tuple[Change, ...]
    cursor: str
    resume: bool = False


@dataclass(frozen=True, slots=True)
class Watched:
    """What a caller watches; empty fields stand for all."""

    provider: str = ""
    connection_ids: frozenset[str] = frozenset()

    def wants(self, connection_id: str, provider: str) -> bool:
        """Whether a change is asked for."""
        return (not self.provider or provider == self.provider) and (
            not self.connection_ids or connection_id in self.connection_ids
        )


class Watching:
    """WatchConnections."""

    def __init__(
        self,
        database: Database,
        listener: Listener,
        drain: Drain,
        *,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._database = database
        self._listener = listener
        self._drain = drain
        self._heartbeat_seconds = heartbeat_seconds

    async def watch(
        self, caller: Caller, watched: Watched, cursor: str
    ) -> AsyncIterator[ChangeBatch]:
        """What exists (without a cursor), then every change; ends with a resume batch."""
        tenant_id = caller.tenant_id
        position = decode_cursor(cursor, stream=changes.STREAM, tenant_id=tenant_id)
        if position is None:
            async with self._database.tenant(tenant_id) as tx:
                # Before the snapshot is read: what changes meanwhile is sent again, not missed.
                position = await changes.end(tx)
            async for existing in self._existing(tenant_id, watched):
                # Without a cursor until everything was sent: a broken snapshot begins anew.
                yield ChangeBatch(existing, "")
            yield ChangeBatch((), _cursor(position, tenant_id))
        sent = monotonic()
        async for wakeup in self._listener.wakeups(changes.CHANNEL, poll_seconds=POLL_SECONDS):
            if wakeup.anything or tenant_id in wakeup.payloads:
                async for reached, found in self._news(tenant_id, watched, position):
                    position = reached
                    if found:
                        yield ChangeBatch(found, _cursor(position, tenant_id))
                        sent = monotonic()
            if self._drain.draining.is_set():
                yield ChangeBatch((), _cursor(position, tenant_id), resume=True)
                return
            if monotonic() - sent >= self._heartbeat_seconds:
                yield ChangeBatch((), _cursor(position, tenant_id))
                sent = monotonic()

    async def _existing(
        self, tenant_id: str, watched: Watched
    ) -> AsyncIterator[tuple[Change, ...]]:
        before_id: str | None = None
        while True:
            async with self._database.tenant(tenant_id) as tx:
                page = await connections.list_newest_first(
                    tx,
                    tenant_id,
                    ConnectionFilter(provider=watched.provider),
                    before_id=before_id,
                    limit=_SNAPSHOT_ROWS,
                )
            found = tuple(
                Change(each.connection_id, each.provider, each)
                for each in page
                if watched.wants(each.connection_id, each.provider)
            )
            if found:
                yield found
            if len(page) < _SNAPSHOT_ROWS:
                return
            before_id = page[-1].connection_id

    async def _news(
        self, tenant_id: str, watched: Watched, position: Position
    ) -> AsyncIterator[tuple[Position, tuple[Change, ...]]]:
        while True:
            async with self._database.tenant(tenant_id) as tx:
                changed = await changes.after(tx, tenant_id, position)
                wanted = [each for each in changed.connections if watched.wants(*each)]
                found = tuple(
                    [
                        Change(id, provider, await connections.get(tx, tenant_id, id))
                        for id, provider in wanted
                    ]
                )
            position = changed.position
            yield position, found
            if not changed.more:
                return


def _cursor(position: Position, tenant_id: str) -> str:
    return encode_cursor(position, stream=changes.STREAM, tenant_id=tenant_id)
