"""No connection is left for the garbage collector, whatever the pools are told while it is used."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import text

from services.runtime.database import Database
from services.runtime.errors import ServiceError
from tests.databases import DatabaseFactory

_PID = "SELECT pg_backend_pid()"
#: The ways into either pool.
_ENTRIES = pytest.mark.parametrize("entry", ["tenant", "raw_tenant"])


@contextmanager
def _none_left_open() -> Iterator[None]:
    # Frozen, what earlier tests loaded is not walked each time.
    gc.freeze()
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            yield
            gc.collect()
    finally:
        gc.unfreeze()
    assert [str(each.message) for each in told] == []


async def _nothing() -> None:
    pass


async def _use(
    db: Database, entry: str, meanwhile: Callable[[], Awaitable[None]] = _nothing
) -> int:
    async with getattr(db, entry)("acme") as tx:
        await meanwhile()
        if entry == "raw_tenant":
            return int(await tx.fetchval(_PID))
        return int(await tx.scalar(text(_PID)))


@_ENTRIES
async def test_a_recycled_connection_goes_on_but_is_not_lent_again(
    database: DatabaseFactory, entry: str
) -> None:
    with _none_left_open():
        db = await database("ledger")
        idle = await _use(db, entry)
        assert await _use(db, entry) == idle
        assert await _use(db, entry, meanwhile=db.recycle) == idle
        fresh = await _use(db, entry)
        assert fresh != idle
        assert await _use(db, entry) == fresh


@_ENTRIES
async def test_closing_takes_the_connections_in_use_and_lets_nobody_have_another(
    database: DatabaseFactory, entry: str
) -> None:
    with _none_left_open():
        db = await database("ledger")
        with pytest.raises(ServiceError, match="cannot be reached"):
            await _use(db, entry, meanwhile=db.close)
        with pytest.raises(ServiceError, match="cannot be reached"):
            await _use(db, entry)


@_ENTRIES
async def test_closing_takes_the_connections_being_made(
    database: DatabaseFactory, entry: str
) -> None:
    url = (await database("ledger")).url
    with _none_left_open():
        for trial in range(8):
            db = Database.open(url, "ledger", application_name="tests")
            using = asyncio.create_task(_use(db, entry))
            await asyncio.sleep(trial * 0.002)
            await db.close()
            await asyncio.gather(using, return_exceptions=True)
