"""A server that greets as HTTP/2 does, takes whatever comes, and never says another word."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

_EMPTY_SETTINGS = bytes(3) + b"\x04" + bytes(5)


@asynccontextmanager
async def silent_server() -> AsyncIterator[str]:
    """Its address, while it is there; for clients it looks like a process that was stopped."""
    connections: list[_Connection] = []

    def take() -> _Connection:
        connections.append(_Connection())
        return connections[-1]

    server = await asyncio.get_running_loop().create_server(take, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield f"{host}:{port}"
        for each in connections:
            each.transport.abort()
            await each.gone.wait()


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.gone = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(_EMPTY_SETTINGS)

    def connection_lost(self, error: Exception | None) -> None:
        self.gone.set()
