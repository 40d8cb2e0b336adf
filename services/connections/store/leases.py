"""Leases, and what must get none any more."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import and_, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.connections.tables import leases, revoked_grants, revoked_runs

SWEEP_ROWS_MAX = 1000


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
