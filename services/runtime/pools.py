"""Holds the bounded connection pools of one database role."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import asyncpg
from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from services.runtime.failures import while_connecting

if TYPE_CHECKING:
    from services.runtime.settings.groups import DatabaseSettings

# How long the client waits beyond the server's own statement timeout before it gives up.
_ANSWER_GRACE_SECONDS = 5.0
# How many statements' time a transaction may take as a whole, and the first PostgreSQL that knows.
_TRANSACTION_STATEMENTS = 6
_TRANSACTION_TIMEOUT_SINCE = 17


@dataclass(frozen=True)
class DatabaseLimits:
    """What one process may take from its database.

    The three transaction timeouts stay well under a lease, so that a process stopped inside a
    transaction cannot hold a leased row for as long as the lease lasts.
    """

    app_connections_max: int = 10
    jobs_connections_max: int = 4
    raw_connections_max: int = 4
    wait_for_connection: timedelta = timedelta(seconds=5)
    connect: timedelta = timedelta(seconds=5)
    connection_lifetime: timedelta = timedelta(minutes=30)
    statement: timedelta = timedelta(seconds=10)
    lock: timedelta = timedelta(seconds=2)
    idle_in_transaction: timedelta = timedelta(seconds=5)

    @classmethod
    def of(cls, settings: "DatabaseSettings") -> "DatabaseLimits":
        """Return the limits that the settings name, the others at their defaults."""
        return cls(
            app_connections_max=settings.database_pool_size,
            statement=timedelta(seconds=settings.database_statement_timeout_seconds),
            lock=timedelta(seconds=settings.database_lock_timeout_seconds),
            idle_in_transaction=timedelta(seconds=settings.database_idle_timeout_seconds),
        )


class NothingCommittedError(Exception):
    """Raised when code swallowed a failed statement and went on to commit."""


class _StrictConnection(asyncpg.Connection):  # type: ignore[misc]
    """A connection that does not take a rollback for a commit.

    PostgreSQL answers the COMMIT of a failed transaction with ROLLBACK and no error, and neither
    asyncpg nor SQLAlchemy looks.
    """

    #: How often the pools had been recycled when this connection was asked for.
    generation = 0

    # The signature is asyncpg's.
    async def execute(
        self,
        query: str,
        *args: Any,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> str:
        status: str = await super().execute(query, *args, timeout=timeout)
        if status == "ROLLBACK" and query.startswith("COMMIT"):
            raise NothingCommittedError(
                "a statement of this transaction failed before, so nothing was committed; "
                "use a savepoint around a statement that may fail"
            )
        return status


def plain_dsn(url: str) -> str:
    """Return a libpq URL for `url`, which may name SQLAlchemy's driver."""
    return url.replace("postgresql+asyncpg://", "postgresql://", 1)


def server_settings(
    schema: str, role: str, application_name: str, limits: DatabaseLimits
) -> dict[str, str]:
    """Return what a connection asks of the server as it connects: its role among it."""
    return {
        "role": role,
        "search_path": schema,
        "application_name": application_name,
        "timezone": "UTC",
        "statement_timeout": _milliseconds(limits.statement),
        "lock_timeout": _milliseconds(limits.lock),
        "idle_in_transaction_session_timeout": _milliseconds(limits.idle_in_transaction),
    }


