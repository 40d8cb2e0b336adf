"""Sets budgets, rolls them into their next period, and tells watchers of every change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace

from services.ledger.budgets import Budget, BudgetPeriod
from services.ledger.canonical import fingerprint
from services.ledger.commands import request_key
from services.ledger.directory import Directory
from services.ledger.store import Transaction, accounts, budgets, keys
from services.ledger.store.budgets import BUDGETS_CHANNEL, BudgetChange
from services.ledger.transferring import amount_in
from services.runtime.caller import ALL_TENANTS, Caller
from services.runtime.cursor import Position, decode_cursor, encode_cursor
from services.runtime.database import Database
from services.runtime.drain import Drain, stream_drained
from services.runtime.errors import (
    Violation,
    etag_mismatch,
    failed_precondition,
    invalid,
    not_found,
    reused_request_id,
)
from services.runtime.listen import Listener

_STREAM = "ledger.budgets"
_CHANGES_MAX = 500
_ROLLS_PER_SWEEP_MAX = 200
_SWEEP_SECONDS = 1.0
_HEARTBEAT_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Terms:
    """What a SetBudget asks for; None leaves a term as it is."""

    request_id: str
    account_id: str
    etag: str
    period: BudgetPeriod | None
    limit: tuple[str, str] | None
    thresholds: tuple[int, ...] | None

    def content_hash(self) -> bytes:
        """Return the hash by which a repeat of the request is told from another one."""
        return fingerprint(
            {
                "account": self.account_id,
                "etag": self.etag,
                "period": int(self.period or 0),
                "limit": " ".join(self.limit or ()),
                "thresholds": "" if self.thresholds is None else list(self.thresholds),
            }
        )


@dataclass(frozen=True, slots=True)
class BudgetNews:
    """What a watcher is told; no changes is a heartbeat."""

    changes: list[BudgetChange]
    cursor: str
    resume: bool = False


class Budgeting:
    """What SetBudget, GetBudget, ListBudgets and WatchBudgets do, and the job that rolls."""

    def __init__(
        self,
        database: Database,
        directory: Directory,
        listener: Listener,
        drain: Drain,
        monotonic: Callable[[], float],
    ) -> None:
        self._database = database
        self._directory = directory
        self._listener = listener
        self._drain = drain
        self._monotonic = monotonic

    async def set(self, caller: Caller, terms: Terms) -> Budget:
        """Create or change a budget; a repeat of the request returns it as it is now."""
        tenant_id, account_id = caller.tenant_id, terms.account_id
        account = await self._directory.need(tenant_id, account_id)
        if not account.kind.is_limited:
            raise failed_precondition(
                "ACCOUNT_NOT_ALLOWED",
                "Only a SPENDING account can have a budget.",
                metadata={"account_id": account_id},
            )
        limit = None if terms.limit is None else amount_in(account, *terms.limit, "budget.limit")
        key = request_key(tenant_id, "SetBudget", terms.request_id)
        async with self._database.raw_tenant(tenant_id) as tx:
            used = await keys.claim(tx, key, terms.content_hash(), account_id)
            # Charges lock the balance first too: a budget never changes under a batch.
            await accounts.lock_balances(tx, [(tenant_id, account_id)])
            found, _ = await budgets.lock(tx, [(tenant_id, account_id)])
            current = found[0] if found else None
            if used is not None:
                if used.payload_hash != terms.content_hash() or current is None:
                    raise reused_request_id(terms.request_id)
                return current
            if terms.etag and (current is None or terms.etag != str(current.version)):
                raise etag_mismatch("budget", account_id)
            now = await budgets.now(tx)
            if current is None:
                if terms.period is None or limit is None:
                    raise invalid(Violation("budget", "a new budget needs a period and a limit"))
                start = terms.period.start_of(now)
                thresholds = terms.thresholds or ()
                changed = Budget(
                    tenant_id,
                    account_id,
                    account.asset,
                    terms.period,
                    limit,
                    thresholds,
                    0,
                    start,
                    1,
                )
            else:
                changed = _changed(current, terms, limit)
                changed.roll(now)
            await budgets.write(tx, changed)
            await budgets.flag(tx, tenant_id, account_id)
            await budgets.tell(tx, [changed])
            return changed

    async def read(self, tenant_id: str, account_id: str) -> Budget:
        """Return a budget as it is in the current period; raises NOT_FOUND."""
        async with self._database.raw_tenant(tenant_id) as tx:
            found, now = await budgets.lock(tx, [(tenant_id, account_id)])
            if not found or now is None:
                raise not_found("budget", account_id)
            found[0].roll(now)
            return found[0]

    async def list_page(
        self, tenant_id: str, state: int, after: tuple[str, str] | None, limit: int
    ) -> tuple[list[Budget], tuple[str, str] | None]:
        """Return up to `limit` budgets in a state, and the place to go on from, if any."""
        matching: list[Budget] = []
        async with self._database.raw_tenant(tenant_id) as tx:
            now = await budgets.now(tx)
            while True:
                page = await budgets.list_page(tx, tenant_id, after, limit)
                for budget in page:
                    budget.roll(now)
                    after = (budget.tenant_id, budget.account_id)
                    if state in (0, budget.state):
                        matching.append(budget)
                    if len(matching) == limit:
                        return matching, after
                if len(page) < limit:
                    return matching, None

    async def watch(self, tenant_id: str, after: str) -> AsyncIterator[BudgetNews]:
        """Yield changes after a cursor for ever, or all budgets first when there is none."""
        position = decode_cursor(after, stream=_STREAM, tenant_id=tenant_id)
        if position is None:
            # The place is taken before the budgets are read: a change in between is told twice
            # rather than never.
            async with self._reading(tenant_id) as tx:
                position = await budgets.horizon(tx)
            async for news in self._all(tenant_id, position):
                yield news
        spoken = self._monotonic()
        async for _ in self._listener.wakeups(BUDGETS_CHANNEL, poll_seconds=_SWEEP_SECONDS):
            cursor = encode_cursor(position, stream=_STREAM, tenant_id=tenant_id)
            if self._drain.draining.is_set():
                yield BudgetNews([], cursor, resume=True)
                raise stream_drained()
            while True:
                async with self._reading(tenant_id) as tx:
                    found, position = await budgets.changes(
                        tx, _one(tenant_id), position, _CHANGES_MAX
                    )
                if not found:
                    break
                cursor = encode_cursor(position, stream=_STREAM, tenant_id=tenant_id)
                yield BudgetNews(found, cursor)
                spoken = self._monotonic()
            if self._monotonic() - spoken >= _HEARTBEAT_SECONDS:
                cursor = encode_cursor(position, stream=_STREAM, tenant_id=tenant_id)
                yield BudgetNews([], cursor)
                spoken = self._monotonic()

    async def _all(self, tenant_id: str, position: Position) -> AsyncIterator[BudgetNews]:
        cursor = encode_cursor(position, stream=_STREAM, tenant_id=tenant_id)
        after: tuple[str, str] | None = None
        while True:
            async with self._reading(tenant_id) as tx:
                now = await budgets.now(tx)
                page = await budgets.list_page(tx, _one(tenant_id), after, _CHANGES_MAX)
            for budget in page:
                budget.roll(now)
                after = (budget.tenant_id, budget.account_id)
            # An empty first message tells the watcher where it stands.
            yield BudgetNews([BudgetChange(budget, now) for budget in page], cursor)
            if len(page) < _CHANGES_MAX:
                return

    async def roll_forever(self) -> None:
        """Begin the next period of budgets whose period is over, until cancelled."""
        while True:
            if await self.roll_ended() < _ROLLS_PER_SWEEP_MAX:
                await asyncio.sleep(_SWEEP_SECONDS)

    async def roll_ended(self) -> int:
        """Begin the next period where one is over; return how many budgets were looked at."""
        async with self._database.raw_jobs() as tx:
            ended = await budgets.ended(tx, _ROLLS_PER_SWEEP_MAX)
        for place in ended:
            async with self._database.raw_tenant(place[0]) as tx:
                await accounts.lock_balances(tx, [place])
                (budget,), now = await budgets.lock(tx, [place])
                if now is not None and budget.roll(now):
                    await budgets.write(tx, budget)
                    await budgets.tell(tx, [budget])
        return len(ended)

    def _reading(self, tenant_id: str) -> AbstractAsyncContextManager[Transaction]:
        if tenant_id == ALL_TENANTS:
            return self._database.raw_jobs()
        return self._database.raw_tenant(tenant_id)


def _one(tenant_id: str) -> str | None:
    return None if tenant_id == ALL_TENANTS else tenant_id


def _changed(current: Budget, terms: Terms, limit: int | None) -> Budget:
    period = terms.period or current.period
    changed = replace(
        current,
        period=period,
        limit=current.limit if limit is None else limit,
        thresholds=current.thresholds if terms.thresholds is None else terms.thresholds,
        version=current.version + 1,
    )
    if period is not current.period:
        # What was spent in a period of another length says nothing about this one's.
        changed.period_start_time, changed.spent = period.start_of(current.period_start_time), 0
    return changed
