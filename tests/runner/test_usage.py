"""What model calls cost: pending before they are sent, and exact whatever happens after."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.executor.runner.catalogue import Catalogue
from services.executor.runs import Cancellation, CancelReason
from services.executor.store import events, runs, usage
from tests.graph.provider_server import ProviderServer, provider_server
from tests.runner.fleet import TENANT, Fleet
from tests.runner.running import DEADLINE_SECONDS, running


@pytest.fixture
async def provider() -> AsyncIterator[ProviderServer]:
    async with provider_server() as server:
        yield server


def _chat(graphs: Any, provider: ProviderServer) -> None:
    graphs.PROVIDER["api_base"] = provider.url


async def _units(fleet: Fleet) -> list[Any]:
    return await fleet.rows("SELECT * FROM usage_units ORDER BY occur_time")


async def test_each_provider_call_is_one_settled_unit_and_one_event(
    fleet: Fleet, catalogue: Catalogue, graphs: Any, provider: ProviderServer
) -> None:
    _chat(graphs, provider)
    run_id = await fleet.start("chatting")
    async with running(fleet, catalogue) as runner:
        run = await runner.finished(run_id)

    assert run.output == {"words": ["one two three"]}
    (unit,) = await _units(fleet)
    assert (unit["state"], unit["account_id"], unit["node"]) == ("SETTLED", "account-1", "chats")
    assert not unit["estimated"]
    assert provider.billed == [(11, 3)]
    log = await fleet.events(run_id)
    (event,) = [each.usage for each in log if each.HasField("usage")]
    assert (event.input_tokens, event.output_tokens) == (11, 3)
    assert event.call_id == str(unit["call_id"])
    text = "".join(each.message_delta.text for each in log if each.HasField("message_delta"))
    assert text == "one two three"


async def test_models_of_other_libraries_are_metered_too(
    fleet: Fleet, catalogue: Catalogue, graphs: Any
) -> None:
    paid = await fleet.start("strangers")
    unpaid = await fleet.start("strangers", await fleet.grant(account_id=None))
    async with running(fleet, catalogue) as runner:
        assert (await runner.finished(paid)).state == "SUCCEEDED"
        assert (await runner.finished(unpaid)).state == "FAILED"

    assert graphs.HAPPENED["stranger"] == 2
    reported, silent = await _units(fleet)
    assert (reported["node"], reported["estimated"]) == ("meets", False)
    assert '"input_tokens": 7' in reported["actual"]
    assert reported["cost_value"] > 0
    assert (silent["node"], silent["state"], silent["estimated"]) == (
        "meets_in_a_thread",
        "SETTLED",
        True,
    )


async def test_a_grant_without_an_account_pays_for_no_call(
    fleet: Fleet, catalogue: Catalogue, graphs: Any, provider: ProviderServer
) -> None:
    _chat(graphs, provider)
    run_id = await fleet.start("chatting", await fleet.grant(account_id=None))
    async with running(fleet, catalogue) as runner:
        run = await runner.finished(run_id)

    assert run.error is not None
    assert (run.error.reason, provider.requests) == ("BUDGET_EXHAUSTED", [])


async def test_a_run_cancelled_in_a_stream_ends_at_once_and_is_charged_exactly(
    fleet: Fleet, catalogue: Catalogue, graphs: Any, provider: ProviderServer
) -> None:
    _chat(graphs, provider)
    provider.hold_after = 1
    run_id = await fleet.start("chatting")
    async with running(fleet, catalogue) as runner:
        await _until_text(runner, fleet, run_id)
        async with fleet.database.raw_tenant(TENANT) as tx:
            cancellation = Cancellation(CancelReason.USER_REQUEST, "", "alice")
            await runs.request_cancel(tx, run_id, cancellation)
            await events.notify_runner(tx, [run_id])
        run = await runner.finished(run_id)
        (unit,) = await _units(fleet)
        assert (run.state, unit["state"]) == ("CANCELLED", "PENDING")

        provider.release.set()
        await asyncio.wait_for(asyncio.gather(*runner.pumps), DEADLINE_SECONDS)

    (unit,) = await _units(fleet)
    assert (unit["state"], unit["estimated"]) == ("SETTLED", False)
    assert '"output_tokens": 3' in unit["actual"]
    assert provider.billed == [(11, 3)]
    assert (await fleet.kinds(run_id)).count("finished") == 1


async def test_a_call_repeated_after_a_crash_is_charged_too_and_tagged(
    fleet: Fleet, catalogue: Catalogue, graphs: Any, provider: ProviderServer
) -> None:
    _chat(graphs, provider)
    provider.hold_after = 1
    run_id = await fleet.start("chatting")
    async with running(fleet, catalogue) as runner:
        await _until_text(runner, fleet, run_id)
        await fleet.execute(
            "UPDATE run_leases SET epoch = epoch + 1, holder = 'dead',"
            " expire_time = cogni_now() - interval '1 hour'"
        )
        provider.release.set()
        run = await runner.finished(run_id)

    assert run.state == "SUCCEEDED"
    units = await _units(fleet)
    assert [(u["attempt"], u["rework"], u["state"]) for u in units] == [
        (1, False, "SETTLED"),
        (2, True, "SETTLED"),
    ]
    assert provider.billed == [(11, 3), (11, 3)]


async def test_a_call_whose_runner_died_is_settled_from_its_estimate(fleet: Fleet) -> None:
    run_id = await fleet.start("noop")
    grant_id = (await fleet.run(run_id)).grant_id
    await fleet.execute(
        "INSERT INTO usage_units (call_id, tenant_id, run_id, attempt, grant_id, account_id, kind,"
        " node, model, provider, state, estimate, occur_time) VALUES (gen_random_uuid(), 't1', $1,"
        " 1, $2, 'a', 'LLM_CALL', 'n', 'm', 'p', 'PENDING',"
        ' \'{"input_tokens": 5, "output_tokens": 9, "cost": {"asset": "USD", "value": "0.5"}}\','
        " cogni_now() - interval '1 hour')",
        run_id,
        grant_id,
    )

    async with fleet.database.raw_jobs() as tx:
        settled = await usage.settle_stale(tx, 600, 10)
        again = await usage.settle_stale(tx, 600, 10)

    (unit,) = await _units(fleet)
    assert (settled, again) == (1, 0)
    assert (unit["state"], unit["estimated"], str(unit["cost_value"])) == ("SETTLED", True, "0.5")


async def _until_text(runner: Any, fleet: Fleet, run_id: str) -> None:
    runner.loop.wake()
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            if "message_delta" in await fleet.kinds(run_id):
                return
            await asyncio.sleep(0.02)
