"""kill -9 of each process of the stack, one by one, at the worst moment of the main job."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator

import pytest

from cogni.client import AsyncClient, ClientSettings
from services.standalone.demo import tenant
from tests.e2e.crashing import RUNNER, SERVER, check_once, killed
from tests.e2e.waiting import run_of_slot, whole_log
from tests.e2e.world import World, running_world

LEDGER, CONNECTIONS = "services.ledger", "services.connections"
SCHEDULER, CLOCK, STARTER = (
    "-m services.scheduler",
    "-m services.scheduler clock",
    "services.scheduler.worker",
)
REDIS, POSTGRES = "redis-server", "bin/postgres"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory.mktemp("main-job")) as world:
        yield world
        world.stack.process.send_signal(signal.SIGINT)


@pytest.fixture
async def client(world: World) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(ClientSettings.from_environment(world.environment)) as client:
        yield client


@pytest.fixture
async def grant_id(world: World, client: AsyncClient) -> str:
    if world.team is None:
        world.team = await tenant.found(client, world.bluesky)
    return await tenant.grant(client, world.team, str(world.feed), may_post=True)


@pytest.mark.parametrize(
    "victim", [RUNNER, SERVER, LEDGER, CONNECTIONS, SCHEDULER, CLOCK, STARTER, REDIS, POSTGRES]
)
async def test_between_the_model_call_and_the_post(
    world: World, client: AsyncClient, grant_id: str, victim: str
) -> None:
    run_id, seen = await killed(world, client, grant_id, victim)

    await check_once(world, client, run_id, seen)
    assert [event.seq for event in seen] == list(range(1, len(seen) + 1))


@pytest.mark.parametrize("victim", [SCHEDULER, CLOCK, STARTER, SERVER, REDIS, POSTGRES])
async def test_before_the_schedule_fires(
    world: World, client: AsyncClient, grant_id: str, victim: str
) -> None:
    schedule_id = await tenant.schedule(client, grant_id, {"source": str(world.feed)})
    assert world.stack.kill(victim)

    run_id = await run_of_slot(client, schedule_id)

    await check_once(world, client, run_id, await whole_log(client, run_id))
