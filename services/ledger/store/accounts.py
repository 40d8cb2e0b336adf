"""Reads and creates accounts, and locks the balances that a batch moves."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from services.ledger.accounts import Account, AccountKind, Balance
from services.ledger.assets import ASSETS
from services.ledger.entries import EntryKind
from services.ledger.store import Transaction

_FIND = "SELECT * FROM accounts WHERE tenant_id = $1 AND account_id = ANY($2)"

_READ = """
SELECT a.*, b.balance, b.held, b.sequence, b.update_time
FROM accounts AS a JOIN balances AS b USING (tenant_id, account_id)
WHERE a.tenant_id = $1 AND a.account_id = $2
"""

_LIST = """
SELECT a.*, b.balance, b.held, b.sequence, b.update_time
FROM accounts AS a JOIN balances AS b USING (tenant_id, account_id)
WHERE a.tenant_id = $1
  AND ($2 = '' OR a.asset = $2) AND ($3 = 0 OR a.kind = $3) AND ($4 = '' OR a.owner = $4)
  AND ($5::timestamptz IS NULL OR (a.create_time, a.account_id) > ($5, $6::uuid))
ORDER BY a.create_time, a.account_id
LIMIT $7
"""

_INSERT = """
INSERT INTO accounts (tenant_id, account_id, display_name, asset, kind, owner, credit_limit,
                      create_time)
SELECT $1, id, name, $2, kind, owner, credit_limit, cogni_now()
FROM unnest($3::uuid[], $4::text[], $5::smallint[], $6::text[], $7::numeric[])
     AS n (id, name, kind, owner, credit_limit)
ON CONFLICT DO NOTHING
"""

_INSERT_BALANCES = """
INSERT INTO balances (tenant_id, account_id)
SELECT $1, id FROM unnest($2::uuid[]) AS n (id) ORDER BY id
ON CONFLICT DO NOTHING
"""

_INSERT_HEAD = "INSERT INTO log_heads (tenant_id) VALUES ($1) ON CONFLICT DO NOTHING"

_LOCK = """
SELECT b.tenant_id, b.account_id, b.balance, b.held, b.has_budget
FROM balances AS b
JOIN unnest($1::text[], $2::uuid[]) AS w (tenant_id, account_id) USING (tenant_id, account_id)
ORDER BY b.tenant_id, b.account_id
FOR NO KEY UPDATE OF b
"""

_BALANCE_AT = """
SELECT sequence, record_time, CASE WHEN debit_account_id = $2 THEN debit_balance
                                   ELSE credit_balance END AS balance
FROM (
    (SELECT * FROM entries WHERE tenant_id = $1 AND debit_account_id = $2 AND sequence <= $3
     ORDER BY sequence DESC LIMIT 1)
    UNION ALL
    (SELECT * FROM entries WHERE tenant_id = $1 AND credit_account_id = $2 AND sequence <= $3
     ORDER BY sequence DESC LIMIT 1)
) AS latest
ORDER BY sequence DESC LIMIT 1
"""

_SUM_AT = """
SELECT coalesce(sum(CASE WHEN credit_account_id = $2 THEN amount ELSE -amount END), 0)
FROM entries
WHERE tenant_id = $1 AND $2 IN (debit_account_id, credit_account_id) AND sequence <= $3
"""

_LINES = """
SELECT kind, count(*) AS entry_count,
       coalesce(sum(amount) FILTER (WHERE debit_account_id = $2), 0) AS debits,
       coalesce(sum(amount) FILTER (WHERE credit_account_id = $2), 0) AS credits
FROM entries
WHERE tenant_id = $1 AND $2 IN (debit_account_id, credit_account_id)
  AND sequence > $3 AND sequence <= $4
