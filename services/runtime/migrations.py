"""Brings a service's schema up to the revision its code knows, safely from many processes."""

import asyncio
import importlib.util
from datetime import timedelta
from pathlib import Path

import asyncpg
from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext, RevisionStep
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from services.runtime.ddl import (
    create_now_function,
    create_outbox,
    enable_tenant_rls,
    grant_app,
    grant_jobs,
)
from services.runtime.failures import DatabaseUnusableError, describe_unreachable
from services.runtime.pools import plain_dsn
from services.runtime.roles import Roles, ensure_roles

__all__ = [
    "REVISION_TABLE",
    "check_migrated",
    "create_now_function",
    "create_outbox",
    "enable_tenant_rls",
    "grant_app",
    "grant_jobs",
    "migrate",
]

REVISION_TABLE = "schema_revision"
_OLDEST_SERVER = 150000
_CONNECT_SECONDS_MAX = 5.0
_WAIT_FOR_OTHERS = timedelta(minutes=2)
# A migration waits this long for a table in use, then fails rather than queue everyone behind it.
_LOCK_SECONDS_MAX = 10


def migrate(
    url: str, schema: str, package: str, *, wait_for_others: timedelta = _WAIT_FOR_OTHERS
) -> str:
    """Create what is missing of the roles and the schema, run the new revisions, return the head.

    `package` is the service's ("services.ledger"); its revisions are in migrations/versions.
    Each revision is a transaction of its own. Processes that migrate at once take turns, and the
    later ones find nothing to do. Blocks, and must not be called on a running event loop. Raises
    DatabaseUnusableError with a sentence that says what to do.
    """
    return asyncio.run(_migrate(url, schema, package, wait_for_others))


async def check_migrated(url: str, schema: str, package: str) -> None:
    """Raise DatabaseUnusableError unless the schema is at the revision the code knows, or newer.

    Newer is accepted, since a release must serve while its successor migrates.
    """
    script = _script(package)
    connection = await _connect(plain_dsn(url))
    try:
        await connection.execute(f'SET ROLE "{Roles.of(schema).app}"')
        await connection.execute(f'SET search_path = "{schema}"')
        current = await connection.fetchval(f"SELECT version_num FROM {REVISION_TABLE}")  # noqa: S608
    except asyncpg.PostgresError:
        current = None
    finally:
        await connection.close()
    known = {revision.revision for revision in script.walk_revisions()}
    if current is None or (current in known and current != script.get_current_head()):
        raise DatabaseUnusableError(
            f"The schema {schema!r} is at revision {current or 'none'}, this release needs "
            f"{script.get_current_head()}; run python -m {package} migrate first."
        )


async def _migrate(url: str, schema: str, package: str, wait_for_others: timedelta) -> str:
    script = _script(package)
    dsn = plain_dsn(url)
    connection = await _connect(dsn)
    try:
        await _refuse_old_server(connection)
        await ensure_roles(connection, schema)
        await _take_turn(connection, schema, wait_for_others)
        await _ensure_schema(connection, schema)
        # The turn is held by the first connection until the second is done.
        return await _upgrade(dsn, schema, script)
    finally:
        await connection.close()


async def _connect(dsn: str) -> asyncpg.Connection:
    try:
        return await asyncpg.connect(
            dsn,
            timeout=_CONNECT_SECONDS_MAX,
            server_settings={"application_name": "cogni-migrate", "timezone": "UTC"},
        )
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise DatabaseUnusableError(describe_unreachable(dsn, error)) from error


async def _refuse_old_server(connection: asyncpg.Connection) -> None:
    version = int(await connection.fetchval("SHOW server_version_num"))
    if version < _OLDEST_SERVER:
        raise DatabaseUnusableError(
            f"PostgreSQL {version // 10000} is too old; version {_OLDEST_SERVER // 10000} or "
            "newer is needed."
        )


