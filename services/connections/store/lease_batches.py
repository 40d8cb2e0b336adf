"""Leases by the batch, in plain SQL: the hot path, one round trip for each step of many leases."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from services.connections import access_log
from services.connections.access_log import Entry, Head, Record
from services.connections.connection import Connection, Consent
from services.connections.lease import LeaseRequest
from services.connections.store.access_log import LockedHead
from services.connections.store.connections import connection_of
from services.connections.store.credentials import StoredCredentials, stored_credential
from services.connections.store.leases import Standing

_CONNECTIONS = """
SELECT c.*, cogni_now() AS now, coalesce((
    SELECT array_agg(k.subject) FROM consents k
    WHERE k.tenant_id = c.tenant_id AND k.connection_id = c.connection_id), '{}') AS subjects
FROM connections c WHERE c.tenant_id = $1 AND c.connection_id = ANY ($2::uuid[])
"""
_CREDENTIALS = """
SELECT * FROM credentials WHERE tenant_id = $1 AND connection_id = ANY ($2::uuid[])
"""
_LOCK_HEAD = """
INSERT INTO access_heads (tenant_id) VALUES ($1)
ON CONFLICT (tenant_id) DO UPDATE SET tenant_id = excluded.tenant_id
RETURNING sequence, hash, cogni_now() AS now
"""
_STANDING = """
SELECT EXISTS (SELECT FROM revoked_grants g
               WHERE g.tenant_id = $1 AND g.grant_id = u.grant_id) AS grant_revoked,
       EXISTS (SELECT FROM revoked_runs r WHERE r.tenant_id = $1 AND r.run_id = u.run_id
               AND r.up_to_epoch >= u.epoch)
       OR EXISTS (SELECT FROM leases l WHERE l.tenant_id = $1 AND l.run_id = u.run_id
                  AND l.epoch > u.epoch) AS attempt_over,
       coalesce((SELECT c.state FROM connections c WHERE c.tenant_id = $1
                 AND c.connection_id = u.connection_id), '') AS connection_state
FROM unnest($2::uuid[], $3::text[], $4::bigint[], $5::text[])
     WITH ORDINALITY AS u(connection_id, run_id, epoch, grant_id, place)
ORDER BY u.place
"""
_GIVE = """
INSERT INTO leases (tenant_id, lease_id, connection_id, run_id, epoch, grant_id, invocation_id,
                    tool, expire_time)
SELECT $1, u.* FROM unnest($2::uuid[], $3::uuid[], $4::text[], $5::bigint[], $6::text[],
                           $7::text[], $8::text[], $9::timestamptz[]) AS u
ON CONFLICT (tenant_id, run_id, invocation_id, connection_id) DO UPDATE
SET epoch = excluded.epoch, revoke_time = NULL,
    expire_time = CASE WHEN leases.revoke_time IS NULL AND leases.expire_time > cogni_now()
                       THEN leases.expire_time ELSE excluded.expire_time END
RETURNING connection_id, run_id, invocation_id, lease_id, expire_time
"""
# One round trip: a statement of its own for the head would hold its lock that much longer.
_RECORD = """
WITH moved AS (UPDATE access_heads SET sequence = $2, hash = $3 WHERE tenant_id = $1)
INSERT INTO access_records (tenant_id, sequence, record_time, action, decision, actor,
    on_behalf_of, connection_id, provider, run_id, epoch, grant_id, invocation_id, tool, lease_id,
    reason, details, previous_hash, hash)
SELECT $1, u.* FROM unnest($4::bigint[], $5::timestamptz[], $6::text[], $7::text[], $8::text[],
    $9::text[], $10::text[], $11::text[], $12::text[], $13::bigint[], $14::text[], $15::text[],
    $16::text[], $17::text[], $18::text[], $19::jsonb[], $20::bytea[], $21::bytea[]) AS u
