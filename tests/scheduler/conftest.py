"""Fixtures of the Scheduler's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.runtime.channels import service_channel
from services.scheduler.adapters.executor import ExecutorClient
from tests.scheduler.fake_executor import FakeExecutor
from tests.scheduler.world import World


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
