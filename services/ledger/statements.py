"""Says what happened: a run's statement, and the entries of the log."""

from __future__ import annotations

from dataclasses import dataclass

from services.ledger.commands import Charge
from services.ledger.entries import Entry
from services.ledger.run_close import RunClose, compare
from services.ledger.store import closes, entries, log, read_one_snapshot, runs
from services.ledger.store.runs import RunCounts, RunTotal
from services.runtime.database import Database


@dataclass(frozen=True, slots=True)
class RunStatement:
    """What a run cost, with one page of its charges."""

    run_id: str
    charges: list[Charge]
    totals: list[RunTotal]
    counts: RunCounts
    close: RunClose | None
    tree_size: int


class Statements:
    """Reads statements of one tenant at a time."""

    def __init__(self, database: Database) -> None:
        self._database = database

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
