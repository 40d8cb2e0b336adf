"""Keeps grants: creates them once per request, reads them under a lock, ends them for good."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import any_, literal, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.executor.amounts import Amount
from services.executor.grants import Grant, GrantRequest, GrantState, ToolPermission
from services.executor.permissions import permissions_from_json, permissions_to_json
from services.executor.store.events import Connection
from services.executor.store.rows import Row, json_of
from services.executor.tables import grants as table
from services.runtime.jsonvalues import Json

_CREATE = """
INSERT INTO grants (grant_id, tenant_id, request_id, content_hash, owner, display_name, state,
    graph_ids, tools, connection_ids, account_id, budget_asset, budget_value, expire_time, labels,
    create_time)
VALUES ($1, $2, $3, $4, $5, $6, 'ACTIVE', $7, $8, $9, $10, $11, $12, $13, $14, cogni_now())
ON CONFLICT (tenant_id, request_id) DO NOTHING
RETURNING grant_id
"""
_BY_REQUEST = "SELECT * FROM grants WHERE tenant_id = $1 AND request_id = $2"
_GET = "SELECT grants.*, cogni_now() AS now FROM grants WHERE grant_id = $1"
# Row locks are not fair: while decisions overlap without a pause, each new FOR SHARE overtakes a
# waiting FOR UPDATE. Advisory locks queue, so a revocation waits for those before it alone.
_HOLD = """
WITH turn AS MATERIALIZED (SELECT pg_advisory_xact_lock_shared(hashtextextended($1::text, 0)))
SELECT grants.*, cogni_now() AS now FROM turn, grants WHERE grant_id = $1::uuid
FOR SHARE OF grants
"""
_TAKE_TURN = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))"
_REVOKE = """
UPDATE grants SET state = 'REVOKED', revoke_time = cogni_now(), revoke_comment = $2, revoker = $3
WHERE grant_id = $1 AND state = 'ACTIVE' RETURNING *
"""
_EXPIRE = """
UPDATE grants SET state = 'EXPIRED'
WHERE grant_id IN (
    SELECT grant_id FROM grants WHERE state = 'ACTIVE' AND expire_time <= cogni_now()
    ORDER BY expire_time LIMIT $1 FOR UPDATE SKIP LOCKED
) RETURNING grant_id, tenant_id
"""
# The runs that an ended grant still has; final ones need nothing.
_ACTIVE_RUNS = """
SELECT run_id FROM runs
WHERE grant_id = $1 AND state IN ('QUEUED', 'RUNNING', 'WAITING') AND run_id > $2
ORDER BY run_id LIMIT $3
"""
_ENDED_WITH_RUNS = """
SELECT DISTINCT grants.grant_id, grants.tenant_id FROM runs JOIN grants USING (grant_id)
WHERE runs.state IN ('QUEUED', 'RUNNING', 'WAITING') AND runs.cancel_request_time IS NULL
    AND grants.state <> 'ACTIVE'
LIMIT $1
"""


@dataclass(frozen=True)
class GrantFilter:
    """Which grants to list; what is unset does not bind."""

    states: tuple[GrantState, ...] = ()
    owner: str = ""
    graph_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class KnownGrant:
    """A grant, what its request was, and the database's time when it was read."""

    grant: Grant
    content_hash: bytes


async def create(
    tx: Connection,
    grant_id: str,
    tenant_id: str,
    request_id: str,
    owner: str,
    request: GrantRequest,
    pinned: Sequence[ToolPermission] | None = None,
) -> KnownGrant:
    """Create the grant, or return the one that the request_id made before.

    `pinned` is what is kept of the requested tools. Waits for a concurrent transaction that is
    creating it.
    """
    asked = permissions_to_json(request.tools)
    kept = asked if pinned is None else permissions_to_json(pinned)
    await tx.fetchval(
        _CREATE,
        grant_id,
        tenant_id,
        request_id,
        request.content_hash(owner, asked),
        owner,
        request.display_name,
        list(request.graph_ids),
        json.dumps(kept),
        list(request.connection_ids),
        request.account_id,
        request.budget.asset if request.budget else None,
        request.budget.value if request.budget else None,
        request.expire_time,
        json.dumps(request.labels),
    )
    known = await by_request(tx, tenant_id, request_id)
    assert known is not None, "created by this or an earlier transaction"
    return known


