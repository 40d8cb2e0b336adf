"""The stream of changes of connections, in commit order."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, func, insert, select, text, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from services.connections.tables import connection_changes
from services.runtime.cursor import Position, horizon, read_after

CHANNEL = "cogni_connections_changes"
STREAM = "connections"
BATCH_ROWS_MAX = 500
SWEEP_ROWS_MAX = 5000
KEEP_TOMBSTONES_DAYS = 30


@dataclass(frozen=True, slots=True)
class Changed:
    """Which connections changed, each once and in the order of its last change."""

    connections: tuple[tuple[str, str], ...]
    position: Position
    more: bool


async def note(
    tx: AsyncConnection, tenant_id: str, connection_id: str, provider: str, *, deleted: bool = False
) -> None:
    """Write a change, and wake watchers once it is committed."""
    await tx.execute(
        insert(connection_changes).values(
            tenant_id=tenant_id, connection_id=connection_id, provider=provider, deleted=deleted
        )
    )
    await tx.execute(
        text("SELECT pg_notify(:channel, :tenant)"), {"channel": CHANNEL, "tenant": tenant_id}
    )


async def end(tx: AsyncConnection) -> Position:
    """The place before everything that is not final yet."""
    return await horizon(tx)


async def after(tx: AsyncConnection, tenant_id: str, position: Position) -> Changed:
    """The next changes, (connection_id, provider) each."""
    rows = select(
        connection_changes.c.xid,
        connection_changes.c.id,
        connection_changes.c.connection_id,
        connection_changes.c.provider,
    ).where(connection_changes.c.tenant_id == tenant_id)
    batch = await read_after(tx, rows, position, limit=BATCH_ROWS_MAX)
    # Later entries push earlier ones of the same connection out of the way.
    latest: dict[str, str] = {}
    for row in batch.rows:
        latest.pop(row.connection_id, None)
        latest[row.connection_id] = row.provider
    more = len(batch.rows) == BATCH_ROWS_MAX
    return Changed(tuple(latest.items()), batch.position, more)


async def sweep(tx: AsyncConnection) -> int:
    """Delete changes that a later one of the same connection replaces, and old tombstones.

    The last change of a living connection stays, so that no cursor ever points too far back.
    """
    newer = connection_changes.alias("newer")
    replaced = (
        select(newer.c.id)
        .where(
            newer.c.tenant_id == connection_changes.c.tenant_id,
            newer.c.connection_id == connection_changes.c.connection_id,
            tuple_(newer.c.xid, newer.c.id)
            > tuple_(connection_changes.c.xid, connection_changes.c.id),
        )
        .exists()
    )
    now = func.cogni_now()
    day = func.make_interval(0, 0, 0, 1)
    tombstone = connection_changes.c.deleted & (
        connection_changes.c.change_time < now - day * KEEP_TOMBSTONES_DAYS
    )
    old = (
        select(connection_changes.c.xid, connection_changes.c.id)
        .where(connection_changes.c.change_time < now - day, replaced | tombstone)
        .limit(SWEEP_ROWS_MAX)
    ).cte("old")
    gone = await tx.execute(
        delete(connection_changes)
        .where(connection_changes.c.xid == old.c.xid, connection_changes.c.id == old.c.id)
        .returning(connection_changes.c.id)
    )
    return len(gone.all())
