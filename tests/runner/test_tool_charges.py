"""What tools cost: one unit for each execution that was sent, and none for what was not."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from cogni.ledger.v1 import ledger_service_pb2 as pb
from cogni.ledger.v1.price_card_pb2 import PriceCard, UnitPrice
from cogni.ledger.v1.statement_pb2 import RUN_CLOSE_STATE_COMPLETE
from cogni.ledger.v1.usage_pb2 import PRICE_SOURCE_PRICE_CARD
from cogni.type.v1.error_reason_pb2 import ErrorReason
from services.executor.adapters.ledger import LedgerClient
from services.executor.amounts import Amount
from services.executor.grants import ToolPermission
from services.executor.runner.catalogue import Catalogue
from services.executor.runs import Run
from services.executor.store import budgets, controls, runs, usage
from services.executor.store.budgets import Limits
from services.executor.use_cases.deliver_usage import UsageDelivery
from services.runtime.channels import service_channel
from services.runtime.ids import new_id
from tests.plugins.identities import Identities
from tests.runner.bank import Bank
from tests.runner.fleet import TENANT, Fleet
from tests.runner.running import DEADLINE_SECONDS, running

ONCE = ToolPermission("post", max_invocations_per_run=1)


async def _units(fleet: Fleet) -> list[Any]:
    return await fleet.rows("SELECT * FROM usage_units ORDER BY occur_time")


async def _shown(fleet: Fleet, run_id: str) -> Run:
    """The run as GetRun shows it."""
    async with fleet.database.raw_tenant(TENANT) as tx:
        return await runs.details(tx, await fleet.run(run_id))


async def _kill(fleet: Fleet, run_id: str) -> None:
    await fleet.execute(
        "UPDATE run_leases SET epoch = epoch + 1, holder = 'dead',"
        " expire_time = cogni_now() - interval '1 hour' WHERE run_id = $1",
        run_id,
    )


async def test_what_is_sent_is_one_settled_unit_and_one_event_and_what_is_denied_is_none(
    fleet: Fleet, catalogue: Catalogue, graphs: Any
) -> None:
    graphs.RELEASED.set()
    paid = await fleet.start("two_posts", await fleet.grant(ONCE))
    unpaid = await fleet.start("two_posts", await fleet.grant("post", account_id=None))
    async with running(fleet, catalogue) as runner:
        for run_id in (paid, unpaid):
            assert (await runner.finished(run_id)).state == "SUCCEEDED"

    (unit,) = await _units(fleet)
    assert (unit["kind"], unit["state"], unit["rework"]) == ("TOOL_CALL", "SETTLED", False)
    assert (str(unit["run_id"]), unit["node"], unit["account_id"]) == (paid, "twice", "account-1")
    log = await fleet.events(paid)
    (event,) = [each.usage for each in log if each.HasField("usage")]
    (finished,) = [each.tool_finished for each in log if each.HasField("tool_finished")]
    assert (event.call_id, event.tool, event.node) == (str(unit["call_id"]), "post", "twice")
    assert event.invocation_id == finished.invocation_id == str(unit["invocation_id"])
    assert not event.HasField("cost"), "the Ledger prices it"
    assert (await _shown(fleet, paid)).usage == runs.RunUsage(tool_calls=1)
    # Who has no account may use tools that cost nothing; they are counted all the same.
    assert (await _shown(fleet, unpaid)).usage == runs.RunUsage(tool_calls=2)


async def test_an_execution_that_is_cut_off_is_on_the_bill_and_its_repetition_is_rework(
    fleet: Fleet, catalogue: Catalogue, graphs: Any
) -> None:
    run_id = await fleet.start("putting", await fleet.grant("slow_put"))
    async with running(fleet, catalogue) as runner:
        runner.loop.wake()
        await asyncio.wait_for(graphs.REACHED.wait(), DEADLINE_SECONDS)
        sent = await _units(fleet)
        async with fleet.database.raw_tenant(TENANT) as tx:
            briefing = await controls.briefing(tx, run_id, 2)
        await _kill(fleet, run_id)
        await runner.until(run_id, lambda run: run.attempt == 2)
        graphs.RELEASED.set()
        run = await runner.finished(run_id)

    assert (run.state, graphs.HAPPENED["slow_put"]) == ("SUCCEEDED", 2)
    assert [unit["state"] for unit in sent] == ["SETTLED"], "before anything came of it"
    assert briefing.lost_calls == {}, "a model call of the node would not be a repetition"
    units = await _units(fleet)
    assert units[0] == sent[0]
    assert [(unit["attempt"], unit["rework"]) for unit in units] == [(1, False), (2, True)]
    assert len({unit["invocation_id"] for unit in units}) == 1
    events = [each.usage for each in await fleet.events(run_id) if each.HasField("usage")]
    assert [(each.call_id, each.rework) for each in events] == [(str(units[1]["call_id"]), True)]


async def test_an_outcome_that_is_taken_over_is_not_charged_again(
    fleet: Fleet, catalogue: Catalogue, graphs: Any
) -> None:
    run_id = await fleet.start("post_and_hold", await fleet.grant("post"))
    async with running(fleet, catalogue) as runner:
        runner.loop.wake()
        await asyncio.wait_for(graphs.REACHED.wait(), DEADLINE_SECONDS)
        await _kill(fleet, run_id)
        graphs.RELEASED.set()
        run = await runner.finished(run_id)

    assert (run.attempt, graphs.HAPPENED["post"]) == (2, 1)
    (unit,) = await _units(fleet)
    assert unit["attempt"] == 1
    assert (await _shown(fleet, run_id)).usage == runs.RunUsage(tool_calls=1)


@pytest.mark.parametrize("bound", ["budget", "max_cost"])
@pytest.mark.parametrize(("price", "posts"), [("0.002", 1), ("0.0015", 2), ("0", 2)])
async def test_a_tool_that_costs_more_than_is_left_is_denied_and_a_free_one_is_not(
    fleet: Fleet, catalogue: Catalogue, graphs: Any, price: str, posts: int, bound: str
) -> None:
    limit = Amount("USD", Decimal("0.003"))
    grant_id = await fleet.grant("post", budget=limit if bound == "budget" else None)
    options = {"max_cost": limit} if bound == "max_cost" else {}
    run_id = await fleet.start("two_posts", grant_id, **options)
    async with running(fleet, catalogue) as runner:
        runner.loop.wake()
        await asyncio.wait_for(graphs.REACHED.wait(), DEADLINE_SECONDS)
        await fleet.execute(
            "UPDATE usage_units SET charge_asset = 'USD', charge_value = $1::text::numeric", price
        )
        graphs.RELEASED.set()
        run = await runner.finished(run_id)

    assert (run.state, graphs.HAPPENED["post"]) == ("SUCCEEDED", posts)
    denied = [e.tool_denied for e in await fleet.events(run_id) if e.HasField("tool_denied")]
    reasons = [each.reason for each in denied]
    assert reasons == [ErrorReason.ERROR_REASON_BUDGET_EXHAUSTED] * (2 - posts)


async def test_executions_that_are_not_charged_yet_count_at_the_newest_price(fleet: Fleet) -> None:
    grant_id = await fleet.grant()
    run_id = await fleet.start("any", grant_id)
    limits = Limits(Amount("USD", Decimal("0.5")), None)

    async def passes(tool: str = "post") -> bool:
        async with fleet.database.raw_tenant(TENANT) as tx:
            found = await budgets.tool_passes(tx, grant_id, run_id, tool, limits)
        return found is not None

    async def sent(charge: str | None) -> None:
        await fleet.execute(
            "INSERT INTO usage_units (call_id, tenant_id, run_id, attempt, grant_id, account_id,"
            " kind, node, tool, state, estimate, actual, occur_time, settle_time, charge_asset,"
            " charge_value) VALUES (gen_random_uuid(), 't1', $1, 1, $2, 'a', 'TOOL_CALL', 'n',"
            " 'post', 'SETTLED', '{}', '{}', cogni_now(), cogni_now(),"
            " CASE WHEN $3::text IS NOT NULL THEN 'USD' END, $3::text::numeric)",
            run_id,
            grant_id,
            charge,
        )

    seen = [await passes()]
    for charge in ("0.3", "0.1", None):
        await sent(charge)
        seen.append(await passes())

    # Nothing; 0.3 and 0.3 more; 0.4 and 0.1 more; and one whose charge is on its way.
    assert seen == [False, True, False, True]
    assert not await passes("search"), "nobody here knows what it costs"


async def test_a_priced_tool_is_charged_by_the_card_and_closed_with_its_run(
    fleet: Fleet, catalogue: Catalogue, graphs: Any, bank: Bank, identities: Identities
) -> None:
    prices = [UnitPrice(name="post", price="0.25")]
    card = PriceCard(asset="USD", markup="2", tool_prices=prices)
    await bank.ledger.stub(TENANT).CreatePriceCard(
        pb.CreatePriceCardRequest(request_id=new_id(), price_card=card)
    )
    graphs.RELEASED.set()
    grant_id = await fleet.grant("post", account_id=bank.account_id)
    run_id = await fleet.start("two_posts", grant_id)
    async with running(fleet, catalogue, holds=bank.holds) as runner:
        assert (await runner.finished(run_id)).state == "SUCCEEDED"
    tokens = identities.service_tokens("executor")
    channel = service_channel(bank.ledger.served.address, "ledger", tokens)
    delivery = UsageDelivery(fleet.database, LedgerClient(channel))

    assert await delivery.deliver() == 2
    await delivery.close()
    await channel.close()

    answer = await bank.ledger.stub(TENANT).GetRunStatement(
        pb.GetRunStatementRequest(run_id=run_id)
    )
    statement = answer.statement
    assert (statement.unit_count, statement.close.unit_count) == (2, 2)
    assert statement.close.state == RUN_CLOSE_STATE_COMPLETE
    assert statement.unpriced_unit_count == 0
    assert statement.totals[0].charged.value == "1"
    units = {str(unit["call_id"]): unit for unit in await _units(fleet)}
    for charge in statement.charges:
        unit = units.pop(charge.unit.source_reference)
        assert charge.unit.tool_call.tool == "post"
        assert charge.unit.tool_call.invocation_id == str(unit["invocation_id"])
        assert (charge.amount.value, charge.price_source) == ("0.5", PRICE_SOURCE_PRICE_CARD)
    assert not units
    used = (await _shown(fleet, run_id)).usage
    assert used == runs.RunUsage(tool_calls=2, costs=(Amount("USD", Decimal(1)),))
    async with fleet.database.raw_tenant(TENANT) as tx:
        outstanding = await usage.outstanding(tx, run_id)
    # What tools cost tells nothing of what the next model call will be charged.
    assert outstanding == usage.Outstanding({}, {}, Decimal(0), Decimal(0))