class RolePools:
    """Two pools of one role: SQLAlchemy's, and asyncpg's own for the hot paths.

    The second spares the greenlet switches and the reset query of each checkout.
    """

    def __init__(
        self,
        dsn: str,
        schema: str,
        role: str,
        application_name: str,
        connections_max: int,
        limits: DatabaseLimits,
    ) -> None:
        self._limits = limits
        self._options: dict[str, Any] = {
            "dsn": dsn,
            "connection_class": _StrictConnection,
            "timeout": limits.connect.total_seconds(),
            "command_timeout": limits.statement.total_seconds() + _ANSWER_GRACE_SECONDS,
            "server_settings": server_settings(schema, role, application_name, limits),
        }
        self.engine = self._engine(connections_max)
        # Those of the engine, which itself keeps no account of what it lent.
        self._made: WeakSet[_StrictConnection] = WeakSet()
        self._raw: asyncpg.Pool | None = None
        self._closed = False
        #: Raised by `recycle`: connections that were kept since before it are to be given back.
        self.generation = 0

    @asynccontextmanager
    async def raw(self) -> AsyncIterator[asyncpg.Connection]:
        """Lend an asyncpg connection outside a transaction; it must come back so."""
        connection = await self.take_raw()
        try:
            yield connection
        finally:
            await self.give_back_raw(connection)

    async def take_raw(self) -> asyncpg.Connection:
        """Take an asyncpg connection out of the pool; `give_back_raw` it outside a transaction."""
        with while_connecting():
            pool = await self._raw_pool()
            return await pool.acquire(timeout=self._limits.wait_for_connection.total_seconds())

    async def give_back_raw(self, connection: asyncpg.Connection) -> None:
        """Give back what `take_raw` took, whatever state the connection is in."""
        pool = await self._raw_pool()
        await pool.release(connection)

    async def recycle(self) -> None:
        """Lend no connection again that was made before this; those in use go on."""
        # The engine's own dispose() would put what is in use now back into a pool nobody has.
        self.generation += 1
        if self._raw is not None:
            await self._raw.expire_connections()

    async def close(self) -> None:
        """Close every connection, also those in use and those being made; for good."""
        self._closed = True
        await self.engine.dispose()
        for connection in list(self._made):
            if not connection.is_closed():
                connection.terminate()
        if self._raw is not None:
            self._raw.terminate()

    async def _bound_transactions(self, connection: asyncpg.Connection) -> None:
        """Let no client hold its locks for ever that was stopped in the middle of a statement.

        Between asyncpg's Parse and Bind a session counts as active, though it waits for us: neither
        the idle nor the statement timeout ends it, and whoever skips locked rows skips them always.
        """
        if connection.get_server_version().major >= _TRANSACTION_TIMEOUT_SINCE:
            limit = _milliseconds(self._limits.statement * _TRANSACTION_STATEMENTS)
            await connection.execute(f"SET transaction_timeout TO {limit}")

    async def _raw_pool(self) -> asyncpg.Pool:
        # Made here and not in __init__: a pool belongs to the loop it is made on. Without initial
        # connections nothing suspends between the test and the assignment.
        if self._raw is None:
            self._refuse_when_closed()
            self._raw = asyncpg.create_pool(
                **self._options,
                init_size=0,
                min_size=0,
                max_size=self._limits.raw_connections_max,
                reset=_nothing_to_reset,
                init=self._bound_transactions,
            )
        return await self._raw

    def _engine(self, connections_max: int) -> AsyncEngine:
        engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=self._connect,
            pool_size=connections_max,
            max_overflow=0,
            pool_timeout=self._limits.wait_for_connection.total_seconds(),
            pool_recycle=int(self._limits.connection_lifetime.total_seconds()),
        )
        event.listen(engine.sync_engine, "checkout", self._refuse_stale)
        return engine

    async def _connect(self, *_: object, **__: object) -> asyncpg.Connection:
        self._refuse_when_closed()
        generation = self.generation
        connection: _StrictConnection = await asyncpg.connect(**self._options)
        # Before anything else is awaited: whoever is cancelled then has still to be closed.
        self._made.add(connection)
        if self._closed:
            connection.terminate()
        self._refuse_when_closed()
        connection.generation = generation
        try:
            await self._bound_transactions(connection)
        except BaseException:
            connection.terminate()
            raise
        return connection

    def _refuse_stale(self, dbapi_connection: Any, *_: object) -> None:
        # asyncpg learns of a server's restart without asking, so this costs no round trip; the
        # engine answers DisconnectionError by connecting anew.
        connection: _StrictConnection = dbapi_connection.driver_connection
        if connection.is_closed() or connection.generation != self.generation:
            raise DisconnectionError

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise asyncpg.InterfaceError("the pools are closed")


async def _nothing_to_reset(connection: asyncpg.Connection) -> None:
    """Stand in for asyncpg's reset query: nothing outlives our transactions."""


def _milliseconds(duration: timedelta) -> str:
    return str(int(duration.total_seconds() * 1000))
