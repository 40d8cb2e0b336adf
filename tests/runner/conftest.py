"""Fixtures of the runner: an executor's database, runs in it, and a journal that commits."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.executor.runner.catalogue import Catalogue
from services.executor.runner.journal import Journal
from services.runtime.database import Database
from tests.conftest import DatabaseFactory
from tests.plugins.identities import Identities
from tests.plugins.serving import ServeService
from tests.runner.bank import Bank, opened_bank
from tests.runner.fleet import Fleet
from tests.runner.running import write_project


@pytest.fixture
async def executor_database(database: DatabaseFactory) -> Database:
    return await database("executor")


@pytest.fixture
async def fleet(executor_database: Database) -> Fleet:
    return Fleet(executor_database)


@pytest.fixture
async def bank(
    database: DatabaseFactory, serve_service: ServeService, identities: Identities
) -> AsyncIterator[Bank]:
    """A Ledger with an account that pays."""
    async with opened_bank(database, serve_service, identities) as bank:
        yield bank


@pytest.fixture
async def journal(executor_database: Database) -> AsyncIterator[Journal]:
    journal = Journal(executor_database)
    running = asyncio.create_task(journal.run())
    yield journal
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.fixture
def catalogue(tmp_path: Path) -> Iterator[Catalogue]:
    """The graphs of graphs.py, imported anew for each test: their counters start at zero."""
    before = list(sys.path)
    loaded = Catalogue.load(write_project(tmp_path))
    yield loaded
    sys.path[:] = before
    for name in [name for name in sys.modules if name.startswith("cogni_graphs_")]:
        del sys.modules[name]


@pytest.fixture
def graphs(catalogue: Catalogue) -> Any:
    """The module that the catalogue has imported."""
    (module,) = (m for name, m in sys.modules.items() if name.startswith("cogni_graphs_"))
    return module
