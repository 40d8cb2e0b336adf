"""A test's database holds nothing of the test before, or is a new one."""

from __future__ import annotations

from datetime import timedelta

import asyncpg
import pytest

from services.runtime.database import Database
from tests.databases import Clock, Databases

_WRITE = "INSERT INTO connections.outbox (tenant_id, topic, payload) VALUES ('a', 'b', '{}')"
_READ = "SELECT count(*), (SELECT is_called FROM connections.outbox_id_seq) FROM connections.outbox"
_NOW = "SELECT connections.cogni_now() - now()"


@pytest.fixture
def own(postgres: str) -> Databases:
    """Databases whose clones no other test was given."""
    return Databases(postgres)


async def _clone(own: Databases) -> str:
    return await own.clone("connections", "services.connections")


async def _ask(own: Databases, url: str, statement: str) -> asyncpg.Record:
    admin = await asyncpg.connect(own.admin_url(url))
    try:
        return await admin.fetchrow(statement)
    finally:
        await admin.close()


async def test_what_a_test_wrote_is_gone_for_the_next(own: Databases) -> None:
    url = await _clone(own)
    new = await _ask(own, url, _READ)
    await _ask(own, url, _WRITE)

    await own.give_back(url)

    assert await _clone(own) == url
    assert await _ask(own, url, _READ) == new
    await own.drop(url)


async def test_a_clock_that_a_test_moved_is_right_again(own: Databases) -> None:
    url = await _clone(own)
    database = Database.open(url, "connections", application_name="tests")
    await Clock(own).advance(database, timedelta(hours=1))
    await database.close()
    assert (await _ask(own, url, _NOW))[0] >= timedelta(hours=1)

    await own.give_back(url)

    assert (await _ask(own, await _clone(own), _NOW))[0] < timedelta(minutes=1)
    await own.drop(url)


async def test_a_connection_left_open_writes_nothing_into_the_next_tests(own: Databases) -> None:
    url = await _clone(own)
    left = await asyncpg.connect(own.admin_url(url))
    transaction = left.transaction()
    await transaction.start()
    await left.execute(_WRITE)

    await own.give_back(url)

    try:
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await transaction.commit()
    finally:
        left.terminate()
    assert (await _ask(own, await _clone(own), _READ))[0] == 0
    await own.drop(url)


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE connections.outbox DROP CONSTRAINT outbox_pkey",
        "GRANT SELECT ON connections.outbox TO public",
        "DROP TABLE connections.outbox",
    ],
)
async def test_a_changed_schema_is_given_to_nobody_else(own: Databases, change: str) -> None:
    url = await _clone(own)
    admin = await asyncpg.connect(own.admin_url(url))
    # As tests do that take constraints away; it silences ordinary triggers.
    await admin.execute(f"SET session_replication_role = replica; {change}")
    await admin.close()

    await own.give_back(url)

    new = await _clone(own)
    assert new != url
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await _ask(own, url, "SELECT 1")
    await own.drop(new)