async def by_request(tx: Connection, tenant_id: str, request_id: str) -> KnownGrant | None:
    """Return the grant that the request_id made, None when it made none."""
    row = await tx.fetchrow(_BY_REQUEST, tenant_id, request_id)
    return None if row is None else KnownGrant(_grant(row), row["content_hash"])


async def get(tx: Connection, grant_id: str) -> Grant | None:
    """Return the grant, None when the tenant has none such."""
    row = await tx.fetchrow(_GET, grant_id)
    return None if row is None else _grant(row)


async def hold(tx: Connection, grant_id: str) -> tuple[Grant, datetime] | None:
    """Return the grant and the database's time, and let nobody end it before `tx` does.

    So what is allowed now is committed before a revocation returns, or is denied after it.
    """
    row = await tx.fetchrow(_HOLD, grant_id)
    return None if row is None else (_grant(row), row["now"])


async def revoke(tx: Connection, grant_id: str, comment: str, revoker: str) -> Grant | None:
    """End the grant after every decision under way has committed; None when it was not ACTIVE."""
    await tx.execute(_TAKE_TURN, grant_id)
    row = await tx.fetchrow(f"{_GET} FOR UPDATE", grant_id)
    if row is None or row["state"] != GrantState.ACTIVE:
        return None
    row = await tx.fetchrow(_REVOKE, grant_id, comment, revoker)
    return None if row is None else _grant(row)


async def expire_due(tx: Connection, limit: int) -> list[tuple[str, str]]:
    """End at most `limit` grants whose time is over; returns (grant_id, tenant_id)."""
    rows = await tx.fetch(_EXPIRE, limit)
    return [(str(row["grant_id"]), row["tenant_id"]) for row in rows]


async def active_runs(tx: Connection, grant_id: str, after_id: str, limit: int) -> list[str]:
    """Return at most `limit` runs under the grant that are not final, after `after_id`."""
    return [str(row["run_id"]) for row in await tx.fetch(_ACTIVE_RUNS, grant_id, after_id, limit)]


async def ended_with_runs(tx: Connection, limit: int) -> list[tuple[str, str]]:
    """Return ended grants that have runs nobody has stopped yet, as (grant_id, tenant_id)."""
    rows = await tx.fetch(_ENDED_WITH_RUNS, limit)
    return [(str(row["grant_id"]), row["tenant_id"]) for row in rows]


async def page(
    tx: AsyncConnection, wanted: GrantFilter, before_id: str | None, limit: int
) -> list[Grant]:
    """Return at most `limit` grants older than `before_id`, newest first."""
    statement = select(table).order_by(table.c.grant_id.desc()).limit(limit)
    if before_id is not None:
        statement = statement.where(table.c.grant_id < before_id)
    if wanted.states:
        statement = statement.where(table.c.state.in_([str(state) for state in wanted.states]))
    if wanted.owner:
        statement = statement.where(table.c.owner == wanted.owner)
    if wanted.graph_id:
        statement = statement.where(literal(wanted.graph_id) == any_(table.c.graph_ids))
    if wanted.labels:
        statement = statement.where(table.c.labels.contains(dict(wanted.labels)))
    return [_grant(dict(row)) for row in (await tx.execute(statement)).mappings()]


def _grant(row: Row) -> Grant:
    tools: list[dict[str, Json]] = json_of(row["tools"])
    times: dict[str, Any] = {
        name: row[name] for name in ("expire_time", "create_time", "revoke_time")
    }
    return Grant(
        grant_id=str(row["grant_id"]),
        tenant_id=row["tenant_id"],
        owner=row["owner"],
        state=GrantState(row["state"]),
        display_name=row["display_name"],
        graph_ids=tuple(row["graph_ids"]),
        tools=permissions_from_json(tools),
        connection_ids=tuple(row["connection_ids"]),
        account_id=row["account_id"],
        budget=Amount.of(row["budget_asset"], row["budget_value"]),
        labels=json_of(row["labels"]),
        revoke_comment=row["revoke_comment"] or "",
        revoker=row["revoker"] or "",
        **times,
    )
