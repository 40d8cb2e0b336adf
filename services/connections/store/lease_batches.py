"""Leases by the batch, in plain SQL: the hot path, one statement to read and one to decide."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg

from services.connections.access_log import canonical
from services.connections.connection import Connection, Consent
from services.connections.lease import LeaseWanted
from services.connections.store.connections import connection_of
from services.connections.store.credentials import StoredCredentials, stored_credential
from services.runtime.caller import RunClaims
from services.runtime.database import bound_tenants
from services.runtime.ids import new_id
from services.runtime.lane import Lane

_CONNECTIONS = """
SELECT c.*, cogni_now() AS now, coalesce((
    SELECT array_agg(k.subject) FROM consents k
    WHERE k.tenant_id = c.tenant_id AND k.connection_id = c.connection_id), '{}') AS subjects
FROM connections c WHERE c.tenant_id = $1 AND c.connection_id = ANY ($2::uuid[])
"""
_CREDENTIALS = """
SELECT * FROM credentials WHERE tenant_id = $1 AND connection_id = ANY ($2::uuid[])
"""
# Ids as texts, which is what becomes of them: the driver would make objects of them before.
_GIVE = """
SELECT outcomes, lease_ids::text[] AS lease_ids, expire_times, decision_time
FROM give_leases($1, $2)
"""

#: The rows have changed since they were read, or the session is over: nothing is decided yet.
STALE = "STALE"


@dataclass(frozen=True, slots=True)
class Asked:
    """A lease to be given to an attempt of a run if nothing stands against it.

    `version` is that of the rows its credential comes from, `end_by` when that credential ends,
    `life` how much of its life a session must have left; None where there is no session.
    `details` is what the access log says besides.
    """

    run: RunClaims
    wanted: LeaseWanted
    end_by: datetime | None
    life: timedelta | None
    version: str
    actor: str
    on_behalf_of: str
    details: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Decided:
    """What was decided and recorded: a lease, or a reason for none, or STALE."""

    outcome: str
    lease_id: str
    expire_time: datetime | None
    now: datetime


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


async def give(lane: Lane, tenant_id: str, wanted: Sequence[Asked]) -> list[Decided]:
    """Decide about each behind the lock of the tenant's head, and record it; in their order.

    One statement and one round trip, committed when it answers. Repeats find their first lease.
    """
    items = json.dumps([_asked(each) for each in wanted])
    row = await lane.fetchrow(_GIVE, bound_tenants([tenant_id]), items)
    assert row is not None
    now = row["decision_time"]
    columns = zip(row["outcomes"], row["lease_ids"], row["expire_times"], strict=True)
    return [Decided(outcome, lease_id or "", end, now) for outcome, lease_id, end in columns]


def _asked(asked: Asked) -> dict[str, object]:
    run, wanted = asked.run, asked.wanted
    return {
        "lease_id": new_id(),
        "connection_id": wanted.connection_id,
        "run_id": run.run_id,
        "epoch": run.epoch,
        "grant_id": run.grant_id,
        "invocation_id": wanted.invocation_id,
        "tool": wanted.tool,
        "ttl_seconds": wanted.ttl.total_seconds(),
        "end_by": asked.end_by.isoformat() if asked.end_by else None,
        "life_seconds": asked.life.total_seconds() if asked.life is not None else None,
        "version": asked.version,
        "actor": asked.actor,
        "on_behalf_of": asked.on_behalf_of,
        "details": canonical(asked.details),
    }
