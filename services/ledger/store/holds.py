"""Reads, locks and writes holds."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from services.ledger.holds import Hold, HoldState
from services.ledger.store import RaceLostError, Transaction

_LOCK = """
SELECT h.* FROM holds AS h
JOIN unnest($1::text[], $2::uuid[]) AS w (tenant_id, hold_id) USING (tenant_id, hold_id)
ORDER BY h.tenant_id, h.hold_id
FOR NO KEY UPDATE OF h
"""

_WRITE = """
INSERT INTO holds (tenant_id, hold_id, account_id, run_id, epoch, state, remaining, spent,
                   unsettled, expire_time, create_time, update_time)
SELECT w.*, cogni_now(), cogni_now()
FROM unnest($1::text[], $2::uuid[], $3::uuid[], $4::uuid[], $5::bigint[], $6::smallint[],
            $7::numeric[], $8::numeric[], $9::numeric[], $10::timestamptz[]) AS w
ON CONFLICT (tenant_id, hold_id) DO UPDATE
SET epoch = excluded.epoch, state = excluded.state, remaining = excluded.remaining,
    spent = excluded.spent, unsettled = excluded.unsettled, expire_time = excluded.expire_time,
    update_time = excluded.update_time
WHERE holds.account_id = excluded.account_id
RETURNING *
"""

_READ = "SELECT * FROM holds WHERE tenant_id = $1 AND hold_id = $2"

# As the jobs role, over all tenants.
_DUE = """
SELECT * FROM holds WHERE state = 1 AND expire_time <= cogni_now() ORDER BY expire_time LIMIT $1
"""


async def lock(tx: Transaction, wanted: Collection[tuple[str, str]]) -> list[Hold]:
    """Lock those of the (tenant, hold) that exist, after the balances they are on."""
    if not wanted:
        return []
    tenants, ids = zip(*wanted, strict=True)
    return [hold_of(row) for row in await tx.fetch(_LOCK, tenants, ids)]


async def write(tx: Transaction, holds: Collection[Hold]) -> dict[tuple[str, str], Hold]:
    """Store holds as they are now, new ones too; return them with their times.

    Raises RaceLostError when a hold that is new here was placed on another account meanwhile.
    """
    if not holds:
        return {}
    ordered = sorted(holds, key=lambda hold: (hold.tenant_id, hold.hold_id))
    rows = await tx.fetch(
        _WRITE,
        [h.tenant_id for h in ordered],
        [h.hold_id for h in ordered],
        [h.account_id for h in ordered],
        [h.run_id or None for h in ordered],
        [h.epoch for h in ordered],
        [int(h.state) for h in ordered],
        [h.remaining for h in ordered],
        [h.spent for h in ordered],
        [h.unsettled for h in ordered],
        [h.expire_time for h in ordered],
    )
    if len(rows) < len(ordered):
        raise RaceLostError
    return {(row["tenant_id"], str(row["hold_id"])): hold_of(row) for row in rows}


async def read(tx: Transaction, tenant_id: str, hold_id: str) -> Hold | None:
    """Return one hold as it is now."""
    row = await tx.fetchrow(_READ, tenant_id, hold_id)
    return None if row is None else hold_of(row)


async def due(tx: Transaction, limit: int) -> list[Hold]:
    """Return up to `limit` holds of any tenant whose time is over."""
    return [hold_of(row) for row in await tx.fetch(_DUE, limit)]


def hold_of(row: Any) -> Hold:
    """Return the hold of a row that has all columns of the table."""
    return Hold(
        tenant_id=row["tenant_id"],
        hold_id=str(row["hold_id"]),
        account_id=str(row["account_id"]),
        run_id="" if row["run_id"] is None else str(row["run_id"]),
        epoch=row["epoch"],
        state=HoldState(row["state"]),
        remaining=int(row["remaining"]),
        spent=int(row["spent"]),
        unsettled=int(row["unsettled"]),
        expire_time=row["expire_time"],
        create_time=row["create_time"],
        update_time=row["update_time"],
    )