async def _take_turn(
    connection: asyncpg.Connection, schema: str, wait_for_others: timedelta
) -> None:
    milliseconds = int(wait_for_others.total_seconds() * 1000)
    await connection.execute(f"SET lock_timeout = {milliseconds}")
    try:
        await connection.execute(
            "SELECT pg_advisory_lock(hashtextextended($1, 0))", f"cogni.migrate.{schema}"
        )
    except asyncpg.LockNotAvailableError as error:
        raise DatabaseUnusableError(
            f"Another process has been migrating the schema {schema!r} for longer than "
            f"{wait_for_others.total_seconds():.0f} seconds; look for it in pg_stat_activity "
            "(application_name cogni-migrate), then try again."
        ) from error


async def _ensure_schema(connection: asyncpg.Connection, schema: str) -> None:
    if await connection.fetchval("SELECT 1 FROM pg_namespace WHERE nspname = $1", schema):
        return
    roles = Roles.of(schema)
    try:
        async with connection.transaction():
            await connection.execute(f'CREATE SCHEMA "{schema}" AUTHORIZATION "{roles.owner}"')
            await connection.execute(f'SET LOCAL ROLE "{roles.owner}"')
            await connection.execute(
                f'GRANT USAGE ON SCHEMA "{schema}" TO "{roles.app}", "{roles.jobs}"'
            )
    except asyncpg.InsufficientPrivilegeError as error:
        raise DatabaseUnusableError(
            f"The database login may not create the schema {schema!r}. Let an administrator run: "
            f'CREATE SCHEMA "{schema}" AUTHORIZATION "{roles.owner}"; '
            f'GRANT USAGE ON SCHEMA "{schema}" TO "{roles.app}", "{roles.jobs}";'
        ) from error


async def _upgrade(dsn: str, schema: str, script: ScriptDirectory) -> str:
    roles = Roles.of(schema)

    async def connect(*_: object, **__: object) -> asyncpg.Connection:
        return await asyncpg.connect(
            dsn,
            timeout=_CONNECT_SECONDS_MAX,
            server_settings={
                "application_name": "cogni-migrate",
                "role": roles.owner,
                "search_path": schema,
                "timezone": "UTC",
                "lock_timeout": f"{_LOCK_SECONDS_MAX}s",
            },
        )

    engine = create_async_engine("postgresql+asyncpg://", async_creator=connect, poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(_run_revisions, schema, script)
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != asyncpg.LockNotAvailableError.sqlstate:
            raise
        raise DatabaseUnusableError(
            f"A table of the schema {schema!r} has been in use for longer than "
            f"{_LOCK_SECONDS_MAX} seconds, so its migration was not made; look for long "
            "transactions in pg_stat_activity, then run migrate again."
        ) from error
    finally:
        await engine.dispose()


def _run_revisions(connection: Connection, schema: str, script: ScriptDirectory) -> str:
    def steps(current: tuple[str, ...], _: MigrationContext) -> list[RevisionStep]:
        try:
            # The private method is what `alembic upgrade` itself calls.
            return list(script._upgrade_revs("head", current))  # type: ignore[arg-type]
        except CommandError as error:
            raise DatabaseUnusableError(
                f"The schema {schema!r} is at revision {', '.join(current)}, which this release "
                "does not know: a newer release migrated it. Run the newer release."
            ) from error

    context = MigrationContext.configure(
        connection,
        opts={
            "fn": steps,
            "script": script,
            "transaction_per_migration": True,
            "version_table": REVISION_TABLE,
            "version_table_schema": schema,
        },
    )
    with Operations.context(context):
        context.run_migrations()
    _let_roles_read_revision(connection, schema)
    (head,) = context.get_current_heads()
    return head


def _let_roles_read_revision(connection: Connection, schema: str) -> None:
    roles = Roles.of(schema)
    connection.rollback()
    connection.execute(text(f'GRANT SELECT ON {REVISION_TABLE} TO "{roles.app}", "{roles.jobs}"'))
    connection.commit()


def _script(package: str) -> ScriptDirectory:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"{package!r} is no package")
    folder = Path(spec.submodule_search_locations[0]) / "migrations"
    config = Config()
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return ScriptDirectory.from_config(config)
