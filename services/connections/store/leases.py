"""Leases, and what must get none any more."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import and_, case, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.connections.lease import LeaseRequest
from services.connections.tables import connections, leases, revoked_grants, revoked_runs

SWEEP_ROWS_MAX = 1000


@dataclass(frozen=True, slots=True)
class Standing:
    """What decides about a lease, read behind the tenant's head lock.

    `connection_state` is "" when the connection is gone.
    """

    grant_revoked: bool
    attempt_over: bool
    connection_state: str


async def standing(tx: AsyncConnection, tenant_id: str, wanted: LeaseRequest) -> Standing:
    """How things stand now. An attempt is also over when a later one has leased already."""
    run_revoked = select(revoked_runs.c.run_id).where(
        revoked_runs.c.tenant_id == tenant_id,
        revoked_runs.c.run_id == wanted.run_id,
        revoked_runs.c.up_to_epoch >= wanted.epoch,
    )
    overtaken = select(leases.c.lease_id).where(
        leases.c.tenant_id == tenant_id,
        leases.c.run_id == wanted.run_id,
        leases.c.epoch > wanted.epoch,
    )
    grant_revoked = select(revoked_grants.c.grant_id).where(
        revoked_grants.c.tenant_id == tenant_id, revoked_grants.c.grant_id == wanted.grant_id
    )
    state = select(connections.c.state).where(
        connections.c.tenant_id == tenant_id, connections.c.connection_id == wanted.connection_id
    )
    row = (
        await tx.execute(
            select(
                grant_revoked.exists().label("grant_revoked"),
                or_(run_revoked.exists(), overtaken.exists()).label("attempt_over"),
                func.coalesce(state.scalar_subquery(), "").label("connection_state"),
            )
        )
    ).one()
    return Standing(row.grant_revoked, row.attempt_over, row.connection_state)


async def give(
    tx: AsyncConnection, tenant_id: str, lease_id: str, wanted: LeaseRequest, expire_time: datetime
) -> tuple[str, datetime]:
    """Store a lease and return its id and end; a repeat finds the first one.

    A repeat by a later attempt, or after the first lease ended, renews it under its id.
    """
    statement = upsert(leases).values(
        tenant_id=tenant_id,
        lease_id=lease_id,
        connection_id=wanted.connection_id,
        run_id=wanted.run_id,
        epoch=wanted.epoch,
        grant_id=wanted.grant_id,
        invocation_id=wanted.invocation_id,
        tool=wanted.tool,
        expire_time=expire_time,
    )
    given = and_(leases.c.revoke_time.is_(None), leases.c.expire_time > func.cogni_now())
    statement = statement.on_conflict_do_update(
        index_elements=[
            leases.c.tenant_id,
            leases.c.run_id,
            leases.c.invocation_id,
            leases.c.connection_id,
        ],
        set_={
            "epoch": wanted.epoch,
            "expire_time": case((given, leases.c.expire_time), else_=expire_time),
            "revoke_time": None,
        },
    )
    row = (await tx.execute(statement.returning(leases.c.lease_id, leases.c.expire_time))).one()
    return row.lease_id, row.expire_time


async def revoke_grant(
    tx: AsyncConnection, tenant_id: str, grant_id: str, keep_until: datetime
) -> int:
    """Refuse the grant from now on and end its live leases; how many there were."""
    statement = upsert(revoked_grants).values(
        tenant_id=tenant_id, grant_id=grant_id, keep_until=keep_until
    )
    await tx.execute(
        statement.on_conflict_do_update(
            index_elements=[revoked_grants.c.tenant_id, revoked_grants.c.grant_id],
            set_={"keep_until": keep_until},
        )
    )
    return await _end(tx, tenant_id, leases.c.grant_id == grant_id)


async def revoke_run(
    tx: AsyncConnection, tenant_id: str, run_id: str, up_to_epoch: int, keep_until: datetime
) -> int:
    """Refuse the run's attempts up to an epoch and end their live leases."""
    statement = upsert(revoked_runs).values(
        tenant_id=tenant_id, run_id=run_id, up_to_epoch=up_to_epoch, keep_until=keep_until
    )
    await tx.execute(
        statement.on_conflict_do_update(
            index_elements=[revoked_runs.c.tenant_id, revoked_runs.c.run_id],
            set_={
                # Never back: a late message of an early attempt must not revive a later one.
                "up_to_epoch": func.greatest(revoked_runs.c.up_to_epoch, up_to_epoch),
                "keep_until": keep_until,
            },
        )
    )
    return await _end(tx, tenant_id, and_(leases.c.run_id == run_id, leases.c.epoch <= up_to_epoch))


async def revoke_connection(tx: AsyncConnection, tenant_id: str, connection_id: str) -> int:
    """End the live leases of a connection."""
    return await _end(tx, tenant_id, leases.c.connection_id == connection_id)


async def _end(tx: AsyncConnection, tenant_id: str, which: object) -> int:
    result = await tx.execute(
        update(leases)
        .where(
            leases.c.tenant_id == tenant_id,
            which,  # type: ignore[arg-type]
            leases.c.revoke_time.is_(None),
            leases.c.expire_time > func.cogni_now(),
        )
        .values(revoke_time=func.cogni_now())
        .returning(leases.c.lease_id)
    )
    return len(result.all())


async def sweep(tx: AsyncConnection, *, keep_leases_seconds: int) -> int:
    """Delete what has been over for long: leases, and revocations no token can live under."""
    aged = func.cogni_now() - func.make_interval(0, 0, 0, 0, 0, 0, keep_leases_seconds)
    old = (
        select(leases.c.tenant_id, leases.c.lease_id)
        .where(leases.c.expire_time < aged)
        .limit(SWEEP_ROWS_MAX)
    ).cte("old")
    gone = await tx.execute(
        delete(leases)
        .where(leases.c.tenant_id == old.c.tenant_id, leases.c.lease_id == old.c.lease_id)
        .returning(leases.c.lease_id)
    )
    count = len(gone.all())
    for table in (revoked_grants, revoked_runs):
        await tx.execute(delete(table).where(table.c.keep_until < func.cogni_now()))
    return count
