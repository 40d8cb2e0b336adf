"""Gives each test a migrated database that holds nothing, and shifts a database's clock."""

import asyncio
import itertools
import os
import secrets
from collections import defaultdict
from collections.abc import Awaitable
from datetime import timedelta
from typing import Protocol
from urllib.parse import urlsplit

import asyncpg

from services.runtime.database import Database
from services.runtime.migrations import REVISION_TABLE, migrate
from services.runtime.pools import DatabaseLimits

_LOGIN = "service_login"
_PASSWORD = "service"
# A busy machine may hold another test's transaction open for long; none may for ever.
_FINAL_SECONDS_MAX = 60.0
_GONE_MS_MAX = 10_000
# PostgreSQL's own tables have lower ones.
_FIRST_OID = 16384
# Counts in every clone what changed its tables, functions or rights, also what was rolled back.
_WATCH_FOR_DDL = """
CREATE SCHEMA test_harness;
CREATE SEQUENCE test_harness.ddl;
CREATE FUNCTION test_harness.note_ddl() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER
AS $$ BEGIN PERFORM nextval('test_harness.ddl'); END $$;
CREATE EVENT TRIGGER test_harness ON ddl_command_end EXECUTE FUNCTION test_harness.note_ddl();
ALTER EVENT TRIGGER test_harness ENABLE ALWAYS;
"""
_CUT_THE_OTHERS = """
SELECT pg_terminate_backend(pid, $1) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
# Without triggers, some of which refuse this. A DELETE of few rows is cheaper than a TRUNCATE.
_EMPTY_THE_TABLES = f"""
SET session_replication_role = replica;
DO $$ DECLARE each regclass; BEGIN
    FOR each IN SELECT oid FROM pg_class
        WHERE relkind = 'r' AND oid >= {_FIRST_OID} AND relname <> '{REVISION_TABLE}'
        AND pg_relation_size(oid) > 0
    LOOP EXECUTE 'DELETE FROM ' || each; END LOOP;
    PERFORM setval(oid::regclass, 1, false) FROM pg_class
    WHERE relkind = 'S' AND oid >= {_FIRST_OID};
END $$;
"""


class DatabaseFactory(Protocol):
    """What the fixture `database` is."""

    def __call__(
        self, schema: str, package: str | None = None, limits: DatabaseLimits | None = None
    ) -> Awaitable[Database]:
        """Open a fresh clone of the schema's template; `package` holds its migrations."""


