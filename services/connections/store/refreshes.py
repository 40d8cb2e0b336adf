"""The journal of renewals: a row a connection, claimed and committed before the provider call."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.connections.tables import connections, credentials, refreshes

DUE_ROWS_MAX = 100


@dataclass(frozen=True, slots=True)
class Journal:
    """What is known of a connection's renewals.

    `maybe_done` tells that an earlier try of this generation may have reached the provider
    without its answer reaching us. `now` is the database's time.
    """

    generation: int
    claim_id: str | None
    claim_expire_time: datetime | None
    attempts: int
    maybe_done: bool
    not_before: datetime | None
    reason: str
    now: datetime

    @property
    def claimed(self) -> bool:
        """Whether somebody is renewing."""
        return self.claim_expire_time is not None and self.claim_expire_time > self.now

    @property
    def abandoned(self) -> bool:
        """Whether somebody claimed, and neither finished nor is in time any more."""
        return self.claim_id is not None and not self.claimed


async def lock(tx: AsyncConnection, tenant_id: str, connection_id: str) -> Journal:
    """The connection's journal row, made if absent, held until the transaction ends."""
    statement = upsert(refreshes).values(
        tenant_id=tenant_id, connection_id=connection_id, generation=0
    )
    statement = statement.on_conflict_do_update(
        index_elements=[refreshes.c.tenant_id, refreshes.c.connection_id],
        set_={"connection_id": connection_id},
    )
    row = (await tx.execute(statement.returning(refreshes, func.cogni_now().label("now")))).one()
    return Journal(
        generation=row.generation,
        claim_id=row.claim_id,
        claim_expire_time=row.claim_expire_time,
        attempts=row.attempts,
        maybe_done=row.maybe_done,
        not_before=row.not_before,
        reason=row.reason,
        now=row.now,
    )


async def claim(
    tx: AsyncConnection,
    tenant_id: str,
    connection_id: str,
    *,
    claim_id: str,
    generation: int,
    lasts: timedelta,
    attempts: int,
    maybe_done: bool,
) -> None:
    """Write the claim; committed, it is the intent that a crash leaves behind."""
    await _write(
        tx,
        tenant_id,
        connection_id,
        {
            "claim_id": claim_id,
            "generation": generation,
            "claim_expire_time": func.cogni_now() + lasts,
            "attempts": attempts,
            "maybe_done": maybe_done,
        },
    )


async def finish(
    tx: AsyncConnection, tenant_id: str, connection_id: str, *, maybe_done: bool = False
) -> None:
    """Clear the row: the generation's renewal is settled. `maybe_done` is said of the next one."""
    await _write(
        tx,
        tenant_id,
        connection_id,
        {
            "claim_id": None,
            "claim_expire_time": None,
            "attempts": 0,
            "maybe_done": maybe_done,
            "not_before": None,
            "reason": "",
        },
    )


async def doubt(tx: AsyncConnection, tenant_id: str, connection_id: str) -> None:
    """Have the present session tried at once: another use of its grant may have ended it."""
    await _write(tx, tenant_id, connection_id, {"maybe_done": True})
    await tx.execute(
        update(credentials)
        .where(
            credentials.c.tenant_id == tenant_id,
            credentials.c.connection_id == connection_id,
            credentials.c.kind == "session",
        )
        .values(renew_time=func.cogni_now())
    )


async def put_off(
    tx: AsyncConnection,
    tenant_id: str,
    connection_id: str,
    *,
    until: datetime,
    maybe_done: bool,
    reason: str,
) -> None:
    """Give the claim up and let nobody try before `until`."""
    await _write(
        tx,
        tenant_id,
        connection_id,
        {
            "claim_id": None,
            "claim_expire_time": None,
            "maybe_done": maybe_done,
            "not_before": until,
            "reason": reason,
        },
    )


async def due(tx: AsyncConnection) -> list[tuple[str, str]]:
    """Tenant and connection of sessions to renew now, as jobs role: those whose time has come and
    that nobody renews or has put off, and those whose renewal somebody abandoned."""
    rows = await tx.execute(
        select(credentials.c.tenant_id, credentials.c.connection_id)
        .outerjoin(
            refreshes,
            (refreshes.c.tenant_id == credentials.c.tenant_id)
            & (refreshes.c.connection_id == credentials.c.connection_id),
        )
        .join(
            connections,
            (connections.c.tenant_id == credentials.c.tenant_id)
            & (connections.c.connection_id == credentials.c.connection_id),
        )
        .where(
            connections.c.state.in_(("ACTIVE", "REFRESHING")),
            credentials.c.renew_time <= func.cogni_now(),
            func.coalesce(refreshes.c.claim_expire_time, func.cogni_now()) <= func.cogni_now(),
            func.coalesce(refreshes.c.not_before, func.cogni_now()) <= func.cogni_now(),
        )
        .order_by(credentials.c.renew_time)
        .limit(DUE_ROWS_MAX)
    )
    abandoned = await tx.execute(
        select(refreshes.c.tenant_id, refreshes.c.connection_id)
        .where(refreshes.c.claim_id.is_not(None), refreshes.c.claim_expire_time < func.cogni_now())
        .limit(DUE_ROWS_MAX)
    )
    found = [(row.tenant_id, row.connection_id) for row in (*rows, *abandoned)]
    return list(dict.fromkeys(found))


async def _write(
    tx: AsyncConnection, tenant_id: str, connection_id: str, values: dict[str, object]
) -> None:
    await tx.execute(
        update(refreshes)
        .where(refreshes.c.tenant_id == tenant_id, refreshes.c.connection_id == connection_id)
        .values(**values)
    )
