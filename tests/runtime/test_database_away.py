"""What a Database says of a server that is away, full, or takes too long."""

import asyncio
import contextlib
from dataclasses import replace
from datetime import timedelta
from urllib.parse import urlsplit

import pytest
from sqlalchemy import text

from services.runtime.database import Database
from services.runtime.errors import ErrorKind, ServiceError
from services.runtime.failures import DatabaseUnusableError
from services.runtime.pools import DatabaseLimits
from services.standalone.ports import free_port
from tests.runtime.test_database import ONE_CONNECTION, count, write


@pytest.fixture
async def db(database):
    return await database("notes", "tests.runtime.migrated")


async def test_a_full_pool_is_unavailable_after_its_wait(database):
    # The wait covers connecting too, which a busy machine makes slow.
    limits = replace(ONE_CONNECTION, wait_for_connection=timedelta(seconds=0.5))
    narrow = await database("notes", "tests.runtime.migrated", limits=limits)
    for transaction in (narrow.tenant, narrow.raw_tenant):
        async with transaction("t1"):
            with pytest.raises(ServiceError) as refusal:
                await enter(transaction("t1"))
        assert refusal.value.kind == ErrorKind.UNAVAILABLE


async def enter(transaction):
    async with transaction as tx:
        return tx


@contextlib.asynccontextmanager
async def shut_down_after_the_login(url):
    """The URL of a PostgreSQL that says so of itself as soon as it has let a client in."""
    server = urlsplit(url)
    ready, said = b"Z\0\0\0\5I", b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0"
    gone = b"E" + (len(said) + 4).to_bytes(4) + said

    async def forward(reader, writer):
        while part := await reader.read(65_536):
            writer.write(part + gone if part.endswith(ready) else part)
        writer.close()

    async def relay(reader, writer):
        theirs = await asyncio.open_connection(server.hostname, server.port)
        with contextlib.suppress(ConnectionError):
            await asyncio.gather(forward(reader, theirs[1]), forward(theirs[0], writer))

    listening = await asyncio.start_server(relay, "127.0.0.1", 0)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        yield url.replace(f":{server.port}/", f":{port}/")


async def test_a_server_that_shuts_down_right_after_the_login_is_unavailable(db):
    async with shut_down_after_the_login(db.url) as url:
        startled = Database.open(url, "notes")
        for transaction in (startled.tenant, startled.raw_tenant):
            with pytest.raises(ServiceError) as refusal:
                await enter(transaction("t1"))
            assert refusal.value.kind == ErrorKind.UNAVAILABLE
        await startled.close()


async def test_a_database_that_is_away_is_unavailable_and_named_without_its_password():
    port = free_port()
    db = Database.open(f"postgresql://me:secret@127.0.0.1:{port}/cogni", "notes")
    for transaction in (db.tenant, db.raw_tenant):
        with pytest.raises(ServiceError) as refusal:
            await enter(transaction("t1"))
        assert refusal.value.kind == ErrorKind.UNAVAILABLE
    with pytest.raises(DatabaseUnusableError, match=f"127.0.0.1:{port}.*cannot be") as unusable:
        await db.check()
    assert "secret" not in str(unusable.value)
    await db.close()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("service_login:service@", "service_login:wrong@"), "refused the login"),
        (("/test_", "/absent_test_"), "no such database"),
        (("", ""), "run the service's migrate command first"),
    ],
)
async def test_why_the_database_cannot_be_used_is_said(db, change, said):
    schema = "notes" if all(change) else "never_migrated"
    away = Database.open(db.url.replace(*change), schema)
    with pytest.raises(DatabaseUnusableError, match=said):
        await away.check()
    await away.close()


async def test_a_good_database_passes_the_check(db):
    await db.check()


async def test_connections_cut_while_idle_are_replaced_unnoticed(db, disconnect):
    await write(db, "t1")
    assert await count(db) == 1

    await disconnect(db, "tests")

    await write(db, "t1")
    assert await count(db) == 2