class Databases:
    """The databases of one PostgreSQL: a template per schema, shared by all workers."""

    def __init__(self, admin_url: str) -> None:
        self._admin_url = admin_url
        self._templates: set[str] = set()
        self._template_of: dict[str, str] = {}
        self._emptied: defaultdict[str, list[str]] = defaultdict(list)
        self._names = (
            f"test_{os.getpid()}_{secrets.token_hex(3)}_{each}" for each in itertools.count()
        )

    async def clone(self, schema: str, package: str) -> str:
        """Return the URL of a database with the schema migrated and empty, for a plain login."""
        template = await self._template(schema, package)
        if self._emptied[template]:
            return self.url(self._emptied[template].pop())
        name = next(self._names)
        self._template_of[name] = template
        # Copying files took 23 ms where the default, copying through the log, took 240 ms.
        await self._admin(
            f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY file_copy OWNER {_LOGIN}'
        )
        return self.url(name)

    async def give_back(self, url: str) -> None:
        """Empty a clone for whoever asks next, or drop it if its schema was changed.

        Connections left open are cut. With two connections of its own a test took 17 ms of
        PostgreSQL's time so, and 31 when its database was cloned and dropped.
        """
        name = _name(url)
        admin = await asyncpg.connect(self.admin_url(url))
        try:
            await admin.fetch(_CUT_THE_OTHERS, _GONE_MS_MAX)
            intact = not await admin.fetchval("SELECT is_called FROM test_harness.ddl")
            if intact:
                await admin.execute(_EMPTY_THE_TABLES)
                await admin.execute(f'ALTER DATABASE "{name}" RESET ALL')
        finally:
            await admin.close()
        if intact:
            self._emptied[self._template_of[name]].append(name)
        else:
            await self.drop(url)

    async def drop(self, url: str) -> None:
        """Drop a database; connections left open are cut."""
        await self._admin(f'DROP DATABASE "{_name(url)}" WITH (FORCE)')

    def admin_url(self, url: str) -> str:
        """Return the superuser's URL of the database at `url`."""
        return urlsplit(self._admin_url)._replace(path=f"/{_name(url)}").geturl()

    async def empty(self) -> str:
        """Return the URL of a new database without any schema, for a login that may migrate it."""
        name = next(self._names)
        async with _Turn(self._admin_url, _LOGIN) as admin:
            await _ensure_login(admin)
            await admin.execute(
                f'CREATE DATABASE "{name}" TEMPLATE template0 STRATEGY file_copy OWNER {_LOGIN}'
            )
        return self.url(name)

    async def shift(self, name: str, offset: timedelta) -> None:
        """Make cogni_now() of new connections to the database `name` differ by `offset`."""
        seconds = offset.total_seconds()
        await self._admin(f"ALTER DATABASE \"{name}\" SET cogni.now_offset = '{seconds} seconds'")

    def url(self, name: str) -> str:
        """Return the plain login's URL of a database."""
        server = urlsplit(self._admin_url)
        return f"postgresql://{_LOGIN}:{_PASSWORD}@{server.hostname}:{server.port}/{name}"

    async def _template(self, schema: str, package: str) -> str:
        name = f"template_{schema}_{package.replace('.', '_')}"
        if name in self._templates:
            return name
        async with _Turn(self._admin_url, name) as admin:
            if not await admin.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", name):
                await _ensure_login(admin)
                await admin.execute(f'CREATE DATABASE "{name}_new" OWNER {_LOGIN}')
                await asyncio.to_thread(migrate, self.url(f"{name}_new"), schema, package)
                await self._watch_for_ddl(f"{name}_new")
                await admin.execute(f'ALTER DATABASE "{name}_new" RENAME TO "{name}"')
        self._templates.add(name)
        return name

    async def _watch_for_ddl(self, name: str) -> None:
        admin = await asyncpg.connect(self.admin_url(self.url(name)))
        try:
            await admin.execute(_WATCH_FOR_DDL)
        finally:
            await admin.close()

    async def _admin(self, statement: str) -> None:
        connection = await asyncpg.connect(self._admin_url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


async def all_is_final(database: Database) -> None:
    """Wait until streams show everything committed so far.

    Transactions of the other tests on this server hold them back for moments.
    """
    async with database.raw_jobs() as tx:
        last = await tx.fetchval("SELECT pg_current_xact_id()")
    async with asyncio.timeout(_FINAL_SECONDS_MAX):
        while True:
            async with database.raw_jobs() as tx:
                if await tx.fetchval("SELECT pg_snapshot_xmin(pg_current_snapshot())") > last:
                    return


async def blocks_somebody(tx: asyncpg.Connection) -> None:
    """Wait until another transaction waits for this one."""
    waiting = (
        "SELECT count(*) FROM pg_locks WHERE NOT granted "
        "AND pg_backend_pid() = ANY (pg_blocking_pids(pid))"
    )
    async with asyncio.timeout(_FINAL_SECONDS_MAX):
        while not await tx.fetchval(waiting):
            continue


class Clock:
    """Shifts the time a database tells."""

    def __init__(self, databases: Databases) -> None:
        self._databases = databases
        self._offsets: dict[str, timedelta] = {}

    async def advance(self, database: Database, by: timedelta) -> None:
        """Move cogni_now() of `database` by `by`, also backwards.

        Transactions under way keep the old time, as do other Database objects until they
        `recycle`.
        """
        name = _name(database.url)
        self._offsets[name] = self._offsets.get(name, timedelta()) + by
        await self._databases.shift(name, self._offsets[name])
        await database.recycle()


async def terminate_connections(admin_url: str, database: Database, application_name: str) -> None:
    """Cut the connections to `database` of that application name, as a failing network would."""
    admin = await asyncpg.connect(admin_url)
    try:
        await admin.fetch(
            "SELECT pg_terminate_backend(pid, $3) FROM pg_stat_activity "
            "WHERE datname = $1 AND application_name = $2",
            _name(database.url),
            application_name,
            _GONE_MS_MAX,
        )
    finally:
        await admin.close()


def _name(url: str) -> str:
    return urlsplit(url).path.lstrip("/")


class _Turn:
    """A superuser's connection that holds the right to do `what`, alone among all workers."""

    def __init__(self, admin_url: str, what: str) -> None:
        self._admin_url = admin_url
        self._what = what

    async def __aenter__(self) -> asyncpg.Connection:
        self._connection = await asyncpg.connect(self._admin_url)
        await self._connection.execute(
            "SELECT pg_advisory_lock(hashtextextended($1, 0))", self._what
        )
        return self._connection

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close()


async def _ensure_login(admin: asyncpg.Connection) -> None:
    if not await admin.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", _LOGIN):
        await admin.execute(
            f"DO $$ BEGIN CREATE ROLE {_LOGIN} LOGIN CREATEROLE PASSWORD '{_PASSWORD}'; "
            "EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
        )
