"""Kills a process in the middle of the digest's run, and says whether all is well in the end."""

from __future__ import annotations

from collections.abc import Sequence

from cogni.client import AsyncClient, from_json_message
from cogni.executor.v1.run_event_pb2 import RunEvent
from cogni.executor.v1.run_pb2 import RunState
from services.standalone.demo import tenant
from tests.e2e.waiting import bill, model_charges, tool_charges
from tests.e2e.world import World

RUNNER = "services.executor.worker"
SERVER = "-m services.executor"


async def killed(
    world: World, client: AsyncClient, grant_id: str, victim: str
) -> tuple[str, list[RunEvent]]:
    """A run between whose model call and post the victim dies; its events as one watch saw them."""
    run = await client.start_run(
        tenant.GRAPH, grant_id, {"source": str(world.feed), "cool_off_seconds": 3}
    )
    seen: list[RunEvent] = []
    async for event in client.watch_run(run.run_id):
        if _cools_off(event) and not any(_cools_off(each) for each in seen):
            assert world.stack.kill(victim)
        seen.append(event)
    return run.run_id, seen


async def check_once(
    world: World, client: AsyncClient, run_id: str, events: Sequence[RunEvent]
) -> None:
    """The run succeeded; its model was asked, its post made and each charged once."""
    statement = await bill(client, run_id, units=1)
    assert events[-1].finished.state == RunState.RUN_STATE_SUCCEEDED
    assert len([event for event in events if event.usage.model]) == 1
    assert len(model_charges(statement)) == 1
    tools = [charge.unit.tool_call.tool for charge in tool_charges(statement)]
    assert tools.count(tenant.POST_TOOL) == 1
    output = from_json_message(events[-1].finished.output)
    posts = await world.bluesky.posts(output["digest"])
    assert [post["uri"] for post in posts].count(output["post"]) == 1
    allowed = [event for event in events if event.tool_allowed.tool == tenant.POST_TOOL]
    assert len(allowed) == 1


def _cools_off(event: RunEvent) -> bool:
    return event.node_started.node == "cool_off"
