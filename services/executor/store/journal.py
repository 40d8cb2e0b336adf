"""Commits what many attempts did in one transaction: their events, acts and facts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from services.executor.events import Draft, sealed_events
from services.executor.store import events
from services.executor.store.events import Connection

# Rows that somebody else holds are skipped: one run's lock must not hold up all the others.
_FENCE = """
WITH asked AS (
    SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::bigint[]) AS asked (run_id, epoch, count)
), taken AS (
    SELECT run_leases.run_id, asked.count FROM run_leases JOIN asked USING (run_id, epoch)
    WHERE holder IS NOT NULL AND NOT sealed
    ORDER BY run_leases.run_id FOR UPDATE OF run_leases SKIP LOCKED
)
UPDATE run_leases SET next_seq = next_seq + taken.count
FROM taken WHERE run_leases.run_id = taken.run_id
RETURNING run_leases.run_id, next_seq - taken.count AS first_seq, cogni_now() AS time
"""
_HELD = """
SELECT run_leases.run_id FROM run_leases
JOIN unnest($1::uuid[], $2::bigint[]) AS asked (run_id, epoch) USING (run_id, epoch)
WHERE holder IS NOT NULL AND NOT sealed
"""
_INSERT = """
INSERT INTO run_events (run_id, tenant_id, seq, attempt, type, payload)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::integer[], $5::text[], $6::bytea[])
"""
_SETTLE = "SELECT FROM run_leases WHERE run_id = $1 FOR SHARE"
_WRITTEN = "SELECT payload FROM run_events WHERE run_id = $1 AND seq = $2"


@dataclass(frozen=True)
class Write:
    """One statement to execute, idempotent, with its arguments."""

    statement: str
    arguments: tuple[object, ...]


@dataclass
class Page:
    """What one attempt wants to have written. Facts are written even when its lease is lost."""

    run_id: str
    tenant_id: str
    epoch: int
    attempt: int
    drafts: list[Draft] = field(default_factory=list)
    acts: list[Write] = field(default_factory=list)
    facts: list[Write] = field(default_factory=list)

    @property
    def fenced(self) -> bool:
        """Whether anything in it needs the lease."""
        return bool(self.drafts or self.acts)


@dataclass(frozen=True)
class Committed:
    """What became of a batch: the newest seq of each run, who lost its lease, who must wait."""

    newest: dict[str, int]
    lost: frozenset[str]
    busy: frozenset[str]
    #: For each run one event that was written, to recognise the commit by.
    witnesses: dict[str, tuple[int, bytes]]


async def commit(tx: Connection, pages: Sequence[Page]) -> Committed:
    """Write the pages of runs whose lease holds, and everybody's facts. Needs a jobs transaction.

    Nothing fenced is written for runs in `lost` and `busy`; those in `busy` may be tried again.
    """
    fenced = [page for page in pages if page.fenced]
    places = await _take(tx, fenced)
    refused = [page for page in fenced if page.run_id not in places]
    busy = await _held(tx, refused)
    written, witnesses = await _insert(tx, fenced, places)
    acts = (act for page in fenced if page.run_id in places for act in page.acts)
    facts = (fact for page in pages if page.run_id not in busy for fact in page.facts)
    await _execute(tx, [*facts, *acts])
    if written:
        await events.notify(tx, list(written.items()))
    lost = frozenset(page.run_id for page in refused) - busy
    return Committed(written, lost, busy, witnesses)


async def is_written(tx: Connection, run_id: str, seq: int, payload: bytes) -> bool:
    """Whether exactly this event is in the log: then the transaction that wrote it committed."""
    # One that lost its client may still be committing; it holds the lease's row until it has.
    await tx.execute(_SETTLE, run_id)
    return bool(await tx.fetchval(_WRITTEN, run_id, seq) == payload)


async def _take(tx: Connection, pages: Sequence[Page]) -> dict[str, tuple[int, datetime]]:
    if not pages:
        return {}
    rows = await tx.fetch(
        _FENCE,
        [page.run_id for page in pages],
        [page.epoch for page in pages],
        [len(page.drafts) for page in pages],
    )
    return {str(row["run_id"]): (row["first_seq"], row["time"]) for row in rows}


async def _held(tx: Connection, pages: Sequence[Page]) -> frozenset[str]:
    if not pages:
        return frozenset()
    rows = await tx.fetch(_HELD, [page.run_id for page in pages], [page.epoch for page in pages])
    return frozenset(str(row["run_id"]) for row in rows)


async def _insert(
    tx: Connection, pages: Sequence[Page], places: dict[str, tuple[int, datetime]]
) -> tuple[dict[str, int], dict[str, tuple[int, bytes]]]:
    rows: list[tuple[object, ...]] = []
    newest: dict[str, int] = {}
    witnesses: dict[str, tuple[int, bytes]] = {}
    for page in pages:
        if page.run_id not in places or not page.drafts:
            continue
        first_seq, time = places[page.run_id]
        for event in sealed_events(first_seq, page.attempt, time, page.drafts):
            rows.append(
                (page.run_id, page.tenant_id, event.seq, page.attempt, event.type, event.payload)
            )
            newest[page.run_id] = event.seq
            witnesses[page.run_id] = (event.seq, event.payload)
    if rows:
        await tx.execute(_INSERT, *[list(column) for column in zip(*rows, strict=True)])
    return newest, witnesses


async def _execute(tx: Connection, writes: Iterable[Write]) -> None:
    """Execute the writes, those of one statement together, in the order they first appear."""
    by_statement: dict[str, list[tuple[object, ...]]] = {}
    for write in writes:
        by_statement.setdefault(write.statement, []).append(write.arguments)
    for statement, arguments in by_statement.items():
        await tx.executemany(statement, arguments)