async def test_a_connection_cut_inside_a_transaction_is_unavailable(db, disconnect):
    async def cut_inside(transaction, statement):
        async with transaction as tx:
            await tx.execute(statement)
            await disconnect(db, "tests")
            await tx.execute(statement)

    for transaction, statement in (
        (db.tenant("t1"), text("SELECT 1")),
        (db.raw_tenant("t1"), "SELECT 1"),
    ):
        with pytest.raises(ServiceError) as refusal:
            await cut_inside(transaction, statement)
        assert refusal.value.kind == ErrorKind.UNAVAILABLE


async def test_a_lock_held_too_long_is_unavailable(database):
    db = await database(
        "notes", "tests.runtime.migrated", limits=DatabaseLimits(lock=timedelta(milliseconds=20))
    )
    await write(db, "t1")

    async def lock(transaction, wrap):
        async with transaction as tx:
            await tx.execute(wrap("UPDATE notes SET text = 'y'"))
            yield

    async with db.tenant("t1") as holder:
        await holder.execute(text("UPDATE notes SET text = 'y'"))
        for transaction, wrap in ((db.tenant("t1"), text), (db.raw_tenant("t1"), str)):
            with pytest.raises(ServiceError) as refusal:
                await anext(lock(transaction, wrap))
            assert refusal.value.kind == ErrorKind.UNAVAILABLE


async def test_a_statement_that_takes_too_long_is_unavailable(database):
    limits = DatabaseLimits(statement=timedelta(milliseconds=20))
    db = await database("notes", "tests.runtime.migrated", limits=limits)

    async def sleep():
        async with db.tenant("t1") as tx:
            await tx.execute(text("SELECT pg_sleep(5)"))

    with pytest.raises(ServiceError) as refusal:
        await sleep()
    assert refusal.value.kind == ErrorKind.UNAVAILABLE


async def test_a_server_without_disk_or_memory_is_unavailable(db):
    """The runner waits for such a server; of any other failure it ends the run."""

    async def full(transaction, wrap, sqlstate):
        raising = f"DO $$ BEGIN RAISE EXCEPTION 'full' USING ERRCODE = '{sqlstate}'; END $$"
        async with transaction("t1") as tx:
            await tx.execute(wrap(raising))

    for transaction, wrap in ((db.tenant, text), (db.raw_tenant, str)):
        for sqlstate in ("53100", "53200", "53400"):
            with pytest.raises(ServiceError) as refusal:
                await full(transaction, wrap, sqlstate)
            assert refusal.value.kind == ErrorKind.UNAVAILABLE


@pytest.mark.parametrize(
    ("limits", "stopped_at"),
    [
        (DatabaseLimits(idle_in_transaction=timedelta(milliseconds=200)), "between statements"),
        # Its session counts as active, though it is at no statement.
        (DatabaseLimits(statement=timedelta(milliseconds=100)), "within a statement"),
    ],
)
async def test_a_process_stopped_inside_a_transaction_loses_its_locks(database, limits, stopped_at):
    """It must not hold a row for as long as a lease."""
    db = await database("notes", "tests.runtime.migrated")
    await write(db, "t1")
    hasty = Database.open(db.url, "notes", limits=limits)

    async def stop():
        async with hasty.raw_tenant("t1") as stopped:
            await stopped.execute("UPDATE notes SET text = 'stopped'")
            if stopped_at == "within a statement":
                await stopped.prepare("SELECT 1")
            # Waits for the row that the stopped transaction holds.
            async with db.tenant("t1") as other:
                await other.execute(text("UPDATE notes SET text = 'other'"))

    with pytest.raises(ServiceError) as refusal:
        await stop()
    await hasty.close()

    assert refusal.value.kind == ErrorKind.UNAVAILABLE
    async with db.tenant("t1") as tx:
        assert await tx.scalar(text("SELECT text FROM notes")) == "other"
