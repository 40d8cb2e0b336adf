"""Fixtures of the runner: an executor's database, runs in it, and a journal that commits."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.executor.runner.journal import Journal
from services.runtime.database import Database
from tests.conftest import DatabaseFactory

sys.path.insert(0, str(Path(__file__).parent))

from fleet import Fleet


@pytest.fixture
async def executor_database(database: DatabaseFactory) -> Database:
    return await database("executor")


@pytest.fixture
async def fleet(executor_database: Database) -> Fleet:
    return Fleet(executor_database)


@pytest.fixture
async def journal(executor_database: Database) -> AsyncIterator[Journal]:
    journal = Journal(executor_database)
    running = asyncio.create_task(journal.run())
    yield journal
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
