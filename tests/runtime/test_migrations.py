"""Migrations: safe from many processes at once, forward only, and clear when they cannot run."""

import asyncio
import secrets
import sys
import textwrap
from datetime import timedelta
from urllib.parse import urlsplit

import asyncpg
import pytest

from services.runtime.failures import DatabaseUnusableError
from services.runtime.migrations import check_migrated, migrate
from services.runtime.roles import Roles, ensure_roles
from services.standalone.ports import free_port

PACKAGE = "tests.runtime.migrated"
DEADLINE_SECONDS = 60


async def run(url, schema="notes", package=PACKAGE, **options):
    return await asyncio.to_thread(migrate, url, schema, package, **options)


async def ask(url, statement, *args):
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(statement, *args)
    finally:
        await connection.close()


def package(folder, name, *bodies):
    """Write a package whose revisions 0001, 0002, … have these bodies."""
    versions = folder / name / "migrations" / "versions"
    versions.mkdir(parents=True)
    for number, body in enumerate(bodies, 1):
        down = f"'{number - 1:04}'" if number > 1 else None
        (versions / f"{number:04}_step.py").write_text(
            f"from alembic import op\nrevision = '{number:04}'\ndown_revision = {down}\n"
            f"def upgrade():\n{textwrap.indent(body, '    ')}\n"
        )
    return name


@pytest.fixture
def packages(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
async def fresh_schema(databases):
    """A schema name whose roles do not exist yet, and are gone after the test."""
    schema = f"fresh_{secrets.token_hex(3)}"
    yield schema
    for role in Roles.of(schema).all():
        await ask(databases.admin_url("postgresql://x/postgres"), f'DROP ROLE IF EXISTS "{role}"')


async def test_migrating_twice_changes_nothing(empty_database):
    assert await run(empty_database) == "0002"
    assert await run(empty_database) == "0002"

    await check_migrated(empty_database, "notes", PACKAGE)


async def test_everything_belongs_to_the_owner_and_lies_in_the_schema(empty_database):
    await run(empty_database)

    owners = await ask(
        empty_database,
        "SELECT array_agg(DISTINCT pg_get_userbyid(relowner)::text) FROM pg_class "
        "WHERE relnamespace = 'notes'::regnamespace",
    )
    assert owners == ["cogni_notes_owner"]
    assert (
        await ask(
            empty_database,
            "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace",
        )
        == 0
    )


async def test_many_processes_at_once_migrate_once(packages, databases, fresh_schema):
    """Two databases race for the roles, which belong to the cluster, three processes for each."""
    name = package(
        packages,
        "slowly",
        "op.execute('CREATE TABLE once (n int)')\nop.execute('SELECT pg_sleep(0.1)')",
    )
    urls = [await databases.empty(), await databases.empty()]
    script = "import sys; from services.runtime.migrations import migrate; migrate(*sys.argv[1:])"
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", script, url, fresh_schema, name),
            env={"PYTHONPATH": ":".join([str(packages), *sys.path])},
            stderr=asyncio.subprocess.PIPE,
        )
        for url in urls
        for _ in range(3)
    ]

    ended = [(await process.communicate())[1].decode() for process in processes]

    assert [process.returncode for process in processes] == [0] * 6, ended
    for url in urls:
        await check_migrated(url, fresh_schema, name)
        await databases.drop(url)


@pytest.mark.parametrize(
    "half_done",
    ['CREATE ROLE "{app}" NOLOGIN', 'GRANT "{owner}" TO service_login'],
)
async def test_a_role_that_another_database_makes_at_the_same_moment_is_taken(
    databases, empty_database, fresh_schema, half_done
):
    admin_url = databases.admin_url(empty_database)
    roles = Roles.of(fresh_schema)
    await ask(admin_url, f'CREATE ROLE "{roles.owner}" NOLOGIN')
    await ask(admin_url, f'GRANT "{roles.owner}" TO service_login WITH ADMIN TRUE, SET FALSE')
    rival, loser = await asyncpg.connect(empty_database), await asyncpg.connect(empty_database)
    try:
        transaction = rival.transaction()
        await transaction.start()
        await rival.execute(half_done.format(app=roles.app, owner=roles.owner))

        losing = asyncio.create_task(ensure_roles(loser, fresh_schema))
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not await waits_for_lock(admin_url, loser):
                assert not losing.done()
        await transaction.commit()
        await losing

        for role in roles.all():
            await loser.execute(f'SET ROLE "{role}"')
            await loser.execute("RESET ROLE")
    finally:
        await rival.close()
        await loser.close()


async def waits_for_lock(admin_url, connection):
    return await ask(
        admin_url,
        "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $1",
        connection.get_server_pid(),
    )


