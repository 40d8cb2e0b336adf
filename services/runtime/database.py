"""Opens transactions as one of a schema's roles, bound to the tenants they may see."""

import re
from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.failures import (
    DatabaseUnusableError,
    describe_unreachable,
    while_connecting,
    while_working,
)
from services.runtime.lane import Lane, is_lost
from services.runtime.pools import DatabaseLimits, RolePools, plain_dsn
from services.runtime.roles import Roles

_TENANT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_BIND = text("SELECT set_config('cogni.tenants', :tenants, true)")
_ROLL_BACK_SECONDS_MAX = 2.0


class Database:
    """The database of one service, as its app and jobs roles see it.

    Connections are made when they are first needed. A connection's role, search path and timeouts
    are part of how it connects, so no transaction can forget them; tenants are bound to the
    transaction, so no connection can carry them to the next one.
    """

    def __init__(self, url: str, schema: str, app: RolePools, jobs: RolePools) -> None:
        self.url = url
        self.schema = schema
        self._app = app
        self._jobs = jobs

    @classmethod
    def open(
        cls,
        url: str,
        schema: str,
        *,
        application_name: str = "cogni",
        limits: DatabaseLimits | None = None,
    ) -> "Database":
        """Return the database at `url` (postgresql://…) without connecting yet."""
        limits = limits or DatabaseLimits()
        roles = Roles.of(schema)
        dsn = plain_dsn(url)

        def pools(role: str, connections_max: int) -> RolePools:
            return RolePools(dsn, schema, role, application_name, connections_max, limits)

        return cls(
            dsn,
            schema,
            pools(roles.app, limits.app_connections_max),
            pools(roles.jobs, limits.jobs_connections_max),
        )

    def tenant(self, *tenant_ids: str) -> AbstractAsyncContextManager[AsyncConnection]:
        """Open a transaction as the app role that sees the rows of these tenants alone.

        Commits when the block ends, rolls back when it raises. Raises ServiceError UNAVAILABLE
        when no connection can be had, the connection is lost (a commit under way may then have
        happened), or a lock or statement runs out of time; NothingCommittedError when the block
        swallowed a statement's failure.
        """
        return self._transaction(self._app, bound_tenants(tenant_ids))

    def jobs(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """Open a transaction as the jobs role, which sees every tenant; otherwise as `tenant`."""
        return self._transaction(self._jobs, None)

    def raw_tenant(self, *tenant_ids: str) -> AbstractAsyncContextManager[asyncpg.Connection]:
        """Open a transaction as `tenant` does, giving the asyncpg connection for a hot path.

        It has a pool of its own. json and jsonb are text on it; a savepoint is made with a
        SAVEPOINT statement, since asyncpg does not know of the transaction.
        """
        return self._raw_transaction(self._app, bound_tenants(tenant_ids))

    def raw_jobs(self) -> AbstractAsyncContextManager[asyncpg.Connection]:
        """Open a transaction as `jobs` does, giving the asyncpg connection for a hot path."""
        return self._raw_transaction(self._jobs, None)

    def lane(self) -> Lane:
        """Return a connection of the app role's own, for one loop that lives as long as we do."""
        return Lane(self._app)

    async def check(self) -> None:
        """Connect once as each role; raise DatabaseUnusableError with a sentence on failure."""
        for pools in (self._app, self._jobs):
            try:
                async with pools.engine.connect() as connection:
                    await connection.execute(text("SELECT 1"))
            except Exception as error:
                raise DatabaseUnusableError(describe_unreachable(self.url, error)) from error

    async def recycle(self) -> None:
        """Let new connections, which meet changed settings of the database, take over."""
        for pools in (self._app, self._jobs):
            await pools.recycle()

    async def close(self) -> None:
        """Close every connection for good; those in use lose their transactions."""
        for pools in (self._app, self._jobs):
            await pools.close()

    @asynccontextmanager
    async def _transaction(
        self, pools: RolePools, tenants: str | None
    ) -> AsyncIterator[AsyncConnection]:
        connection = pools.engine.connect()
        with while_connecting():
            await connection.start()
        try:
            with while_working(lambda: connection.invalidated):
                async with connection.begin():
                    if tenants is not None:
                        await connection.execute(_BIND, {"tenants": tenants})
                    yield connection
        finally:
            await connection.close()

    @asynccontextmanager
    async def _raw_transaction(
        self, pools: RolePools, tenants: str | None
    ) -> AsyncIterator[asyncpg.Connection]:
        async with pools.raw() as connection:
            with while_working(lambda: is_lost(connection)):
                # Both in one round trip; a tenant id has no character that needs quoting.
                binding = "" if tenants is None else f"; SET LOCAL cogni.tenants TO '{tenants}'"
                await connection.execute(f"BEGIN{binding}")
                try:
                    yield connection
                except BaseException:
                    await _roll_back(connection)
                    raise
                await connection.execute("COMMIT")


def bound_tenants(tenant_ids: Collection[str]) -> str:
    """Return the setting that binds a transaction to these tenants; ValueError for no tenant."""
    for tenant_id in tenant_ids:
        if not _TENANT.fullmatch(tenant_id):
            raise ValueError(f"{tenant_id!r} is no tenant id")
    if not tenant_ids:
        raise ValueError("name at least one tenant, or open a jobs transaction")
    return ",".join(tenant_ids)


async def _roll_back(connection: asyncpg.Connection) -> None:
    if is_lost(connection):
        return
    try:
        await connection.execute("ROLLBACK", timeout=_ROLL_BACK_SECONDS_MAX)
    except (
        OSError,
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,
    ):
        connection.terminate()
