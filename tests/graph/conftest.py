"""Fixtures of the graph authors' library: a provider of models, and a metered run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.graph.provider_server import ProviderServer, provider_server
from tests.graph.recording_meter import RecordingMeter


@pytest.fixture
async def provider() -> AsyncIterator[ProviderServer]:
    async with provider_server() as server:
        yield server


@pytest.fixture
async def meter() -> RecordingMeter:
    return RecordingMeter(asyncio.get_running_loop())