async def test_a_failing_revision_leaves_nothing_of_itself(packages, empty_database):
    name = package(
        packages,
        "breaking",
        "op.execute('CREATE TABLE kept (n int)')",
        "op.execute('CREATE TABLE lost (n int)')\nop.execute('SELECT 1 / 0')",
    )

    with pytest.raises(Exception, match="division by zero"):
        await run(empty_database, package=name)

    names = await ask(
        empty_database,
        "SELECT array_agg(relname::text ORDER BY relname) FROM pg_class "
        "WHERE relnamespace = 'notes'::regnamespace AND relkind = 'r'",
    )
    assert names == ["kept", "schema_revision"]
    assert await ask(empty_database, "SELECT version_num FROM notes.schema_revision") == "0001"


async def test_an_older_release_says_that_a_newer_one_migrated_and_still_serves(
    packages, empty_database
):
    steps = [f"op.execute('CREATE TABLE t{each} (n int)')" for each in range(3)]
    newer = package(packages, "newer", *steps)
    older = package(packages, "older", *steps[:2])
    await run(empty_database, package=newer)

    with pytest.raises(DatabaseUnusableError, match=r"revision 0003.*a newer release"):
        await run(empty_database, package=older)
    await check_migrated(empty_database, "notes", older)


async def test_a_server_refuses_a_schema_that_is_behind(packages, empty_database):
    steps = [f"op.execute('CREATE TABLE t{each} (n int)')" for each in range(2)]
    newer = package(packages, "newer", *steps)
    older = package(packages, "older", *steps[:1])

    with pytest.raises(DatabaseUnusableError, match=r"revision none.*python -m newer migrate"):
        await check_migrated(empty_database, "notes", newer)
    await run(empty_database, package=older)
    with pytest.raises(DatabaseUnusableError, match=r"revision 0001.*needs 0002"):
        await check_migrated(empty_database, "notes", newer)


async def test_a_turn_that_never_comes_is_said(empty_database):
    holder = await asyncpg.connect(empty_database)
    try:
        await holder.execute(
            "SELECT pg_advisory_lock(hashtextextended($1, 0))", "cogni.migrate.notes"
        )
        with pytest.raises(DatabaseUnusableError, match="Another process has been migrating"):
            await run(empty_database, wait_for_others=timedelta(milliseconds=50))
    finally:
        await holder.close()


async def test_a_table_in_use_is_said_and_the_next_try_goes_on(
    packages, empty_database, monkeypatch
):
    monkeypatch.setattr("services.runtime.migrations._LOCK_SECONDS_MAX", 0.05)
    steps = ("op.execute('CREATE TABLE seen (n int)')", "op.execute('DROP TABLE seen')")
    await run(empty_database, package=package(packages, "before", *steps[:1]))
    after = package(packages, "after", *steps)
    reader = await asyncpg.connect(empty_database)
    try:
        await reader.execute("BEGIN; LOCK TABLE notes.seen IN ACCESS SHARE MODE")
        with pytest.raises(DatabaseUnusableError, match=r"in use.*pg_stat_activity.*migrate"):
            await run(empty_database, package=after)
    finally:
        await reader.close()

    assert await run(empty_database, package=after) == "0002"


async def test_a_database_that_is_away_is_said():
    url = f"postgresql://me:secret@127.0.0.1:{free_port()}/cogni"
    with pytest.raises(DatabaseUnusableError, match="cannot be reached") as unusable:
        await run(url)
    assert "secret" not in str(unusable.value)


async def test_a_login_that_may_not_create_roles_is_told_what_an_administrator_must_run(
    databases, empty_database, fresh_schema
):
    admin_url = databases.admin_url(empty_database)
    await ask(admin_url, "CREATE ROLE powerless LOGIN PASSWORD 'powerless'")
    try:
        server = urlsplit(empty_database)
        url = server._replace(
            netloc=f"powerless:powerless@{server.hostname}:{server.port}"
        ).geturl()
        with pytest.raises(DatabaseUnusableError, match="administrator run: CREATE ROLE") as told:
            await run(url, fresh_schema)

        # Doing as told goes one step further, to the schema, and then all the way.
        await obey(admin_url, told.value)
        with pytest.raises(DatabaseUnusableError, match="administrator run: CREATE SCHEMA") as told:
            await run(url, fresh_schema)
        await obey(admin_url, told.value)
        assert await run(url, fresh_schema) == "0002"
    finally:
        await ask(admin_url, f"DROP SCHEMA IF EXISTS {fresh_schema} CASCADE")
        for role in Roles.of(fresh_schema).all():
            await ask(admin_url, f"DROP ROLE IF EXISTS {role}")
        await ask(admin_url, "DROP ROLE powerless")


async def obey(admin_url, told):
    connection = await asyncpg.connect(admin_url)
    try:
        await connection.execute(str(told).split("administrator run: ")[1])
    finally:
        await connection.close()


@pytest.mark.parametrize("schema", ["", "Ledger", 'a"b', "1st", "x" * 50])
async def test_what_cannot_be_quoted_is_no_schema_name(schema):
    with pytest.raises(ValueError, match="no schema name"):
        Roles.of(schema)
