"""Follows the Executor's streams: each batch's effects and its cursor commit together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.database import Database
from services.runtime.errors import ServiceError
from services.runtime.ids import new_id
from services.scheduler.runs import CursorLostError, Executor, ExecutorUnavailableError
from services.scheduler.store import streams
from services.scheduler.use_cases.run_endings import apply_grant_changes, apply_run_changes

# A follower that dies is replaced after this; one that lives renews three times as often.
LEASE = timedelta(seconds=15)
_RETRY_SECONDS = 1.0
_WAIT_FOR_TURN_SECONDS = 5.0
_log = logging.getLogger(__name__)

Change = TypeVar("Change", covariant=True)


class Batch(Protocol[Change]):
    """One message of a stream."""

    @property
    def changes(self) -> Sequence[Change]:
        """What changed, in order."""

    @property
    def cursor(self) -> str:
        """Where to go on after it."""

    @property
    def watermark_time(self) -> datetime | None:
        """Up to when nothing is missing."""


class Follower:
    """Follows one stream, one process at a time, for as long as it is kept running."""

    def __init__(
        self,
        database: Database,
        name: str,
        watch: Callable[[str], AsyncIterator[Batch[Any]]],
        apply: Callable[[AsyncConnection, Sequence[Any]], Awaitable[None]],
        kick: Callable[[], None],
    ) -> None:
        self._database = database
        self._name = name
        self._watch = watch
        self._apply = apply
        self._kick = kick
        self._holder = new_id()

    async def run(self) -> None:
        """Follow until cancelled; hands the stream to another process when it ends."""
        try:
            while True:
                cursor = await self._take()
                if cursor is None:
                    await asyncio.sleep(_WAIT_FOR_TURN_SECONDS)
                    continue
                renewing = asyncio.create_task(self._keep_lease())
                try:
                    await self._follow(cursor)
                finally:
                    renewing.cancel()
                await asyncio.sleep(_RETRY_SECONDS)
        finally:
            await self._release()

    async def _keep_lease(self) -> None:
        # Heartbeats come too rarely to renew by. Whether the lease was lost is found out when the
        # next batch is committed, so a failure here needs no answer.
        while True:
            await asyncio.sleep(LEASE.total_seconds() / 3)
            with suppress(ServiceError):
                await self._take()

    async def _take(self) -> str | None:
        async with self._database.jobs() as tx:
            return await streams.take(tx, self._name, self._holder, LEASE)

    async def _follow(self, cursor: str) -> None:
        try:
            async with aclosing(self._watch(cursor)) as batches:  # type: ignore[type-var]
                async for batch in batches:
                    if not await self._handle(batch):
                        return
        except ExecutorUnavailableError as error:
            _log.info("the stream %s rests: %s", self._name, error)
        except CursorLostError:
            # What was missed is asked for when it matters: a start asks about the runs before it.
            _log.error("the stream %s lost its place and begins anew", self._name)
            await self._start_over()

    async def _handle(self, batch: Batch[Any]) -> bool:
        async with self._database.jobs() as tx:
            ours = await streams.advance(
                tx, self._name, self._holder, batch.cursor, batch.watermark_time, LEASE
            )
            if ours and batch.changes:
                await self._apply(tx, batch.changes)
        if batch.changes:
            self._kick()
        return ours

    async def _start_over(self) -> None:
        async with self._database.jobs() as tx:
            await streams.advance(tx, self._name, self._holder, "", None, LEASE)

    async def _release(self) -> None:
        async with self._database.jobs() as tx:
            await streams.release(tx, self._name, self._holder)


def followers(
    database: Database, executor: Executor, kick: Callable[[], None]
) -> dict[str, Follower]:
    """The followers of runs and grants, by the names of their streams."""
    return {
        "runs": Follower(database, "runs", executor.watch_runs, apply_run_changes, kick),
        "grants": Follower(database, "grants", executor.watch_grants, apply_grant_changes, kick),
    }
