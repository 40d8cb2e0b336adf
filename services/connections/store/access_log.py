"""Access records: numbered and chained under the tenant's head row, never changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import RowMapping, Select, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.connections import access_log
from services.connections.access_log import Action, Decision, Entry, Head, Record, RecordFilter
from services.connections.tables import access_heads, access_records


@dataclass(frozen=True, slots=True)
class LockedHead:
    """The end of a tenant's log, held until the transaction ends, and the time it was taken."""

    tenant_id: str
    head: Head
    now: datetime


async def lock_head(tx: AsyncConnection, tenant_id: str) -> LockedHead:
    """Take the tenant's head row. A transaction takes it before any other row or not at all."""
    statement = upsert(access_heads).values(tenant_id=tenant_id)
    # Sets what is there already: DO NOTHING would neither lock nor return the row.
    statement = statement.on_conflict_do_update(
        index_elements=[access_heads.c.tenant_id], set_={"tenant_id": tenant_id}
    )
    row = (
        await tx.execute(
            statement.returning(
                access_heads.c.sequence, access_heads.c.hash, func.cogni_now().label("now")
            )
        )
    ).one()
    return LockedHead(tenant_id, Head(row.sequence, row.hash), row.now)


async def append(tx: AsyncConnection, locked: LockedHead, *entries: Entry) -> LockedHead:
    """Write entries at the end of the log and return its new end."""
    records = access_log.append(locked.head, locked.now, entries)
    await tx.execute(insert(access_records), [_row(locked.tenant_id, each) for each in records])
    head = Head(records[-1].sequence, records[-1].hash)
    await tx.execute(
        update(access_heads)
        .where(access_heads.c.tenant_id == locked.tenant_id)
        .values(sequence=head.sequence, hash=head.hash)
    )
    return LockedHead(locked.tenant_id, head, locked.now)


async def record(tx: AsyncConnection, tenant_id: str, *entries: Entry) -> None:
    """Lock the head and append: for a transaction that locks nothing else."""
    await append(tx, await lock_head(tx, tenant_id), *entries)


async def read_head(tx: AsyncConnection, tenant_id: str) -> Head:
    """The end of the log, not locked."""
    row = (
        await tx.execute(
            select(access_heads.c.sequence, access_heads.c.hash).where(
                access_heads.c.tenant_id == tenant_id
            )
        )
    ).one_or_none()
    return Head(row.sequence, row.hash) if row else Head()


async def read_records(
    tx: AsyncConnection,
    tenant_id: str,
    wanted: RecordFilter,
    *,
    after_sequence: int | None,
    oldest_first: bool,
    limit: int,
) -> list[Record]:
    """Up to `limit` records beyond `after_sequence` in the chosen direction."""
    column = access_records.c.sequence
    query = _filtered(select(access_records), tenant_id, wanted)
    if after_sequence is not None:
        query = query.where(column > after_sequence if oldest_first else column < after_sequence)
    query = query.order_by(column if oldest_first else column.desc()).limit(limit)
    return [_record(row) for row in (await tx.execute(query)).mappings()]


def _filtered(query: Select[Any], tenant_id: str, wanted: RecordFilter) -> Select[Any]:
    query = query.where(access_records.c.tenant_id == tenant_id)
    for name in ("connection_id", "run_id", "grant_id", "action", "decision"):
        value = getattr(wanted, name)
        if value:
            query = query.where(access_records.c[name] == value)
    if wanted.start_time is not None:
        query = query.where(access_records.c.record_time >= wanted.start_time)
    if wanted.end_time is not None:
        query = query.where(access_records.c.record_time < wanted.end_time)
    return query


_ENTRY_FIELDS: Sequence[str] = (
    "actor",
    "on_behalf_of",
    "connection_id",
    "provider",
    "run_id",
    "epoch",
    "grant_id",
    "invocation_id",
    "tool",
    "lease_id",
    "reason",
)


def _row(tenant_id: str, record: Record) -> dict[str, Any]:
    entry = record.entry
    return {
        "tenant_id": tenant_id,
        "sequence": record.sequence,
        "record_time": record.record_time,
        "action": entry.action.value,
        "decision": entry.decision.value,
        **{name: getattr(entry, name) for name in _ENTRY_FIELDS},
        "details": dict(entry.details),
        "previous_hash": record.previous_hash,
        "hash": record.hash,
    }


def _record(row: RowMapping) -> Record:
    entry = Entry(
        action=Action(row["action"]),
        decision=Decision(row["decision"]),
        details=row["details"],
        **{name: row[name] for name in _ENTRY_FIELDS},
    )
    return Record(row["sequence"], row["record_time"], entry, row["previous_hash"], row["hash"])
