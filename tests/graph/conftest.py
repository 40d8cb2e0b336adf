"""Fixtures of the graph authors' library: a metered run without a runner."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cogni.graph.metering import metered_by


def _beside(name: str) -> ModuleType:
    # Test folders are no packages, so what they share is loaded by its path.
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
async def provider() -> AsyncIterator[Any]:
    async with _beside("provider_server").provider_server() as server:
        yield server


@pytest.fixture
async def meter() -> Any:
    return _beside("recording_meter").RecordingMeter(asyncio.get_running_loop())


@pytest.fixture
def run(meter: Any) -> Iterator[Any]:
    with metered_by(meter):
        yield meter
