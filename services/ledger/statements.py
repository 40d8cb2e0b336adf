"""Says what happened: a run's statement, and the entries of the log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from services.ledger.accounts import Account, Balance
from services.ledger.commands import Charge
from services.ledger.entries import Entry
from services.ledger.run_close import RunClose, compare
from services.ledger.store import accounts, closes, entries, log, read_one_snapshot, runs
from services.ledger.store.accounts import StatementLine
from services.ledger.store.entries import EntryFilter
from services.ledger.store.runs import RunCounts, RunTotal
from services.runtime.database import Database
from services.runtime.errors import not_found


@dataclass(frozen=True, slots=True)
class RunStatement:
    """What a run cost, with one page of its charges."""

    run_id: str
    charges: list[Charge]
    totals: list[RunTotal]
    counts: RunCounts
    close: RunClose | None
    tree_size: int


@dataclass(frozen=True, slots=True)
class AccountStatement:
    """What happened on an account in a period, with one page of its entries."""

    account: Account
    start_time: datetime
    end_time: datetime
    opening: Balance
    closing: Balance
    lines: list[StatementLine]
    entries: list[Entry]


class Statements:
    """Reads statements of one tenant at a time."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock

    async def of_run(self, tenant_id: str, run_id: str, *, after: int, limit: int) -> RunStatement:
        """Return a run's statement with up to `limit` charges after a sequence."""
        async with self._database.raw_tenant(tenant_id) as tx:
            await read_one_snapshot(tx)
            tree_size, _ = await log.read_head(tx, tenant_id)
            counts = await runs.counts(tx, tenant_id, run_id)
            close = await closes.latest(tx, tenant_id, run_id)
            return RunStatement(
                run_id,
                await runs.charges(tx, tenant_id, run_id, after, limit),
                await runs.totals(tx, tenant_id, run_id),
                counts,
                None if close is None else compare(close, counts),
                tree_size,
            )

    async def of_account(
        self,
        tenant_id: str,
        account_id: str,
        start_time: datetime,
        end_time: datetime | None,
        *,
        after: int,
        limit: int,
    ) -> AccountStatement:
        """Return an account's statement with up to `limit` entries after a sequence."""
        end_time = end_time or self._clock()
        async with self._database.raw_tenant(tenant_id) as tx:
            await read_one_snapshot(tx)
            found = await accounts.read(tx, tenant_id, account_id)
            if found is None:
                raise not_found("account", account_id)
            account, _ = found
            size, _ = await log.read_head(tx, tenant_id)
            opened = await entries.last_before(tx, tenant_id, size, start_time)
            closed = await entries.last_before(tx, tenant_id, size, end_time)
            page = EntryFilter(tenant_id, max(opened, after), closed, account_id)
            return AccountStatement(
                account,
                start_time,
                end_time,
                await accounts.balance_at(tx, account, opened),
                await accounts.balance_at(tx, account, closed),
                await accounts.lines(tx, account, opened, closed),
                await entries.list_forward(tx, page, limit),
            )

    async def list_entries(
        self,
        tenant_id: str,
        *,
        kind: int,
        account_id: str,
        run_id: str,
        before: int | None,
        limit: int,
    ) -> list[Entry]:
        """Return up to `limit` entries before a sequence, the newest first."""
        async with self._database.raw_tenant(tenant_id) as tx:
            return await entries.list_page(
                tx,
                tenant_id,
                kind=kind,
                account_id=account_id,
                run_id=run_id,
                before=before,
                limit=limit,
            )
