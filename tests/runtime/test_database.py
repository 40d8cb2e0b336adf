"""The transactions of Database: who they are, what they see, and how they end."""

import asyncio
import contextlib
from datetime import timedelta

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from services.runtime.errors import ServiceError
from services.runtime.pools import DatabaseLimits, NothingCommittedError
from services.runtime.settings.groups import DatabaseSettings

ONE_CONNECTION = DatabaseLimits(
    app_connections_max=1,
    jobs_connections_max=1,
    raw_connections_max=1,
)


@pytest.fixture
async def db(database):
    return await database("notes", "tests.runtime.migrated")


@pytest.fixture
async def narrow(database):
    return await database("notes", "tests.runtime.migrated", limits=ONE_CONNECTION)


async def write(db, *tenants):
    for tenant in tenants:
        async with db.tenant(tenant) as tx:
            await tx.execute(
                text("INSERT INTO notes (tenant_id, text) VALUES (:t, 'x')"), {"t": tenant}
            )


async def count(db):
    async with db.raw_jobs() as tx:
        return await tx.fetchval("SELECT count(*) FROM notes")


async def test_a_transaction_sees_the_rows_of_its_tenants_alone(db):
    await write(db, "t1", "t2", "t3")

    async with db.tenant("t1", "t3") as tx:
        seen = await tx.scalars(text("SELECT tenant_id FROM notes ORDER BY id"))
    assert seen.all() == ["t1", "t3"]
    async with db.raw_tenant("t2") as tx:
        assert await tx.fetchval("SELECT array_agg(tenant_id) FROM notes") == ["t2"]


async def test_jobs_see_every_tenant(db):
    await write(db, "t1", "t2")

    async with db.jobs() as tx:
        assert await tx.scalar(text("SELECT count(*) FROM notes")) == 2
    async with db.raw_jobs() as tx:
        assert await tx.fetchval("SELECT count(*) FROM notes") == 2


async def test_a_row_of_an_unbound_tenant_cannot_be_written(db):
    async def write_for_another(transaction):
        async with transaction as tx:
            await tx.execute(text("INSERT INTO notes (tenant_id, text) VALUES ('t2', 'x')"))

    with pytest.raises(Exception, match="row-level security"):
        await write_for_another(db.tenant("t1"))


async def test_a_binding_does_not_outlive_its_transaction(narrow):
    # One connection in each pool: what follows runs on the same one.
    await write(narrow, "t1")
    async with narrow.tenant("t1") as tx:
        backend = await tx.scalar(text("SELECT pg_backend_pid()"))
    engine = narrow._app.engine
    async with engine.connect() as unbound:
        assert await unbound.scalar(text("SELECT pg_backend_pid()")) == backend
        assert await unbound.scalar(text("SELECT count(*) FROM notes")) == 0

    async with narrow.raw_tenant("t1") as tx:
        backend = await tx.fetchval("SELECT pg_backend_pid()")
    async with narrow._app.raw() as unbound:
        assert await unbound.fetchval("SELECT pg_backend_pid()") == backend
        assert await unbound.fetchval("SELECT count(*) FROM notes") == 0


async def test_a_cancelled_transaction_gives_its_connection_back_unbound_and_undone(narrow):
    complaints = []
    asyncio.get_running_loop().set_exception_handler(lambda _, each: complaints.append(each))
    for transaction in (narrow.tenant, narrow.raw_tenant):
        inside = asyncio.Event()

        async def hang(transaction=transaction, inside=inside):
            async with transaction("t1") as tx:
                statement = "INSERT INTO notes (tenant_id, text) VALUES ('t1', 'undone')"
                await tx.execute(text(statement) if transaction == narrow.tenant else statement)
                inside.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(hang())
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await write(narrow, "t1")

    assert await count(narrow) == 2
    assert complaints == []


async def test_a_statement_cancelled_while_it_runs_does_not_poison_the_pool(narrow):
    async def sleep():
        async with narrow.raw_tenant("t1") as tx:
            await tx.execute("SELECT pg_sleep(30)")

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await sleep()

    async with narrow.raw_tenant("t1") as tx:
        assert await tx.fetchval("SELECT 1") == 1