GROUP BY kind ORDER BY kind
"""


@dataclass(frozen=True, slots=True)
class StatementLine:
    """What moved on an account for one kind of reason, in minor units."""

    kind: EntryKind
    entry_count: int
    debits: int
    credits: int


class LockedBalance(NamedTuple):
    """What a locked account has, in minor units, and whether it has a budget."""

    balance: int
    held: int
    has_budget: bool


async def find(tx: Transaction, tenant_id: str, ids: Collection[str]) -> list[Account]:
    """Return those of the tenant's accounts that exist."""
    return [_account(row) for row in await tx.fetch(_FIND, tenant_id, list(ids))]


async def read(tx: Transaction, tenant_id: str, account_id: str) -> tuple[Account, Balance] | None:
    """Return an account with its balance now."""
    row = await tx.fetchrow(_READ, tenant_id, account_id)
    return None if row is None else (_account(row), _balance(row))


async def list_page(
    tx: Transaction,
    tenant_id: str,
    *,
    asset: str,
    kind: int,
    owner: str,
    after: tuple[datetime, str] | None,
    limit: int,
) -> list[tuple[Account, Balance]]:
    """Return up to `limit` accounts after the given one, the oldest first."""
    created, account_id = after or (None, None)
    rows = await tx.fetch(_LIST, tenant_id, asset, kind, owner, created, account_id, limit)
    return [(_account(row), _balance(row)) for row in rows]


async def insert(tx: Transaction, tenant_id: str, accounts: Iterable[Account]) -> None:
    """Create accounts of one asset with empty balances, leaving those that exist as they are.

    Rows are made in the order of their ids, so that two first accounts of one tenant wait for
    each other instead of deadlocking on the system's accounts.
    """
    ordered = sorted(accounts, key=lambda account: account.account_id)
    ids = [account.account_id for account in ordered]
    await tx.execute(
        _INSERT,
        tenant_id,
        ordered[0].asset.code,
        ids,
        [account.display_name for account in ordered],
        [int(account.kind) for account in ordered],
        [account.owner for account in ordered],
        [account.credit_limit for account in ordered],
    )
    await tx.execute(_INSERT_BALANCES, tenant_id, ids)
    await tx.execute(_INSERT_HEAD, tenant_id)


async def lock_balances(
    tx: Transaction, wanted: Collection[tuple[str, str]]
) -> dict[tuple[str, str], LockedBalance]:
    """Lock balances until the transaction ends, in the one order everybody locks them."""
    if not wanted:
        return {}
    tenants, ids = zip(*wanted, strict=True)
    rows = await tx.fetch(_LOCK, tenants, ids)
    return {(row[0], str(row[1])): LockedBalance(int(row[2]), int(row[3]), row[4]) for row in rows}


async def balance_at(tx: Transaction, account: Account, sequence: int) -> Balance:
    """Return the balance an account had after an entry; holds of the past are not known."""
    key = (account.tenant_id, account.account_id, sequence)
    row = await tx.fetchrow(_BALANCE_AT, *key)
    if row is None:
        return Balance(0, None, 0, None)
    balance = row["balance"]
    if balance is None:
        # The system's accounts keep no running balance (see Book): add up their postings.
        balance = await tx.fetchval(_SUM_AT, *key)
    return Balance(int(balance), None, row["sequence"], row["record_time"])


async def lines(tx: Transaction, account: Account, after: int, last: int) -> list[StatementLine]:
    """Return what moved on an account by the entries after one and up to another."""
    rows = await tx.fetch(_LINES, account.tenant_id, account.account_id, after, last)
    return [StatementLine(EntryKind(row[0]), row[1], int(row[2]), int(row[3])) for row in rows]


def _account(row: Any) -> Account:
    return Account(
        tenant_id=row["tenant_id"],
        account_id=str(row["account_id"]),
        display_name=row["display_name"],
        asset=ASSETS[row["asset"]],
        kind=AccountKind(row["kind"]),
        owner=row["owner"],
        credit_limit=int(row["credit_limit"]),
        create_time=row["create_time"],
    )


def _balance(row: Any) -> Balance:
    return Balance(int(row["balance"]), int(row["held"]), row["sequence"], row["update_time"])
