"""kill -9 at a chosen moment of a run: it goes on, whoever watches sees no seam, once is once."""

from __future__ import annotations

from cogni.client import AsyncClient
from cogni.executor.v1.run_event_pb2 import RunEvent
from tests.e2e.crashing import RUNNER, SERVER, check_once, killed
from tests.e2e.waiting import whole_log
from tests.e2e.world import World


def _bytes(events: list[RunEvent]) -> list[bytes]:
    return [event.SerializeToString() for event in events]


# The other processes: tests/chaos/test_main_job.py.
async def test_after_kill_9_of_the_runner_the_run_goes_on_and_posts_and_charges_once(
    world: World, client: AsyncClient, grant_id: str
) -> None:
    run_id, seen = await killed(world, client, grant_id, RUNNER)

    await check_once(world, client, run_id, seen)
    assert max(event.attempt for event in seen) >= 2


async def test_a_watch_through_kill_9_of_the_server_gives_the_same_bytes_as_one_after_it(
    world: World, client: AsyncClient, grant_id: str
) -> None:
    run_id, seen = await killed(world, client, grant_id, SERVER)

    await check_once(world, client, run_id, seen)
    again = await whole_log(client, run_id)

    assert [event.seq for event in seen] == list(range(1, len(seen) + 1))
    assert _bytes(seen) == _bytes(again)