async def test_a_statement_that_nobody_answers_in_time_leaves_the_database_unavailable(narrow):
    with pytest.raises(ServiceError) as caught:
        async with narrow.raw_tenant("t1") as tx:
            await tx.execute("SELECT pg_sleep(30)", timeout=0.05)

    assert caught.value.kind == "UNAVAILABLE"
    async with narrow.raw_tenant("t1") as tx:
        assert await tx.fetchval("SELECT 1") == 1


@pytest.mark.parametrize("tenants", [(), ("",), ("t1,t2",), ("T1",), ("t1'; --",), ("-t",)])
async def test_what_is_no_tenant_id_is_refused(db, tenants):
    for transaction in (db.tenant, db.raw_tenant):
        with pytest.raises(ValueError, match="tenant"):
            transaction(*tenants)


def test_the_settings_defaults_are_the_limits_defaults():
    settings = DatabaseSettings(database_url="postgresql://localhost/cogni")

    assert DatabaseLimits.of(settings) == DatabaseLimits()


async def test_a_broken_rule_of_the_schema_passes_through(db):
    async def insert_null(transaction, wrap):
        async with transaction as tx:
            await tx.execute(wrap("INSERT INTO notes (tenant_id, text) VALUES ('t1', NULL)"))

    with pytest.raises(Exception, match="null value") as broken:
        await insert_null(db.tenant("t1"), text)
    assert not isinstance(broken.value, ServiceError)
    with pytest.raises(asyncpg.NotNullViolationError):
        await insert_null(db.raw_tenant("t1"), str)
    assert await count(db) == 0


async def test_a_commit_after_a_swallowed_failure_is_no_commit(db):
    async def swallow(transaction, wrap):
        async with transaction as tx:
            await tx.execute(wrap("INSERT INTO notes (tenant_id, text) VALUES ('t1', 'lost')"))
            with contextlib.suppress(asyncpg.DivisionByZeroError, DBAPIError):
                await tx.execute(wrap("SELECT 1 / 0"))

    for transaction, wrap in ((db.tenant("t1"), text), (db.raw_tenant("t1"), str)):
        with pytest.raises(NothingCommittedError, match="use a savepoint"):
            await swallow(transaction, wrap)
    assert await count(db) == 0


async def test_a_savepoint_keeps_the_rest_of_the_transaction(db):
    async with db.tenant("t1") as tx:
        await tx.execute(text("INSERT INTO notes (tenant_id, text) VALUES ('t1', 'kept')"))
        with pytest.raises(DBAPIError):
            async with tx.begin_nested():
                await tx.execute(text("SELECT 1 / 0"))
    async with db.raw_tenant("t1") as tx:
        await tx.execute("INSERT INTO notes (tenant_id, text) VALUES ('t1', 'kept')")
        await tx.execute("SAVEPOINT before")
        with pytest.raises(asyncpg.DivisionByZeroError):
            await tx.execute("SELECT 1 / 0")
        await tx.execute("ROLLBACK TO before")

    assert await count(db) == 2


async def test_the_clock_moves_inside_a_transaction_and_stands_within_a_statement(db):
    async with db.raw_tenant("t1") as tx:
        first = await tx.fetchval("SELECT cogni_now()")
        row = await tx.fetchrow("SELECT cogni_now() AS a, pg_sleep(0.002), cogni_now() AS b")
    assert first < row["a"] == row["b"]


async def test_the_clock_can_be_shifted_for_one_database(db, database, clock):
    other = await database("notes", "tests.runtime.migrated")

    await clock.advance(db, timedelta(hours=2))
    await clock.advance(db, timedelta(hours=-1))

    for each, offset in ((db, timedelta(hours=1)), (other, timedelta(0))):
        async with each.raw_tenant("t1") as tx:
            ahead = await tx.fetchval("SELECT cogni_now() - statement_timestamp()")
        async with each.tenant("t1") as tx:
            assert await tx.scalar(text("SELECT cogni_now() - statement_timestamp()")) == ahead
        assert ahead == offset


async def test_the_clock_can_be_an_index_condition(db):
    async with db.raw_jobs() as tx:
        await tx.execute("SET LOCAL enable_seqscan = off")
        plan = await tx.fetch("EXPLAIN SELECT 1 FROM outbox WHERE due_time <= cogni_now()")
    assert any("Index Cond: (due_time <=" in line[0] for line in plan)
