"""One embedded stack of separate processes for the whole folder, and the world it acts on."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cogni.client import AsyncClient, ClientSettings
from services.standalone.demo import tenant
from tests.e2e.world import World, running_world


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the first test of a loaded machine the time that starting a stack takes."""
    for item in items:
        if Path(__file__).parent in item.path.parents and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def _running_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory.mktemp("e2e")) as world:
        yield world


@pytest.fixture(scope="package")
def world(_running_world: World) -> Iterator[World]:
    """The folder's one world. Its stack begins to stop behind the last test of the folder.

    So it neither takes a core from the other folders' tests nor lets them wait for its end.
    """
    yield _running_world
    _running_world.stack.process.send_signal(signal.SIGINT)


@pytest.fixture
async def client(world: World) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(ClientSettings.from_environment(world.environment)) as client:
        yield client


@pytest.fixture
async def team(world: World, client: AsyncClient) -> tenant.Tenant:
    """An account with funds, prices, and a connection to the AT Protocol server."""
    if world.team is None:
        world.team = await tenant.found(client, world.bluesky)
    return world.team


@pytest.fixture
async def grant_id(world: World, client: AsyncClient, team: tenant.Tenant) -> str:
    """A grant under which the digest may be read, written and posted."""
    return await tenant.grant(client, team, str(world.feed), may_post=True)


@pytest.fixture
def command_line(world: World) -> dict[str, str]:
    """The environment of somebody who types commands."""
    inherited = {name: value for name, value in os.environ.items() if "COGNI" not in name}
    return {**inherited, **world.environment, "COLUMNS": "300", "NO_COLOR": "1"}
