"""Reads, locks and writes budgets, and the stream of their changes."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from services.ledger.assets import ASSETS
from services.ledger.budgets import Budget, BudgetPeriod, budget_of
from services.ledger.store import Transaction
from services.runtime.cursor import Position

#: Notified when budgets changed.
BUDGETS_CHANNEL = "ledger_budgets"

_LOCK = """
SELECT b.*, cogni_now() AS now FROM budgets AS b
JOIN unnest($1::text[], $2::uuid[]) AS w (tenant_id, account_id) USING (tenant_id, account_id)
ORDER BY b.tenant_id, b.account_id
FOR NO KEY UPDATE OF b
"""

_NOW = "SELECT cogni_now()"

_WRITE = """
INSERT INTO budgets (tenant_id, account_id, asset, period, limit_minor, thresholds, spent,
                     period_start_time, period_end_time, version)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
ON CONFLICT (tenant_id, account_id) DO UPDATE
SET period = excluded.period, limit_minor = excluded.limit_minor,
    thresholds = excluded.thresholds, spent = excluded.spent,
    period_start_time = excluded.period_start_time, period_end_time = excluded.period_end_time,
    version = excluded.version
"""

_FLAG = "UPDATE balances SET has_budget = true WHERE tenant_id = $1 AND account_id = $2"

_TELL = "INSERT INTO budget_changes (tenant_id, budget) VALUES ($1, $2)"
_NOTIFY = "SELECT pg_notify($1, '')"

_LIST = """
SELECT * FROM budgets
WHERE ($1::text IS NULL OR tenant_id = $1)
  AND ($2::text IS NULL OR (tenant_id, account_id) > ($2, $3::uuid))
ORDER BY tenant_id, account_id LIMIT $4
"""

_ENDED = """
SELECT tenant_id, account_id FROM budgets
WHERE period_end_time <= cogni_now() ORDER BY period_end_time LIMIT $1
"""

_HORIZON = "SELECT pg_snapshot_xmin(pg_current_snapshot())"

_CHANGES = """
SELECT xid, id, tenant_id, budget, change_time FROM budget_changes
WHERE (xid, id) > ($1::xid8, $2::bigint) AND xid < $5::xid8
AND ($3::text IS NULL OR tenant_id = $3) ORDER BY xid, id LIMIT $4
"""


@dataclass(frozen=True, slots=True)
class BudgetChange:
    """A budget as it was after a change."""

    budget: Budget
    change_time: datetime


async def now(tx: Transaction) -> datetime:
    """Return the database's time."""
    moment: datetime = await tx.fetchval(_NOW)
    return moment


async def lock(
    tx: Transaction, wanted: Collection[tuple[str, str]]
) -> tuple[list[Budget], datetime | None]:
    """Lock those budgets of (tenant, account) that exist, after the balances; with the time."""
    if not wanted:
        return [], None
    tenants, ids = zip(*wanted, strict=True)
    rows = await tx.fetch(_LOCK, tenants, ids)
    return [_budget(row) for row in rows], rows[0]["now"] if rows else None


async def write(tx: Transaction, budget: Budget) -> None:
    """Store a budget as it is now."""
    await tx.execute(
        _WRITE,
        budget.tenant_id,
        budget.account_id,
        budget.asset.code,
        int(budget.period),
        budget.limit,
        list(budget.thresholds),
        budget.spent,
        budget.period_start_time,
        budget.period_end_time,
        budget.version,
    )


async def flag(tx: Transaction, tenant_id: str, account_id: str) -> None:
    """Let charges of the account look for its budget from now on."""
    await tx.execute(_FLAG, tenant_id, account_id)


async def tell(tx: Transaction, budgets: Sequence[Budget]) -> None:
    """Append to the stream what the budgets are now, and wake its watchers."""
    if budgets:
        await tx.executemany(_TELL, [(b.tenant_id, json.dumps(b.facts())) for b in budgets])
        await tx.execute(_NOTIFY, BUDGETS_CHANNEL)


async def list_page(
    tx: Transaction,
    tenant_id: str | None,
    after: tuple[str, str] | None,
    limit: int,
) -> list[Budget]:
    """Return up to `limit` budgets of one tenant, or of all, after a (tenant, account)."""
    after_tenant, after_account = after or (None, None)
    rows = await tx.fetch(_LIST, tenant_id, after_tenant, after_account, limit)
    return [_budget(row) for row in rows]


async def ended(tx: Transaction, limit: int) -> list[tuple[str, str]]:
    """Return up to `limit` (tenant, account) whose budget's period is over."""
    return [(row[0], str(row[1])) for row in await tx.fetch(_ENDED, limit)]


async def horizon(tx: Transaction) -> Position:
    """Return the place in the stream before everything that is not final yet."""
    return Position(int(await tx.fetchval(_HORIZON)), 0)


async def changes(
    tx: Transaction, tenant_id: str | None, after: Position, limit: int
) -> tuple[list[BudgetChange], Position]:
    """Return the next final changes of one tenant, or of all, and the place after them."""
    # What becomes final after this is told by the next read: told now, it would be told twice.
    end = await horizon(tx)
    rows = await tx.fetch(_CHANGES, after.xid, after.id, tenant_id, limit, end.xid)
    found = [
        BudgetChange(budget_of(row["tenant_id"], json.loads(row["budget"])), row["change_time"])
        for row in rows
    ]
    if len(rows) == limit:
        return found, Position(int(rows[-1]["xid"]), rows[-1]["id"])
    return found, max(after, end)


def _budget(row: Any) -> Budget:
    return Budget(
        row["tenant_id"],
        str(row["account_id"]),
        ASSETS[row["asset"]],
        BudgetPeriod(row["period"]),
        int(row["limit_minor"]),
        tuple(row["thresholds"]),
        int(row["spent"]),
        row["period_start_time"],
        row["version"],
    )
