"""A connection that one loop keeps for statements that are transactions of their own."""

from __future__ import annotations

from typing import Any

import asyncpg

from services.runtime.failures import while_working
from services.runtime.pools import RolePools


class Lane:
    """Runs single statements, each in one round trip and committed when it answers.

    For a hot loop: a transaction of `Database.raw_tenant` costs two more round trips, and the pool
    its own work. A statement binds its tenants itself, with set_config('cogni.tenants', …, true)
    before it touches a table, inside a function; unbound it sees nothing. One task at a time.
    """

    def __init__(self, pools: RolePools) -> None:
        """Take no connection yet; the first statement does, and it counts against the pool."""
        self._pools = pools
        self._kept: asyncpg.Connection | None = None
        self._generation = 0

    async def fetchrow(self, query: str, *arguments: Any) -> asyncpg.Record | None:
        """Run one statement and return its first row.

        Raises ServiceError UNAVAILABLE as `Database.tenant` does; when the connection was lost,
        the statement may have been committed.
        """
        connection = await self._connection()
        try:
            with while_working(lambda: is_lost(connection)):
                return await connection.fetchrow(query, *arguments)
        except BaseException:
            # Whatever has become of the connection, the pool knows how to go on.
            await self.give_back()
            raise

    async def give_back(self) -> None:
        """Let the connection go; the next statement takes another."""
        kept, self._kept = self._kept, None
        if kept is not None:
            await self._pools.give_back_raw(kept)

    async def _connection(self) -> asyncpg.Connection:
        kept = self._kept
        if kept is not None and (self._generation != self._pools.generation or is_lost(kept)):
            await self.give_back()
        if self._kept is None:
            self._generation = self._pools.generation
            self._kept = await self._pools.take_raw()
        return self._kept


def is_lost(connection: asyncpg.Connection) -> bool:
    """Whether the connection is closed."""
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:
        # A connection that was cut has already left its pool's proxy.
        return True
