"""A call that does not fit the grant's budget or the run's bound is never sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest

from services.executor.amounts import Amount
from services.executor.runner.catalogue import Catalogue
from services.executor.store import budgets
from services.executor.store.budgets import Limits, Opening
from services.executor.store.usage import PendingCall, Tokens, open_call
from services.runtime.ids import new_id
from tests.graph.provider_server import ProviderServer, provider_server
from tests.runner.fleet import TENANT, Fleet
from tests.runner.running import running

CENT = Amount("USD", Decimal("0.01"))


@pytest.fixture
async def provider() -> AsyncIterator[ProviderServer]:
    async with provider_server() as server:
        yield server


@pytest.mark.parametrize(
    ("budget", "options"),
    [
        (Amount("USD", Decimal("0.000000001")), {}),
        (None, {"max_cost": Amount("USD", Decimal("0.000000001"))}),
        (Amount("USDC", Decimal(1000)), {}),
    ],
    ids=["the grant's budget", "the run's bound", "a budget in another asset"],
)
async def test_a_call_that_does_not_fit_is_not_sent(
    fleet: Fleet,
    catalogue: Catalogue,
    graphs: Any,
    provider: ProviderServer,
    budget: Amount | None,
    options: dict[str, Any],
) -> None:
    graphs.PROVIDER["api_base"] = provider.url
    run_id = await fleet.start("chatting", await fleet.grant(budget=budget), **options)
    async with running(fleet, catalogue) as runner:
        run = await runner.finished(run_id)

    assert run.error is not None
    assert (run.error.reason, provider.requests) == ("BUDGET_EXHAUSTED", [])
    assert await fleet.rows("SELECT * FROM usage_units") == []


async def test_a_call_that_fits_is_sent_and_charged(
    fleet: Fleet, catalogue: Catalogue, graphs: Any, provider: ProviderServer
) -> None:
    graphs.PROVIDER["api_base"] = provider.url
    grant_id = await fleet.grant(budget=Amount("USD", Decimal(100)))
    run_id = await fleet.start("chatting", grant_id)
    async with running(fleet, catalogue) as runner:
        run = await runner.finished(run_id)

    assert run.state == "SUCCEEDED", run.error
    (unit,) = await fleet.rows("SELECT * FROM usage_units")
    assert (unit["state"], unit["estimated"]) == ("SETTLED", False)


async def test_calls_that_fit_one_by_one_do_not_pass_the_budget_together(fleet: Fleet) -> None:
    grant_id = await fleet.grant()
    run_id = await fleet.start("any", grant_id)
    epoch = await _hold(fleet, run_id)
    limits = Limits(Amount("USD", Decimal("0.035")), None)

    async def open_one() -> Amount | None:
        call = _call(run_id, grant_id)
        opening = Opening(call.call_id, grant_id, run_id, epoch, CENT)
        async with fleet.database.raw_jobs() as tx:
            return await budgets.open_within(tx, opening, limits, open_call(call))

    passed = await asyncio.gather(*(open_one() for _ in range(8)))

    assert passed.count(None) == 3
    assert len(await fleet.rows("SELECT * FROM usage_units")) == 3


async def test_what_a_call_did_not_use_can_be_spent_by_the_next(fleet: Fleet) -> None:
    grant_id = await fleet.grant()
    run_id = await fleet.start("any", grant_id)
    epoch = await _hold(fleet, run_id)
    limits = Limits(CENT, None)
    first, second = _call(run_id, grant_id), _call(run_id, grant_id)

    async def open_call_within(call: PendingCall) -> Amount | None:
        opening = Opening(call.call_id, grant_id, run_id, epoch, CENT)
        async with fleet.database.raw_jobs() as tx:
            return await budgets.open_within(tx, opening, limits, open_call(call))

    assert await open_call_within(first) is None
    assert await open_call_within(first) is None, "a repeat does not count itself"
    assert await open_call_within(second) == CENT
    async with fleet.database.raw_jobs() as tx:
        await tx.execute(
            "UPDATE usage_units SET state = 'SETTLED', actual = '{}', cost_asset = 'USD',"
            " cost_value = 0, settle_time = cogni_now() WHERE call_id = $1",
            first.call_id,
        )
    assert await open_call_within(second) is None


async def test_what_the_ledger_took_for_tools_is_spent(fleet: Fleet) -> None:
    grant_id = await fleet.grant()
    run_id = await fleet.start("any", grant_id)
    epoch = await _hold(fleet, run_id)
    call = _call(run_id, grant_id)
    opening = Opening(call.call_id, grant_id, run_id, epoch, CENT)
    await fleet.execute(
        "INSERT INTO usage_units (call_id, tenant_id, run_id, attempt, grant_id, account_id, kind,"
        " node, state, estimate, actual, occur_time, settle_time) VALUES (gen_random_uuid(), 't1',"
        " $1, 1, $2, 'a', 'TOOL_CALL', 'n', 'SETTLED', '{}', '{}', cogni_now(), cogni_now())",
        run_id,
        grant_id,
    )

    async def passes(limit: Amount) -> bool:
        async with fleet.database.raw_jobs() as tx:
            passed = await budgets.open_within(tx, opening, Limits(limit, None), open_call(call))
        return passed is not None

    assert not await passes(CENT), "nobody here knows yet what the tool cost"
    await fleet.execute(
        "UPDATE usage_units SET charge_asset = 'USD', charge_value = 0.001 WHERE kind = 'TOOL_CALL'"
    )
    assert await passes(CENT)
    assert not await passes(Amount("USD", Decimal("0.011")))


async def test_an_attempt_that_lost_its_lease_opens_nothing(fleet: Fleet) -> None:
    grant_id = await fleet.grant()
    run_id = await fleet.start("any", grant_id)
    epoch = await _hold(fleet, run_id)
    call = _call(run_id, grant_id)
    opening = Opening(call.call_id, grant_id, run_id, epoch - 1, CENT)

    with pytest.raises(LookupError):
        async with fleet.database.raw_jobs() as tx:
            await budgets.open_within(tx, opening, Limits(CENT, None), open_call(call))

    assert await fleet.rows("SELECT * FROM usage_units") == []


async def _hold(fleet: Fleet, run_id: str) -> int:
    """Lay the run's lease as a claim would; returns its epoch."""
    async with fleet.database.raw_jobs() as tx:
        return int(
            await tx.fetchval(
                "UPDATE run_leases SET holder = 'test', epoch = epoch + 1, ready_time = NULL,"
                " expire_time = cogni_now() + interval '1 hour' WHERE run_id = $1 RETURNING epoch",
                run_id,
            )
        )


def _call(run_id: str, grant_id: str) -> PendingCall:
    return PendingCall(
        call_id=new_id(),
        tenant_id=TENANT,
        run_id=run_id,
        attempt=1,
        grant_id=grant_id,
        account_id="account-1",
        node="n",
        model="m",
        provider="p",
        upper_bound=Tokens(),
        upper_cost=CENT,
        rework=False,
    )
