"""Budgets: spending is counted per period, holds are bound, watchers hear of every change."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest

from cogni.ledger.v1 import budget_pb2
from cogni.ledger.v1 import ledger_service_pb2 as pb
from services.ledger.budgets import BudgetPeriod
from services.ledger.store import budgets
from services.runtime.cursor import BEGINNING, Position
from services.runtime.ids import new_id
from tests.databases import all_is_final
from tests.ledger.conftest import Ledger, record, unit, usd
from tests.ledger.test_holds import placing
from tests.plugins.calls import refused

MONTH, DAY = budget_pb2.BUDGET_PERIOD_MONTH, budget_pb2.BUDGET_PERIOD_DAY
OPEN, WARNED = budget_pb2.BUDGET_STATE_OPEN, budget_pb2.BUDGET_STATE_WARNED
EXHAUSTED = budget_pb2.BUDGET_STATE_EXHAUSTED


def setting(account_id: str, limit: str, /, **changes: Any) -> pb.SetBudgetRequest:
    mask = changes.pop("mask", None)
    values: dict[str, Any] = {
        "account_id": account_id,
        "period": MONTH,
        "limit": usd(limit),
        "threshold_percents": [50, 80],
        **changes,
    }
    request = pb.SetBudgetRequest(request_id=new_id(), budget=budget_pb2.Budget(**values))
    if mask is not None:
        request.update_mask.paths.extend(mask)
    return request


@pytest.mark.parametrize(
    ("period", "start", "end"),
    [
        (BudgetPeriod.DAY, datetime(2026, 12, 31, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)),
        (BudgetPeriod.WEEK, datetime(2026, 12, 28, tzinfo=UTC), datetime(2027, 1, 4, tzinfo=UTC)),
        (BudgetPeriod.MONTH, datetime(2026, 12, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)),
    ],
)
def test_periods_follow_the_utc_calendar(
    period: BudgetPeriod, start: datetime, end: datetime
) -> None:
    moment = datetime(2026, 12, 31, 23, 59, tzinfo=UTC)

    assert period.start_of(moment) == start
    assert period.end_of(start) == end
    assert period.start_of(end) == end


async def test_charges_count_towards_the_budget_and_corrections_count_back(
    ledger: Ledger,
) -> None:
    account_id = await ledger.account("100")
    await ledger.stub().SetBudget(setting(account_id, "10"))

    charge = (await record(ledger.executor(), unit(account_id, "6")))[0].charge
    warned = await ledger.stub().GetBudget(pb.GetBudgetRequest(account_id=account_id))
    await record(ledger.executor(), unit(account_id, "5"))
    exhausted = await ledger.stub().GetBudget(pb.GetBudgetRequest(account_id=account_id))
    await ledger.stub().CorrectEntry(
        pb.CorrectEntryRequest(
            request_id=new_id(), sequence=charge.sequence, description="by mistake"
        )
    )
    after = await ledger.stub().GetBudget(pb.GetBudgetRequest(account_id=account_id))

    assert (warned.budget.state, warned.budget.reached_percent) == (WARNED, 50)
    assert (exhausted.budget.state, exhausted.budget.spent.value) == (EXHAUSTED, "11")
    assert (after.budget.state, after.budget.spent.value) == (WARNED, "5")


async def test_a_hold_past_the_budget_is_refused_and_other_holds_count(ledger: Ledger) -> None:
    account_id = await ledger.account("100")
    await ledger.stub().SetBudget(setting(account_id, "10"))
    await record(ledger.executor(), unit(account_id, "4"))
    await ledger.stub().PlaceHold(placing(account_id, "5"))

    refusal = await refused(ledger.stub().PlaceHold(placing(account_id, "1.5")))
    await ledger.stub().PlaceHold(placing(account_id, "1"))

    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refusal.reason == "BUDGET_EXHAUSTED"
    told = {"account_id": account_id, "left": "1"}
    assert refusal.info.metadata.items() >= told.items()
    assert refusal.info.metadata["left"] == "1"


async def test_a_new_period_starts_from_zero_and_watchers_hear_of_it(
    ledger: Ledger, clock: Any
) -> None:
    account_id = await ledger.account("100")
    await ledger.stub().SetBudget(setting(account_id, "10", period=DAY))
    await record(ledger.executor(), unit(account_id, "10"))
    watching = ledger.stub().WatchBudgets(pb.WatchBudgetsRequest())
    first: Any = await watching.read()

    await clock.advance(ledger.database, timedelta(days=1))
    begun: list[Any] = []
    async with asyncio.timeout(60):
        # What other tests' transactions held back of the old period may be told first.
        while not begun:
            news: Any = await watching.read()
            begun = [each.budget for each in news.changes if _start(each) > _start(*first.changes)]
    watching.cancel()

    assert first.changes[0].budget.state == EXHAUSTED
    assert begun[0].state == OPEN
    assert begun[0].spent.value == "0"


def _start(change: Any) -> datetime:
    start: datetime = change.budget.period_start_time.ToDatetime(UTC)
    return start


async def test_a_watch_tells_only_changes_of_standing_and_resumes_from_its_cursor(
    ledger: Ledger,
) -> None:
    account_id = await ledger.account("100")
    await ledger.stub().SetBudget(setting(account_id, "10"))
    watching = ledger.stub().WatchBudgets(pb.WatchBudgetsRequest())
    start: Any = await watching.read()
    watching.cancel()

    for cost in ("1", "1", "3", "1", "5"):
        await record(ledger.executor(), unit(account_id, cost))
    told: list[tuple[int, int]] = []
    resumed = ledger.stub().WatchBudgets(pb.WatchBudgetsRequest(cursor=start.cursor))
    async with asyncio.timeout(60):
        while (EXHAUSTED, 80) not in told:
            news: Any = await resumed.read()
            told += [(each.budget.state, each.budget.reached_percent) for each in news.changes]
    resumed.cancel()

    # The first change was told by the state at the start and may be told again.
    assert [each for each in told if each[0] != OPEN] == [(WARNED, 50), (EXHAUSTED, 80)]


async def test_what_becomes_final_while_changes_are_read_is_told_once(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    account_id = await ledger.account("100")
    horizon = budgets.horizon

    async def with_a_change_after_it(tx: Any) -> Position:
        end = await horizon(tx)
        monkeypatch.undo()
        await ledger.stub().SetBudget(setting(account_id, "10"))
        await all_is_final(ledger.database)
        return end

    monkeypatch.setattr(budgets, "horizon", with_a_change_after_it)
    async with ledger.database.raw_tenant("acme") as tx:
        first, place = await budgets.changes(tx, "acme", BEGINNING, 100)
        second, _ = await budgets.changes(tx, "acme", place, 100)

    assert [each.budget.account_id for each in (*first, *second)] == [account_id]


async def test_the_scheduler_watches_the_budgets_of_all_tenants(ledger: Ledger) -> None:
    accounts = {tenant: await ledger.account("1", tenant=tenant) for tenant in ("acme", "other")}
    for tenant, account_id in accounts.items():
        await ledger.stub(tenant).SetBudget(setting(account_id, "10"))
    token = ledger.identities.service_token("scheduler", "ledger", "*")

    watching = ledger._stub((), token).WatchBudgets(pb.WatchBudgetsRequest())
    news: Any = await watching.read()
    watching.cancel()
    theirs = ledger.stub().WatchBudgets(pb.WatchBudgetsRequest())
    ours: Any = await theirs.read()
    theirs.cancel()

    assert {each.tenant_id for each in news.changes} == {"acme", "other"}
    assert {each.tenant_id for each in ours.changes} == {"acme"}


async def test_a_budget_changes_only_from_the_version_that_was_read(ledger: Ledger) -> None:
    account_id = await ledger.account("1")
    made = (await ledger.stub().SetBudget(setting(account_id, "10"))).budget
    request = setting(account_id, "20", etag=made.etag, mask=["limit"], threshold_percents=[])

    changed = (await ledger.stub().SetBudget(request)).budget
    again = (await ledger.stub().SetBudget(request)).budget
    stale = await refused(ledger.stub().SetBudget(setting(account_id, "30", etag=made.etag)))

    assert changed == again
    assert (changed.limit.value, list(changed.threshold_percents)) == ("20", [50, 80])
    assert stale.reason == "ETAG_MISMATCH"


async def test_budgets_are_listed_by_state(ledger: Ledger) -> None:
    accounts = [await ledger.account("100") for _ in range(3)]
    for account_id in accounts:
        await ledger.stub().SetBudget(setting(account_id, "1"))
    await record(ledger.executor(), unit(accounts[1], "1"))

    every = await ledger.stub().ListBudgets(pb.ListBudgetsRequest(page_size=2))
    rest = await ledger.stub().ListBudgets(
        pb.ListBudgetsRequest(page_size=2, page_token=every.next_page_token)
    )
    spent = await ledger.stub().ListBudgets(pb.ListBudgetsRequest(state=EXHAUSTED))

    assert len(every.budgets) + len(rest.budgets) == 3
    assert [each.account_id for each in spent.budgets] == [accounts[1]]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"period": 0}, "INVALID_REQUEST"),
        ({"period": 9}, "INVALID_REQUEST"),
        ({"threshold_percents": [80, 50]}, "INVALID_REQUEST"),
        ({"threshold_percents": [0]}, "INVALID_REQUEST"),
        ({"limit": usd("-1")}, "INVALID_REQUEST"),
        ({"limit": {"asset": "EUR", "value": "1"}}, "ASSET_MISMATCH"),
        ({"mask": ["spent"]}, "INVALID_REQUEST"),
        ({"account_id": "0197a000-0000-7000-8000-000000000000"}, "NOT_FOUND"),
    ],
)
async def test_a_bad_budget_is_refused(
    ledger: Ledger, changes: dict[str, Any], reason: str
) -> None:
    account_id = await ledger.account("1")

    refusal = await refused(ledger.stub().SetBudget(setting(account_id, "10", **changes)))

    assert refusal.reason == reason


async def test_a_cursor_of_another_tenant_is_refused(ledger: Ledger) -> None:
    watching = ledger.stub("other").WatchBudgets(pb.WatchBudgetsRequest())
    news: Any = await watching.read()
    watching.cancel()

    refusal = await refused(ledger.stub().WatchBudgets(pb.WatchBudgetsRequest(cursor=news.cursor)))

    assert refusal.reason == "CURSOR_INVALID"


async def test_a_corrected_unit_counts_once_even_where_it_went_past_the_limit(
    ledger: Ledger,
) -> None:
    account_id = await ledger.account("3")
    await ledger.stub().SetBudget(setting(account_id, "100"))
    estimate = unit(account_id, "10")
    await record(ledger.executor(), estimate)
    exact = unit(account_id, "9", corrects_source_reference=estimate.source_reference)

    await record(ledger.executor(), exact)

    after = await ledger.stub().GetBudget(pb.GetBudgetRequest(account_id=account_id))
    assert after.budget.spent.value == "9"


async def test_an_estimate_of_the_last_period_makes_way_for_the_exact_cost(ledger: Ledger) -> None:
    account_id = await ledger.account("100")
    await ledger.stub().SetBudget(setting(account_id, "100"))
    estimate = unit(account_id, "10")
    await record(ledger.executor(), estimate)
    async with ledger.database.raw_tenant("acme") as tx:
        await tx.execute("UPDATE budgets SET period_start_time = '2020-01-01'")
    exact = unit(account_id, "12", corrects_source_reference=estimate.source_reference)

    await record(ledger.executor(), exact)

    after = await ledger.stub().GetBudget(pb.GetBudgetRequest(account_id=account_id))
    assert after.budget.spent.value == "2"
