"""The main job: a schedule fires, a graph calls a model and posts, and the bill is exact."""

from __future__ import annotations

from cogni.client import AsyncClient, from_json_message
from cogni.connections.v1.access_record_pb2 import AccessAction, AccessDecision
from cogni.connections.v1.connections_service_pb2 import ListAccessRecordsRequest
from cogni.executor.v1.executor_service_pb2 import GetRunRequest
from cogni.executor.v1.run_pb2 import RunState
from cogni.ledger.v1.ledger_service_pb2 import GetReceiptRequest
from services.standalone.demo import tenant
from tests.e2e.waiting import bill, model_charges, run_of_slot, tool_charges, whole_log
from tests.e2e.world import HANDLE, PROMPT_CANARY, World


async def test_a_schedule_fires_a_run_that_calls_a_model_posts_and_is_charged_once(
    world: World, client: AsyncClient, grant_id: str
) -> None:
    schedule_id = await tenant.schedule(client, grant_id, {"source": str(world.feed)})

    run_id = await run_of_slot(client, schedule_id)
    events = await whole_log(client, run_id)
    statement = await bill(client, run_id, units=1)

    output = from_json_message(events[-1].finished.output)
    assert events[-1].finished.state == RunState.RUN_STATE_SUCCEEDED
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert PROMPT_CANARY in output["digest"]
    # The tokens came one by one, and together they are the digest.
    deltas = [event.message_delta.text for event in events if event.HasField("message_delta")]
    assert len(deltas) > 1
    assert "".join(deltas) == output["digest"]
    assert [post["uri"] for post in await world.bluesky.posts(output["digest"])].count(
        output["post"]
    ) == 1
    usage = [event.usage for event in events if event.HasField("usage")]
    charged = [charge.unit.source_reference for charge in statement.charges]
    assert sorted(charged) == sorted(unit.call_id for unit in usage)
    [charge] = model_charges(statement)
    assert charge.unit.source_reference in [unit.call_id for unit in usage if unit.model]
    assert not charge.unit.estimated
    assert float(charge.amount.value) > 0
    # The team's price card lists the one, with a markup of a fifth, and not the other.
    prices = {c.unit.tool_call.tool: c.amount.value for c in tool_charges(statement)}
    assert prices == {tenant.READ_TOOL: "0", tenant.POST_TOOL: "0.0012"}
    assert statement.unpriced_unit_count == 0


async def test_events_reach_a_watcher_while_the_run_is_still_at_work(
    world: World, client: AsyncClient, grant_id: str
) -> None:
    run = await client.start_run(
        tenant.GRAPH, grant_id, {"source": str(world.feed), "cool_off_seconds": 2}
    )

    states_at = {}
    async for event in client.watch_run(run.run_id):
        kind = event.WhichOneof("event")
        if kind in ("message_delta", "usage") and kind not in states_at:
            seen = await client.executor.GetRun(GetRunRequest(run_id=run.run_id))
            states_at[kind] = seen.run.state

    assert states_at == {
        "message_delta": RunState.RUN_STATE_RUNNING,
        "usage": RunState.RUN_STATE_RUNNING,
    }


async def test_the_credential_was_leased_for_one_invocation_and_its_use_is_on_record(
    world: World, client: AsyncClient, grant_id: str, team: tenant.Tenant
) -> None:
    run = await client.start_run(tenant.GRAPH, grant_id, {"source": str(world.feed)})
    events = await whole_log(client, run.run_id)

    request = ListAccessRecordsRequest(connection_id=team.connection_id, run_id=run.run_id)
    records = (await client.connections.ListAccessRecords(request)).records

    posted = next(
        event.tool_invoked.invocation_id
        for event in events
        if event.tool_invoked.tool == tenant.POST_TOOL
    )
    lease = AccessAction.ACCESS_ACTION_LEASE_CREDENTIAL
    leased = [each for each in records if each.action == lease]
    assert [(each.invocation_id, each.tool, each.decision) for each in leased] == [
        (posted, tenant.POST_TOOL, AccessDecision.ACCESS_DECISION_ALLOWED)
    ]


async def test_a_tool_the_grant_does_not_name_is_denied_and_nothing_is_posted(
    world: World, client: AsyncClient, team: tenant.Tenant
) -> None:
    read_only = await tenant.grant(client, team, str(world.feed), may_post=False)
    run = await client.start_run(tenant.GRAPH, read_only, {"source": str(world.feed), "limit": 1})

    events = await whole_log(client, run.run_id)

    output = from_json_message(events[-1].finished.output)
    denied = [event.tool_denied for event in events if event.HasField("tool_denied")]
    assert [each.tool for each in denied] == [tenant.POST_TOOL]
    assert denied[0].audit_record_id
    assert output["post"].startswith("not posted")
    assert await world.bluesky.posts(output["digest"]) == []
    assert HANDLE not in output["post"]


async def test_the_charge_has_a_receipt(world: World, client: AsyncClient, grant_id: str) -> None:
    run = await client.start_run(tenant.GRAPH, grant_id, {"source": str(world.feed)})
    await whole_log(client, run.run_id)
    [charge] = model_charges(await bill(client, run.run_id, units=1))

    receipt = await client.ledger.GetReceipt(
        GetReceiptRequest(
            source_system=charge.unit.source_system,
            source_reference=charge.unit.source_reference,
        )
    )

    assert receipt.receipt.charge == charge
    assert receipt.receipt.tree_head.tree_size > 0
