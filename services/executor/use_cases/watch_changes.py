"""Streams the changes of many runs or grants after a cursor, in the order of their commit."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Generic

from sqlalchemy.ext.asyncio import AsyncConnection

from services.executor.store.changes import Change, Changes, beginning_of_news
from services.runtime.caller import ALL_TENANTS
from services.runtime.cursor import BEGINNING, Position, decode_cursor, encode_cursor
from services.runtime.database import Database
from services.runtime.drain import Drain, stream_drained
from services.runtime.errors import limit

_BATCH_CHANGES = 500
# What a commit-ordered stream may lag behind a commit. Each poll is one indexed read.
_POLL_SECONDS = 0.25
_HEARTBEAT_SECONDS = 5.0

Read = Callable[[AsyncConnection, Position, int], Awaitable[Changes[Change]]]


@dataclass(frozen=True, slots=True)
class ChangeBatch(Generic[Change]):
    """Changes in order; without any, a heartbeat. `resume` marks a drained stream's last."""

    changes: Sequence[Change]
    cursor: str
    watermark_time: datetime | None
    resume: bool = False


@dataclass(frozen=True, slots=True)
class Stream(Generic[Change]):
    """One kind of stream: its name, which its cursors are bound to, and how it is read."""

    name: str
    read: Read[Change]


class ChangeWatch:
    """One per process; bounds how many such streams there are."""

    def __init__(self, database: Database, drain: Drain, *, streams_max: int) -> None:
        self._database = database
        self._drain = drain
        self._streams_max = streams_max
        self._count = 0

    async def watch(
        self, stream: Stream[Change], tenant_id: str, cursor: str, *, from_now: bool
    ) -> AsyncIterator[ChangeBatch[Change]]:
        """Yield batches until the server drains. Raises ServiceError.

        With ALL_TENANTS the changes of every tenant come, and the cursor is for that alone.
        """
        with self._counted(tenant_id):
            position = await self._start(stream, tenant_id, cursor, from_now=from_now)
            silent_seconds = _HEARTBEAT_SECONDS
            while True:
                async with self._reading(tenant_id) as tx:
                    found = await stream.read(tx, position, _BATCH_CHANGES)
                position = found.position
                here = encode_cursor(position, stream=stream.name, tenant_id=tenant_id)
                if self._drain.draining.is_set():
                    yield ChangeBatch(found.changes, here, found.watermark_time, resume=True)
                    raise stream_drained()
                if found.changes or silent_seconds >= _HEARTBEAT_SECONDS:
                    yield ChangeBatch(found.changes, here, found.watermark_time)
                    silent_seconds = 0.0
                if len(found.changes) < _BATCH_CHANGES:
                    await self._pause()
                    silent_seconds += _POLL_SECONDS

    async def _start(
        self, stream: Stream[Change], tenant_id: str, cursor: str, *, from_now: bool
    ) -> Position:
        position = decode_cursor(cursor, stream=stream.name, tenant_id=tenant_id)
        if position is None and from_now:
            async with self._reading(tenant_id) as tx:
                return await beginning_of_news(tx)
        return position or BEGINNING

    def _reading(self, tenant_id: str) -> AbstractAsyncContextManager[AsyncConnection]:
        if tenant_id == ALL_TENANTS:
            return self._database.jobs()
        return self._database.tenant(tenant_id)

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(_POLL_SECONDS):
                await self._drain.draining.wait()
        except TimeoutError:
            return

    @contextmanager
    def _counted(self, tenant_id: str) -> Iterator[None]:
        # The Scheduler's own streams must not be shut out by those of its tenants.
        if self._count >= self._streams_max and tenant_id != ALL_TENANTS:
            raise limit("watch streams", f"{self._streams_max} streams per server process")
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1
