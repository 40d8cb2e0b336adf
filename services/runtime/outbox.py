"""Remembers, in the transaction that causes it, what must be told to others.

The table holds only what is owed: a row is deleted once it is sent, which bounds the table by the
backlog. It is sent at least once, in no promised order; see `services.runtime.relay`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import asyncpg
from opentelemetry import propagate
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

# A row that failed this often is reported as stuck; it goes on being retried.
STUCK_ATTEMPTS = 10

_INSERT = text(
    "INSERT INTO outbox (tenant_id, topic, payload, trace_context) "
    "VALUES (:tenant_id, :topic, CAST(:payload AS jsonb), CAST(:trace_context AS jsonb))"
)
_CLAIM = """
WITH due AS MATERIALIZED (
    SELECT id FROM outbox
    WHERE due_time <= cogni_now() AND topic = ANY ($1)
    ORDER BY due_time, id LIMIT $2
    FOR UPDATE SKIP LOCKED
)
UPDATE outbox SET attempts = attempts + 1, due_time = cogni_now() + $3
FROM due WHERE outbox.id = due.id
RETURNING outbox.id, tenant_id, topic, payload, trace_context, enqueue_time, attempts
"""
_DELETE = "DELETE FROM outbox WHERE id = ANY ($1)"
# Fenced by the attempt: whoever claimed the row since then decides about it.
_POSTPONE = """
UPDATE outbox SET due_time = cogni_now() + failed.pause, last_error = failed.error
FROM unnest($1::bigint[], $2::integer[], $3::interval[], $4::text[])
    AS failed (id, attempts, pause, error)
WHERE outbox.id = failed.id AND outbox.attempts = failed.attempts
"""
_OWED = text(
    "SELECT topic, count(*) AS entries, min(enqueue_time) AS oldest_time, "
    "count(*) FILTER (WHERE attempts >= :stuck) AS stuck, "
    "max(last_error) FILTER (WHERE attempts >= :stuck) AS stuck_error "
    "FROM outbox GROUP BY topic ORDER BY topic"
)


@dataclass(frozen=True)
class Entry:
    """One thing owed: the same `id` each time it is handed over, `attempts` counted from 1."""

    id: int
    tenant_id: str
    topic: str
    payload: Mapping[str, Any]
    trace_context: Mapping[str, str]
    enqueue_time: datetime
    attempts: int


@dataclass(frozen=True)
class Failure:
    """An entry that was not sent, how long it rests, and why, in words fit for operators."""

    entry: Entry
    pause: timedelta
    error: str


@dataclass(frozen=True)
class Owed:
    """How much is owed of one topic; `stuck` entries have failed STUCK_ATTEMPTS times or more."""

    topic: str
    entries: int
    oldest_time: datetime
    stuck: int
    stuck_error: str | None


async def enqueue(
    tx: AsyncConnection, topic: str, payload: Mapping[str, Any], tenant_id: str
) -> None:
    """Owe `payload` (a JSON object without secrets) to the topic once `tx` commits.

    Kick the relay after the commit; otherwise its next sweep finds the row. The caller's trace
    goes with it.
    """
    await enqueue_many(tx, topic, [(tenant_id, payload)])


async def enqueue_many(
    tx: AsyncConnection, topic: str, payloads: Sequence[tuple[str, Mapping[str, Any]]]
) -> None:
    """Owe several payloads, each with its tenant, as `enqueue` does."""
    if not payloads:
        return
    trace_context: dict[str, str] = {}
    propagate.inject(trace_context)
    carrier = json.dumps(trace_context)
    rows = [
        {
            "tenant_id": tenant_id,
            "topic": topic,
            "payload": json.dumps(payload),
            "trace_context": carrier,
        }
        for tenant_id, payload in payloads
    ]
    await tx.execute(_INSERT, rows)


async def owed(tx: AsyncConnection) -> Sequence[Owed]:
    """Return what is owed, by topic. Needs a jobs transaction."""
    rows = await tx.execute(_OWED, {"stuck": STUCK_ATTEMPTS})
    return [Owed(**row) for row in rows.mappings()]


async def claim(
    tx: asyncpg.Connection, topics: Sequence[str], *, limit: int, lease: timedelta
) -> list[Entry]:
    """Take up to `limit` due entries, oldest first, that nobody else is taking.

    They are this claimant's until `lease` is over, then due again: a claimant that dies delays
    its entries and loses none.
    """
    rows = await tx.fetch(_CLAIM, topics, limit, lease)
    return sorted((_entry(row) for row in rows), key=lambda entry: entry.id)


async def settle(
    tx: asyncpg.Connection, sent: Sequence[Entry], failures: Sequence[Failure]
) -> None:
    """Forget what was sent and postpone what was not."""
    if sent:
        await tx.execute(_DELETE, [entry.id for entry in sent])
    if failures:
        await tx.execute(
            _POSTPONE,
            [failure.entry.id for failure in failures],
            [failure.entry.attempts for failure in failures],
            [failure.pause for failure in failures],
            [failure.error for failure in failures],
        )


def _entry(row: asyncpg.Record) -> Entry:
    return Entry(
        id=row["id"],
        tenant_id=row["tenant_id"],
        topic=row["topic"],
        payload=json.loads(row["payload"]),
        trace_context=json.loads(row["trace_context"]),
        enqueue_time=row["enqueue_time"],
        attempts=row["attempts"],
    )
