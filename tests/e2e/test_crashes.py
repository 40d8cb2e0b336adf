"""kill -9 at a chosen moment of a run: it goes on, whoever watches sees no seam, once is once."""

from __future__ import annotations

import pytest

from cogni.client import AsyncClient, from_json_message
from cogni.executor.v1.run_event_pb2 import RunEvent
from cogni.executor.v1.run_pb2 import RunState
from services.standalone.demo import tenant
from tests.e2e.conftest import World
from tests.e2e.waiting import bill, model_charges, tool_charges, whole_log

RUNNER = "services.executor.worker"
SERVER = "-m services.executor"


def _cools_off(event: RunEvent) -> bool:
    return event.node_started.node == "cool_off"


def _bytes(events: list[RunEvent]) -> list[bytes]:
    return [event.SerializeToString() for event in events]


async def _killed(
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


@pytest.mark.parametrize("victim", [RUNNER, SERVER])
async def test_after_kill_9_the_run_goes_on_and_posts_and_charges_once(
    world: World, client: AsyncClient, grant_id: str, victim: str
) -> None:
    run_id, seen = await _killed(world, client, grant_id, victim)
    statement = await bill(client, run_id, units=1)

    assert seen[-1].finished.state == RunState.RUN_STATE_SUCCEEDED
    # A machine too busy to renew a lease in time costs an attempt as well, and nothing else.
    assert max(event.attempt for event in seen) >= (2 if victim == RUNNER else 1)
    # The model answered before the crash and was not asked again.
    assert len([event for event in seen if event.usage.model]) == 1
    assert len(model_charges(statement)) == 1
    tools = [charge.unit.tool_call.tool for charge in tool_charges(statement)]
    assert tools.count(tenant.POST_TOOL) == 1
    output = from_json_message(seen[-1].finished.output)
    posts = await world.bluesky.posts(output["digest"])
    assert [post["uri"] for post in posts].count(output["post"]) == 1
    allowed = [event for event in seen if event.tool_allowed.tool == tenant.POST_TOOL]
    assert len(allowed) == 1


async def test_a_watch_through_a_restart_of_the_server_gives_the_same_bytes_as_one_after_it(
    world: World, client: AsyncClient, grant_id: str
) -> None:
    run_id, seen = await _killed(world, client, grant_id, SERVER)

    again = await whole_log(client, run_id)

    assert [event.seq for event in seen] == list(range(1, len(seen) + 1))
    assert _bytes(seen) == _bytes(again)
