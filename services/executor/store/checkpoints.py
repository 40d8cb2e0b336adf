"""Checkpoints of threads: writes for the journal, and reads bound to one tenant."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.executor.store.events import Connection
from services.executor.store.journal import Write
from services.executor.store.rows import Row

_PUT = """
INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, tenant_id, run_id, attempt,
    parent_checkpoint_id, type, checkpoint, metadata, step, source, create_time)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, cogni_now())
ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id) DO UPDATE SET
    type = excluded.type, checkpoint = excluded.checkpoint, metadata = excluded.metadata
WHERE checkpoints.tenant_id = excluded.tenant_id
"""
_PUT_BLOB = """
INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, tenant_id, run_id, type,
    blob)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT (thread_id, checkpoint_ns, channel, version) DO NOTHING
"""
_PUT_WRITE = """
INSERT INTO checkpoint_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, tenant_id,
    run_id, task_path, channel, type, blob)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id, task_id, idx) DO UPDATE SET
    channel = excluded.channel, type = excluded.type, blob = excluded.blob
WHERE checkpoint_writes.idx < 0 AND checkpoint_writes.tenant_id = excluded.tenant_id
"""
_COLUMNS = (
    "thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata"
)
_GET = f"""
SELECT {_COLUMNS} FROM checkpoints
WHERE thread_id = $1 AND checkpoint_ns = $2 AND ($3::text IS NULL OR checkpoint_id = $3)
ORDER BY checkpoint_id DESC LIMIT 1
"""
_LIST = f"""
SELECT {_COLUMNS} FROM checkpoints
WHERE ($1::text IS NULL OR thread_id = $1) AND ($2::text IS NULL OR checkpoint_ns = $2)
    AND ($3::text IS NULL OR checkpoint_id = $3) AND ($4::text IS NULL OR checkpoint_id < $4)
    AND metadata::jsonb @> $5::jsonb
ORDER BY checkpoint_id DESC LIMIT $6
"""
_BLOBS = """
SELECT blobs.channel, blobs.version, blobs.type, blobs.blob
FROM unnest($3::text[], $4::text[]) AS wanted (channel, version)
JOIN checkpoint_blobs AS blobs ON blobs.thread_id = $1 AND blobs.checkpoint_ns = $2
    AND blobs.channel = wanted.channel AND blobs.version = wanted.version
"""
_WRITES = """
SELECT task_id, channel, type, blob FROM checkpoint_writes
WHERE thread_id = $1 AND checkpoint_ns = $2 AND checkpoint_id = $3
ORDER BY task_path, task_id, idx
"""
_DELETE = tuple(
    f"DELETE FROM {table} WHERE thread_id = $1"
    for table in ("checkpoint_writes", "checkpoint_blobs", "checkpoints")
)

#: How many checkpoints one listing returns at most when nobody says.
LIST_MAX = 1000


@dataclass(frozen=True)
class Writer:
    """Whose checkpoints are written."""

    tenant_id: str
    run_id: str
    attempt: int


@dataclass(frozen=True)
class Place:
    """Where a checkpoint lies."""

    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str


@dataclass(frozen=True)
class Stored:
    """A value as LangGraph's serializer spells it."""

    type: str
    data: bytes


@dataclass(frozen=True)
class Read:
    """A checkpoint as it is stored, without its blobs and writes."""

    place: Place
    parent_checkpoint_id: str | None
    checkpoint: Stored
    metadata: str


def put(
    writer: Writer,
    place: Place,
    parent_checkpoint_id: str | None,
    checkpoint: Stored,
    metadata: str,
    step: int,
    source: str,
) -> Write:
    """Write a checkpoint; `metadata` is JSON."""
    return Write(
        _PUT,
        (
            place.thread_id,
            place.checkpoint_ns,
            place.checkpoint_id,
            writer.tenant_id,
            writer.run_id,
            writer.attempt,
            parent_checkpoint_id,
            checkpoint.type,
            checkpoint.data,
            metadata,
            step,
            source,
        ),
    )


def put_blob(writer: Writer, place: Place, channel: str, version: str, value: Stored) -> Write:
    """Write one version of a channel's value; a version never changes."""
    return Write(
        _PUT_BLOB,
        (
            place.thread_id,
            place.checkpoint_ns,
            channel,
            version,
            writer.tenant_id,
            writer.run_id,
            value.type,
            value.data,
        ),
    )


def put_write(
    writer: Writer, place: Place, task_id: str, path: str, idx: int, channel: str, value: Stored
) -> Write:
    """Write what a task wrote; special channels (idx < 0) may be written again."""
    return Write(
        _PUT_WRITE,
        (
            place.thread_id,
            place.checkpoint_ns,
            place.checkpoint_id,
            task_id,
            idx,
            writer.tenant_id,
            writer.run_id,
            path,
            channel,
            value.type,
            value.data,
        ),
    )


async def get(
    tx: Connection, thread_id: str, checkpoint_ns: str, checkpoint_id: str | None
) -> Read | None:
    """Return the checkpoint, or the newest one; None when there is none."""
    row = await tx.fetchrow(_GET, thread_id, checkpoint_ns, checkpoint_id)
    return None if row is None else _read(row)


async def page(
    tx: Connection,
    thread_id: str | None,
    checkpoint_ns: str | None,
    checkpoint_id: str | None,
    before_id: str | None,
    metadata_filter: str,
    limit: int | None,
) -> list[Read]:
    """Return at most `limit` checkpoints, newest first; what is None does not bind."""
    rows = await tx.fetch(
        _LIST,
        thread_id,
        checkpoint_ns,
        checkpoint_id,
        before_id,
        metadata_filter,
        LIST_MAX if limit is None else limit,
    )
    return [_read(row) for row in rows]


async def blobs(
    tx: Connection, place: Place, versions: Sequence[tuple[str, str]]
) -> dict[str, Stored]:
    """Return the channels' values in these versions; absent ones are left out."""
    rows = await tx.fetch(
        _BLOBS,
        place.thread_id,
        place.checkpoint_ns,
        [channel for channel, _ in versions],
        [version for _, version in versions],
    )
    return {row["channel"]: Stored(row["type"], row["blob"]) for row in rows}


async def writes(tx: Connection, place: Place) -> list[tuple[str, str, Stored]]:
    """Return (task_id, channel, value) of what tasks wrote, in LangGraph's order."""
    rows = await tx.fetch(_WRITES, place.thread_id, place.checkpoint_ns, place.checkpoint_id)
    return [(row["task_id"], row["channel"], Stored(row["type"], row["blob"])) for row in rows]


async def delete_thread(tx: Connection, thread_id: str) -> None:
    """Delete everything that is kept of the thread."""
    for statement in _DELETE:
        await tx.execute(statement, thread_id)


def _read(row: Row) -> Read:
    return Read(
        Place(row["thread_id"], row["checkpoint_ns"], row["checkpoint_id"]),
        row["parent_checkpoint_id"],
        Stored(row["type"], row["checkpoint"]),
        row["metadata"],
    )
