"""What this process last saw of heads and balances, so that a batch need not ask for them first."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from services.ledger.book import Position
from services.ledger.holds import Hold
from services.ledger.store.log import LogHead

#: Remembered per process; a tenant's head is a few hundred bytes, a balance less.
_TENANTS_MAX = 10_000
_BALANCES_MAX = 50_000
_HOLDS_MAX = 50_000
#: After n misses in a row, up to so many, a tenant's next 2 ** n - 2 batches do not try: somebody
#: sends old units again, or other processes write its log as well.
_MISSES_COUNTED_MAX = 6


@dataclass(slots=True)
class _Patience:
    misses: int = 0
    batches_to_skip: int = 0


class Recollection:
    """Beliefs, never truths: whoever acts on them has PostgreSQL compare them under its locks."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._heads: OrderedDict[str, LogHead] = OrderedDict()
        self._balances: OrderedDict[tuple[str, str], tuple[int, int]] = OrderedDict()
        self._holds: OrderedDict[tuple[str, str], Hold | None] = OrderedDict()
        self._patience: dict[str, _Patience] = {}
        self._told_time: datetime | None = None
        self._told_at = 0.0

    def head(self, tenant_id: str) -> LogHead | None:
        """Return a copy of the tenant's head, with the time that the database has by now.

        None when it is not known, or when trying is not worth while at present.
        """
        known, now = self._heads.get(tenant_id), self._now()
        if known is None or now is None or self._skips(tenant_id):
            return None
        return replace(known, now=now)

    def balance(self, place: tuple[str, str]) -> tuple[int, int] | None:
        """Return what an account (tenant, id) had and held, if it is known to have no budget."""
        return self._balances.get(place)

    def hold(self, place: tuple[str, str]) -> Hold | None:
        """Return a copy of a run's hold (tenant, run), None when it has none.

        Raises KeyError when that is not known.
        """
        known = self._holds[place]
        return None if known is None else replace(known, is_changed=False)

    def tell_time(self, now: datetime) -> None:
        """The database has just said that it is `now`."""
        self._told_time, self._told_at = now, self._monotonic()

    def expect(
        self,
        heads: Mapping[str, LogHead],
        positions: Iterable[Position],
        holds: Mapping[tuple[str, str], Hold | None],
    ) -> None:
        """Believe what a batch leaves behind, or will once it is written."""
        for place, hold in holds.items():
            self._holds[place] = hold
            _trim(self._holds, _HOLDS_MAX)
        for tenant_id, head in heads.items():
            self._heads[tenant_id] = head
            _trim(self._heads, _TENANTS_MAX)
        for position in positions:
            place = (position.account.tenant_id, position.account.account_id)
            if position.budget is not None:
                self._balances.pop(place, None)
                continue
            self._balances[place] = (position.balance, position.held)
            _trim(self._balances, _BALANCES_MAX)

    def hit(self, tenant_ids: Iterable[str]) -> None:
        """Beliefs about these tenants held."""
        for tenant_id in tenant_ids:
            self._patience.pop(tenant_id, None)

    def missed(self, tenant_ids: Iterable[str]) -> None:
        """The short way was in vain for these tenants: try it less often."""
        for tenant_id in tenant_ids:
            patience = self._patience.setdefault(tenant_id, _Patience())
            patience.misses = min(patience.misses + 1, _MISSES_COUNTED_MAX)
            patience.batches_to_skip = (1 << patience.misses) - 2
        if len(self._patience) > _TENANTS_MAX:
            self._patience.clear()

    def forget(self, tenant_ids: Iterable[str]) -> None:
        """What is believed of these tenants is wrong, or may be."""
        for tenant_id in tenant_ids:
            self._heads.pop(tenant_id, None)

    def _skips(self, tenant_id: str) -> bool:
        patience = self._patience.get(tenant_id)
        if patience is None or patience.batches_to_skip == 0:
            return False
        patience.batches_to_skip -= 1
        return True

    def _now(self) -> datetime | None:
        # The answer that told the time was under way for a moment, so this is never ahead of the
        # database's clock unless that one was set back, which the database notices.
        if self._told_time is None:
            return None
        return self._told_time + timedelta(seconds=self._monotonic() - self._told_at)


def _trim(known: OrderedDict[Any, Any], most: int) -> None:
    if len(known) > most:
        known.popitem(last=False)
