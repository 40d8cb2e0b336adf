"""Gathers what the Ledger has of a run or a period, and compares it with outside rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from services.ledger.reconciliation import OutsideRow, Reconciled, inside_units, reconcile
from services.ledger.store import read_one_snapshot, runs
from services.ledger.units import FIRST_MOMENT
from services.runtime.database import Database
from services.runtime.errors import limit

#: Units of one comparison: about 60 MB of leaves while it runs.
UNITS_MAX = 50_000
DIFFERENCES_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Scope:
    """Which units are compared: a run's, or those that occurred in a period."""

    run_id: str
    start_time: datetime | None
    end_time: datetime | None
    provider: str


class Reconciling:
    """What ReconcileUsage does."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def compare(
        self, tenant_id: str, scope: Scope, rows: Sequence[OutsideRow], tolerance: Decimal
    ) -> Reconciled:
        """Return where the two accounts differ; raises LIMIT_EXCEEDED when there is too much."""
        # Nothing occurred before the first moment that a unit may name.
        start_time = scope.start_time and max(scope.start_time, FIRST_MOMENT)
        async with self._database.raw_tenant(tenant_id) as tx:
            await read_one_snapshot(tx)
            charges = await runs.standing_charges(
                tx, tenant_id, scope.run_id, start_time, scope.end_time, UNITS_MAX + 1
            )
        if len(charges) > UNITS_MAX:
            raise limit(
                "ledger.reconciliation",
                f"at most {UNITS_MAX} units are compared at once; choose a shorter period.",
            )
        result = reconcile(inside_units(charges, scope.provider), rows, tolerance)
        if len(result.differences) > DIFFERENCES_MAX:
            raise limit(
                "ledger.reconciliation",
                f"more than {DIFFERENCES_MAX} units differ; choose a shorter period.",
            )
        return result
