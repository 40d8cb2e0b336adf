"""One embedded stack of separate processes for the whole folder, and the world it acts on."""

from __future__ import annotations

import os
import secrets
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pytest

from bench.embedded import STOP_SECONDS_MAX, Embedded, embedded
from cogni.client import AsyncClient, ClientSettings
from services.standalone import pds
from services.standalone.demo import tenant
from services.standalone.demo.outside import MODEL_KEYS, Bluesky
from tests.e2e.collector import Collector, collecting

GRAPHS = Path(__file__).parents[2] / "examples" / "langgraph.json"
TENANT = "e2e"
HANDLE = "e2e.test"
#: Stands in what the model is asked and answers: it may be stored with the run, never in spans.
PROMPT_CANARY = "Canaries sing in prompts only"
FEED = f"""<?xml version="1.0"?>
<feed xmlns="http://www.w3.org/2005/Atom">
  <entry><title>{PROMPT_CANARY}</title></entry>
  <entry><title>Servers start a second sooner</title></entry>
</feed>
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the first test of a loaded machine the time that starting a stack takes."""
    for item in items:
        if Path(__file__).parent in item.path.parents and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(300))


@dataclass
class World:
    """The stack, what is outside of it, and what must stay inside."""

    stack: Embedded
    collector: Collector
    bluesky: Bluesky
    feed: Path
    #: The session tokens that the AT Protocol server has issued.
    sessions: list[str]
    team: tenant.Tenant | None = field(default=None)

    @cached_property
    def environment(self) -> dict[str, str]:
        """What a client of the tenant has in its environment: asking costs a process each time."""
        return self.stack.environment(TENANT)


@pytest.fixture(scope="session")
def _running_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("e2e")
    feed = folder / "feed.atom"
    feed.write_text(FEED)
    sessions: list[str] = []
    with pytest.MonkeyPatch.context() as patch, collecting() as collector:
        for name in (*MODEL_KEYS, "DIGEST_MODEL"):
            patch.delenv(name, raising=False)
        issue = pds.Pds._token

        def remember(self: pds.Pds, scope: str, seconds: int) -> str:
            sessions.append(issue(self, scope, seconds))
            return sessions[-1]

        patch.setattr(pds.Pds, "_token", remember)
        password = secrets.token_urlsafe(24)
        server = pds.serve(0, folder / "pds.json", HANDLE, password)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        settings = {
            "COGNI_CONNECTIONS_EGRESS_ALLOW": url.removeprefix("http://"),
            # A crash of the runner is noticed when its lease is over, and a runner on a busy
            # machine must be able to renew it.
            "COGNI_RUNNER_LEASE_SECONDS": "6",
        }
        try:
            with embedded(GRAPHS, settings, {"COGNI_OTLP_ENDPOINT": collector.url}) as stack:
                bluesky = Bluesky(url, HANDLE, password, None)
                yield World(stack, collector, bluesky, feed, sessions)
                stack.process.wait(STOP_SECONDS_MAX)
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


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
