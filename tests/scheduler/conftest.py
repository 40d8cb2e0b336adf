"""Fixtures of the Scheduler's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from cogni.scheduler.v1 import scheduler_service_pb2_grpc as stubs
from services.runtime.channels import service_channel
from services.runtime.drain import Drain
from services.runtime.listen import Listener
from services.scheduler.adapters.executor import ExecutorClient
from services.scheduler.composition import Standing, application
from tests.scheduler.fake_executor import FakeExecutor
from tests.scheduler.world import SCOPES, World


@pytest.fixture
async def executor() -> AsyncIterator[FakeExecutor]:
    """A gRPC Executor; its address is `executor.address`."""
    fake = FakeExecutor()
    server, address = await fake.serve()
    fake.address = address  # type: ignore[attr-defined]
    yield fake
    await server.stop(None)


@pytest.fixture
async def world(
    database: Any, clock: Any, executor: FakeExecutor, identities: Any
) -> AsyncIterator[World]:
    """A Scheduler moved by hand."""
    channel = service_channel(
        executor.address,  # type: ignore[attr-defined]
        "executor",
        identities.service_tokens("scheduler"),
    )
    yield World(await database("scheduler"), executor, ExecutorClient(channel), clock)
    await channel.close()


@pytest.fixture
async def served(world: Any, serve_service: Any) -> AsyncIterator[Any]:
    """The world's Scheduler over gRPC; its application is `served.application`."""
    drain = Drain()
    listener = Listener(world.db.url)
    app = application(
        Standing(world.db, world.client),
        lambda: None,
        listener,
        drain,
        {"listener": listener.run},
    )
    running = await serve_service("scheduler", app, drain=drain)
    running.application = app
    return running


@pytest.fixture
def scheduler(served: Any, identities: Any) -> Any:
    """alice's stub of it."""
    return stubs.SchedulerServiceStub(served.channel(identities.user_token(scopes=SCOPES)))
