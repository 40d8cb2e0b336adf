"""Appends to the runs' event logs, reads them back, and tells who follows them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

import asyncpg

from services.executor.events import Draft, sealed_events

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

#: A quarter of what a message may hold by default.
BATCH_BYTES_MAX = 1024 * 1024
#: Wakes the tails; the payload is "run_id:newest_seq".
EVENTS_CHANNEL = "executor_run_events"
#: Wakes the runner of a run; the payload is the run_id. It then looks at the run.
CONTROLS_CHANNEL = "executor_run_controls"

# The first statement of every transaction that appends is one of these three. It takes the row,
# the sequence numbers, and the right to write. Everything after it is serialised per run.
_TAKE_FENCED = """
UPDATE run_leases SET next_seq = next_seq + $3
WHERE run_id = $1 AND epoch = $2 AND holder IS NOT NULL AND NOT sealed
RETURNING next_seq - $3 AS first_seq, cogni_now() AS time
"""
_TAKE_UNSEALED = """
UPDATE run_leases SET next_seq = next_seq + $2
WHERE run_id = $1 AND NOT sealed
RETURNING next_seq - $2 AS first_seq, cogni_now() AS time
"""
_LOCK = "SELECT run_id FROM run_leases WHERE run_id = $1 AND NOT sealed FOR UPDATE"
_INSERT = """
INSERT INTO run_events (run_id, tenant_id, seq, attempt, type, payload)
SELECT $1, $2, each.seq, $3, each.type, each.payload
FROM unnest($4::bigint[], $5::text[], $6::bytea[]) AS each (seq, type, payload)
"""
# Bounded by bytes too, since a batch becomes one message; the first event comes in any case. The
# sum needs the sizes alone, which PostgreSQL knows without reading what it has put aside.
_READ = """
SELECT seq, type, payload FROM (
    SELECT seq, type, payload, sum(octet_length(payload)) OVER (ORDER BY seq) AS bytes
    FROM run_events WHERE run_id = $1 AND seq > $2 ORDER BY seq LIMIT $3
) AS next
WHERE bytes <= $4 OR seq = $2 + 1 ORDER BY seq
"""
_NEWEST = """
SELECT run_id, next_seq - 1 AS newest_seq FROM run_leases WHERE run_id = ANY ($1::uuid[])
"""


@dataclass(frozen=True)
class Place:
    """The sequence numbers that a transaction has taken, and the time they are stamped with."""

    first_seq: int
    time: datetime


@dataclass(frozen=True)
class StoredEvent:
    """One entry of a log; `payload` is the serialized RunEvent, byte for byte."""

    seq: int
    type: str
    payload: bytes


async def take_fenced(tx: Connection, run_id: str, epoch: int, count: int) -> Place | None:
    """Take `count` sequence numbers for the attempt that holds `epoch`; None when it lost it."""
    row = await tx.fetchrow(_TAKE_FENCED, run_id, epoch, count)
    return None if row is None else Place(row["first_seq"], row["time"])


async def take_unsealed(tx: Connection, run_id: str, count: int) -> Place | None:
    """Take `count` sequence numbers for a server; None when the run is final, or not there."""
    row = await tx.fetchrow(_TAKE_UNSEALED, run_id, count)
    return None if row is None else Place(row["first_seq"], row["time"])


async def lock(tx: Connection, run_id: str) -> bool:
    """Take the right to write before it is known what; False when the run is final or not there.

    For servers, which must look at the run first: a number taken and not used would be a gap.
    """
    return await tx.fetchval(_LOCK, run_id) is not None


async def insert(
    tx: Connection,
    run_id: str,
    tenant_id: str,
    attempt: int,
    place: Place,
    drafts: Sequence[Draft],
) -> int:
    """Write the drafts at the place that was taken for them; returns the newest seq."""
    events = sealed_events(place.first_seq, attempt, place.time, drafts)
    await tx.execute(
        _INSERT,
        run_id,
        tenant_id,
        attempt,
        [event.seq for event in events],
        [event.type for event in events],
        [event.payload for event in events],
    )
    return place.first_seq + len(events) - 1


async def append_fenced(
    tx: Connection,
    run_id: str,
    tenant_id: str,
    epoch: int,
    attempt: int,
    drafts: Sequence[Draft],
) -> int | None:
    """Append as the attempt that holds `epoch`; returns the newest seq, None when it lost it.

    Must be the transaction's first statement. Whoever gets None has written nothing, and must
    write nothing else. The caller notifies, once per batch.
    """
    place = await take_fenced(tx, run_id, epoch, len(drafts))
    if place is None:
        return None
    return await insert(tx, run_id, tenant_id, attempt, place, drafts)


async def read(
    tx: Connection, run_id: str, after_seq: int, limit: int, bytes_max: int = BATCH_BYTES_MAX
) -> list[StoredEvent]:
    """Return the next events after `after_seq`, in order: at most `limit`, and `bytes_max`.

    An event that is larger by itself comes alone.
    """
    rows = await tx.fetch(_READ, run_id, after_seq, limit, bytes_max)
    return [StoredEvent(row["seq"], row["type"], row["payload"]) for row in rows]


async def newest(tx: Connection, run_ids: Sequence[str]) -> list[tuple[str, int]]:
    """Return (run_id, newest seq) of each of these runs."""
    rows = await tx.fetch(_NEWEST, list(run_ids))
    return [(str(row["run_id"]), row["newest_seq"]) for row in rows]


async def notify(tx: Connection, newest: Sequence[tuple[str, int]]) -> None:
    """Tell the tails of (run_id, newest seq) when the transaction commits."""
    await tx.fetch(
        "SELECT pg_notify($1, each) FROM unnest($2::text[]) AS each",
        EVENTS_CHANNEL,
        [f"{run_id}:{seq}" for run_id, seq in newest],
    )


async def notify_runner(tx: Connection, run_ids: Sequence[str]) -> None:
    """Tell the runners of these runs to look at them when the transaction commits."""
    await tx.fetch(
        "SELECT pg_notify($1, each) FROM unnest($2::text[]) AS each",
        CONTROLS_CHANNEL,
        list(run_ids),
    )