"""
_TOUCH = """
UPDATE connections SET last_lease_time = cogni_now()
WHERE tenant_id = $1 AND connection_id = ANY ($2::uuid[])
"""


@dataclass(frozen=True, slots=True)
class Given:
    """A lease as it stands after it was given."""

    lease_id: str
    expire_time: datetime


async def read(
    tx: asyncpg.Connection, tenant_id: str, connection_ids: Sequence[str]
) -> dict[str, tuple[Connection, StoredCredentials]]:
    """The connections with what they have; absent ones are absent."""
    rows = await tx.fetch(_CONNECTIONS, tenant_id, connection_ids)
    found = {}
    stored: dict[tuple[str, str], asyncpg.Record] = {}
    for row in await tx.fetch(_CREDENTIALS, tenant_id, connection_ids):
        stored[str(row["connection_id"]), row["kind"]] = row
    for row in rows:
        values = dict(row)
        values["connection_id"] = connection_id = str(row["connection_id"])
        # json comes as text on these connections.
        values["labels"], values["settings"] = (
            json.loads(row["labels"]),
            json.loads(row["settings"]),
        )
        given = tuple(Consent(subject, row["now"]) for subject in sorted(row["subjects"]))
        secret, session = (
            stored_credential({**each, "connection_id": connection_id}) if each else None
            for each in (stored.get((connection_id, kind)) for kind in ("secret", "session"))
        )
        found[connection_id] = (
            connection_of(values, given),
            StoredCredentials(secret, session, row["now"]),
        )
    return found


async def lock_head(tx: asyncpg.Connection, tenant_id: str) -> LockedHead:
    """Take the tenant's head row, first of all."""
    row = await tx.fetchrow(_LOCK_HEAD, tenant_id)
    return LockedHead(tenant_id, Head(row["sequence"], row["hash"]), row["now"])


async def standings(
    tx: asyncpg.Connection, tenant_id: str, wanted: Sequence[LeaseRequest]
) -> list[Standing]:
    """How things stand for each request, in their order."""
    rows = await tx.fetch(
        _STANDING,
        tenant_id,
        [each.connection_id for each in wanted],
        [each.run_id for each in wanted],
        [each.epoch for each in wanted],
        [each.grant_id for each in wanted],
    )
    return [
        Standing(row["grant_revoked"], row["attempt_over"], row["connection_state"]) for row in rows
    ]


async def give(
    tx: asyncpg.Connection,
    tenant_id: str,
    wanted: Sequence[tuple[str, LeaseRequest, datetime]],
) -> list[Given]:
    """Store leases (id, request, end), no two of one key; repeats find their first lease."""
    requests = [request for _, request, _ in wanted]
    rows = await tx.fetch(
        _GIVE,
        tenant_id,
        [lease_id for lease_id, _, _ in wanted],
        [each.connection_id for each in requests],
        [each.run_id for each in requests],
        [each.epoch for each in requests],
        [each.grant_id for each in requests],
        [each.invocation_id for each in requests],
        [each.tool for each in requests],
        [end for _, _, end in wanted],
    )
    given = {
        (str(row["connection_id"]), row["run_id"], row["invocation_id"]): Given(
            str(row["lease_id"]), row["expire_time"]
        )
        for row in rows
    }
    return [given[each.key] for each in requests]


async def record(tx: asyncpg.Connection, locked: LockedHead, entries: Sequence[Entry]) -> None:
    """Write entries at the end of the log, once in a transaction."""
    records = access_log.append(locked.head, locked.now, entries)
    last = records[-1]
    columns = zip(*(_columns(each) for each in records), strict=True)
    await tx.execute(
        _RECORD, locked.tenant_id, last.sequence, last.hash, *(list(column) for column in columns)
    )


def _columns(record: Record) -> tuple[object, ...]:
    entry = record.entry
    return (
        record.sequence,
        record.record_time,
        entry.action.value,
        entry.decision.value,
        entry.actor,
        entry.on_behalf_of,
        entry.connection_id,
        entry.provider,
        entry.run_id,
        entry.epoch,
        entry.grant_id,
        entry.invocation_id,
        entry.tool,
        entry.lease_id,
        entry.reason,
        json.dumps(dict(entry.details)),
        record.previous_hash,
        record.hash,
    )


async def touch(tx: asyncpg.Connection, tenant_id: str, connection_ids: Sequence[str]) -> None:
    """Note that leases of these connections were given."""
    await tx.execute(_TOUCH, tenant_id, connection_ids)
