"""Commits which units a run has, and says whether the Ledger has exactly those."""

from __future__ import annotations

from services.ledger.holding import Holding
from services.ledger.run_close import RunClose, compare, gap_of
from services.ledger.store import RaceLostError, closes, gaps, runs
from services.ledger.store.gaps import Found
from services.runtime.database import Database
from services.runtime.errors import unavailable

_RACES_MAX = 3


class Closing:
    """What CloseRun does."""

    def __init__(self, database: Database, holding: Holding) -> None:
        self._database = database
        self._holding = holding

    async def close(
        self, tenant_id: str, run_id: str, *, unit_count: int, units_digest: bytes
    ) -> RunClose:
        """Commit a count and a digest, or find them committed; release the run's hold."""
        for _ in range(_RACES_MAX):
            try:
                close = await self._commit(tenant_id, run_id, unit_count, units_digest)
            except RaceLostError:
                continue
            # After the commit: a crash in between leaves the hold to the Executor's retry, which
            # finds the same version and releases it.
            await self._holding.release_run(tenant_id, run_id, close.version)
            return close
        raise unavailable("Others are closing this run at the same time; retry.")

    async def _commit(
        self, tenant_id: str, run_id: str, unit_count: int, units_digest: bytes
    ) -> RunClose:
        async with self._database.raw_tenant(tenant_id) as tx:
            last = await closes.latest(tx, tenant_id, run_id)
            if last is None or (last.unit_count, last.units_digest) != (unit_count, units_digest):
                version = 1 if last is None else last.version + 1
                last = await closes.append(tx, tenant_id, run_id, version, unit_count, units_digest)
            recorded = await runs.counts(tx, tenant_id, run_id)
            close = compare(last, recorded)
            kind = gap_of(close.state)
            if kind is None:
                await gaps.clear(tx, tenant_id, [run_id])
            else:
                await gaps.put(tx, tenant_id, [Found(run_id, kind, unit_count, recorded.units)])
            return close
