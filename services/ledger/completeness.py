"""Compares, all the time, what the Executor committed with what was recorded."""

from __future__ import annotations

import asyncio
from datetime import datetime

from services.ledger.run_close import Gap, GapKind, close_state, gap_of
from services.ledger.store import Transaction, gaps, log
from services.ledger.store.gaps import Comparison, Found
from services.runtime.database import Database

_TENANTS_PER_SWEEP_MAX = 100
#: Few enough for the statement timeout on a busy machine: with a load of 30 on two cores a step of
#: 5,000 once met it.
_ENTRIES_PER_STEP_MAX = 1_000
#: A run at work is counted anew in every sweep it wrote in, so sweeps are not closer together.
_SWEEP_SECONDS = 5.0


class Completeness:
    """What ListGaps does, and the check behind it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        #: How many gaps there are of each kind, as of the last sweep.
        self.totals: dict[GapKind, int] = {}

    async def list_page(
        self, tenant_id: str, kind: int, before: tuple[datetime, str] | None, limit: int
    ) -> list[Gap]:
        """Return up to `limit` gaps before the given one, the newest first."""
        async with self._database.raw_tenant(tenant_id) as tx:
            return await gaps.list_page(tx, tenant_id, kind, before, limit)

    async def check_forever(self) -> None:
        """Compare runs as they grow, sweep after sweep, until cancelled."""
        while True:
            if not await self.check():
                await asyncio.sleep(_SWEEP_SECONDS)

    async def check(self) -> bool:
        """Compare the runs that grew since they were last compared; tell whether more are left."""
        async with self._database.raw_jobs() as tx:
            tenants = await gaps.behind(tx, _TENANTS_PER_SWEEP_MAX)
        is_more = len(tenants) == _TENANTS_PER_SWEEP_MAX
        for tenant_id in tenants:
            async with self._database.raw_tenant(tenant_id) as tx:
                is_more = await self._step(tx, tenant_id) or is_more
        async with self._database.raw_jobs() as tx:
            self.totals = await gaps.totals(tx)
        return is_more

    async def _step(self, tx: Transaction, tenant_id: str) -> bool:
        after = await gaps.checked(tx, tenant_id)
        if after is None:
            return False
        size, _ = await log.read_head(tx, tenant_id)
        last = min(size, after + _ENTRIES_PER_STEP_MAX)
        complete: list[str] = []
        found: list[Found] = []
        for run in await gaps.compare(tx, tenant_id, after, last):
            kind = _judge(run)
            if kind is None:
                complete.append(run.run_id)
            else:
                found.append(Found(run.run_id, kind, run.unit_count or 0, run.units))
        await gaps.put(tx, tenant_id, found)
        await gaps.clear(tx, tenant_id, complete)
        await gaps.advance(tx, tenant_id, last)
        return last < size


def _judge(run: Comparison) -> GapKind | None:
    if run.unit_count is None or run.units_digest is None:
        return GapKind.UNCLOSED
    return gap_of(close_state(run.unit_count, run.units_digest, run))
