"""Budgets: how much an account may spend per period, and when somebody should know."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from enum import IntEnum
from typing import Any

from services.ledger.assets import ASSETS, Asset
from services.ledger.canonical import format_time, parse_time

_MONTHS = 12
_EVER = datetime(2000, 1, 1, tzinfo=UTC)


class BudgetPeriod(IntEnum):
    """How often a budget starts from zero, in UTC; the values are those of the contract."""

    TOTAL = 1
    DAY = 2
    WEEK = 3
    MONTH = 4

    def start_of(self, moment: datetime) -> datetime:
        """Return when the period that `moment` lies in began."""
        midnight = datetime.combine(moment.astimezone(UTC).date(), time(), UTC)
        match self:
            case BudgetPeriod.TOTAL:
                return _EVER
            case BudgetPeriod.DAY:
                return midnight
            case BudgetPeriod.WEEK:
                return midnight - timedelta(days=midnight.weekday())
            case BudgetPeriod.MONTH:
                return midnight.replace(day=1)

    def end_of(self, start: datetime) -> datetime | None:
        """Return when the period that began at `start` ends, None for never."""
        match self:
            case BudgetPeriod.TOTAL:
                return None
            case BudgetPeriod.DAY:
                return start + timedelta(days=1)
            case BudgetPeriod.WEEK:
                return start + timedelta(weeks=1)
            case BudgetPeriod.MONTH:
                years, month = divmod(start.month, _MONTHS)
                return start.replace(year=start.year + years, month=month + 1)


class BudgetState(IntEnum):
    """Whether spending can go on; the values are those of the contract."""

    OPEN = 1
    WARNED = 2
    EXHAUSTED = 3


@dataclass(slots=True)
class Budget:
    """The budget of one account; sums in minor units, `version` changes with its terms."""

    tenant_id: str
    account_id: str
    asset: Asset
    period: BudgetPeriod
    limit: int
    thresholds: tuple[int, ...]
    spent: int
    period_start_time: datetime
    version: int

    @property
    def period_end_time(self) -> datetime | None:
        """When the current period ends, None for never."""
        return self.period.end_of(self.period_start_time)

    @property
    def left(self) -> int:
        """What charges and holds may still take in this period."""
        return max(0, self.limit - self.spent)

    @property
    def reached_percent(self) -> int:
        """The highest threshold reached in this period, 0 for none."""
        return max((t for t in self.thresholds if self.spent * 100 >= self.limit * t), default=0)

    @property
    def state(self) -> BudgetState:
        """Whether spending can go on."""
        if self.spent >= self.limit:
            return BudgetState.EXHAUSTED
        return BudgetState.WARNED if self.reached_percent else BudgetState.OPEN

    def roll(self, now: datetime) -> bool:
        """Begin the period that `now` lies in, if the current one is over; tell whether it did."""
        start = self.period.start_of(now)
        if start <= self.period_start_time:
            return False
        self.period_start_time, self.spent = start, 0
        return True

    def spend(self, amount: int) -> None:
        """Count a charge, or less than nothing for what was given back."""
        self.spent = max(0, self.spent + amount)

    def standing(self) -> tuple[object, ...]:
        """Return what watchers care about: when it differs, there is a change to tell."""
        return (self.state, self.reached_percent, self.period_start_time, self.version)

    def facts(self) -> dict[str, Any]:
        """Return the budget as plain JSON."""
        return {
            "account_id": self.account_id,
            "asset": self.asset.code,
            "period": int(self.period),
            "limit": str(self.limit),
            "thresholds": list(self.thresholds),
            "spent": str(self.spent),
            "period_start_time": format_time(self.period_start_time),
            "version": self.version,
        }


def budget_of(tenant_id: str, facts: dict[str, Any]) -> Budget:
    """Return the budget that `facts` described."""
    return Budget(
        tenant_id,
        facts["account_id"],
        ASSETS[facts["asset"]],
        BudgetPeriod(facts["period"]),
        int(facts["limit"]),
        tuple(facts["thresholds"]),
        int(facts["spent"]),
        parse_time(facts["period_start_time"]),
        facts["version"],
    )
