"""Runs work under a hold: placed before their first call, shrunk while they wait, taken over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest

from cogni.ledger.v1 import ledger_service_pb2 as pb
from cogni.type.v1.amount_pb2 import Amount
from services.executor.runner.catalogue import Catalogue
from services.runtime.ids import new_id
from tests.graph.provider_server import ProviderServer, provider_server
from tests.runner.bank import FUNDS, Bank
from tests.runner.fleet import TENANT, Fleet
from tests.runner.running import DEADLINE_SECONDS, FakeHolds, running


@pytest.fixture
async def provider(graphs: Any) -> AsyncIterator[ProviderServer]:
    async with provider_server() as server:
        graphs.PROVIDER["api_base"] = server.url
        yield server


async def test_a_call_that_the_account_cannot_pay_is_not_sent_and_the_run_says_what_to_do(
    fleet: Fleet, catalogue: Catalogue, provider: ProviderServer, bank: Bank
) -> None:
    everything = Amount(asset="USD", value=str(FUNDS))
    spare = await bank.ledger.account(tenant=TENANT)
    await bank.ledger.stub(TENANT).Transfer(
        pb.TransferRequest(
            request_id=new_id(),
            debit_account_id=bank.account_id,
            credit_account_id=spare,
            amount=everything,
        )
    )
    run_id = await fleet.start("chatting", await fleet.grant(account_id=bank.account_id))
    async with running(fleet, catalogue, holds=bank.holds) as runner:
        run = await runner.finished(run_id)

    assert run.error is not None
    assert (run.error.reason, provider.requests) == ("BUDGET_EXHAUSTED", [])
    assert "Fund the account" in run.error.message
    assert await fleet.rows("SELECT * FROM usage_units") == []


async def test_a_run_holds_what_its_call_can_cost_and_gives_the_rest_back_at_its_end(
    fleet: Fleet, catalogue: Catalogue, provider: ProviderServer, bank: Bank
) -> None:
    run_id = await fleet.start("chatting", await fleet.grant(account_id=bank.account_id))
    async with running(fleet, catalogue, holds=bank.holds) as runner:
        run = await runner.finished(run_id)
        await asyncio.wait_for(asyncio.gather(*runner.pumps), DEADLINE_SECONDS)
        (unit,) = await fleet.rows("SELECT * FROM usage_units")

    assert run.state == "SUCCEEDED", run.error
    hold = await bank.hold_of(run_id)
    assert hold is not None
    # Its one charge is not delivered yet; closing the run releases what it takes.
    assert Decimal(hold.remaining).scaleb(-12) == unit["cost_value"] == await bank.held()


async def test_a_run_that_waits_keeps_what_is_not_charged_yet_and_goes_on_under_its_hold(
    fleet: Fleet, catalogue: Catalogue, provider: ProviderServer
) -> None:
    holds = FakeHolds()
    run_id = await fleet.start("chat_and_ask")
    async with running(fleet, catalogue, holds=holds) as runner:
        await runner.in_state(run_id, "WAITING")
        (unit,) = await fleet.rows("SELECT * FROM usage_units")

    assert [each.value for each in holds.shrunk] == [unit["cost_value"]]
    assert holds.placed[0].value > unit["cost_value"]


async def test_a_run_without_a_metered_call_asks_for_no_hold(
    fleet: Fleet, catalogue: Catalogue
) -> None:
    holds = FakeHolds()
    run_id = await fleet.start("noop")
    async with running(fleet, catalogue, holds=holds) as runner:
        await runner.finished(run_id)

    assert (holds.placed, holds.shrunk) == ([], [])
