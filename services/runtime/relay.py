"""Sends what the outbox owes, as soon as it is kicked and once a sweep anyway."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from services.runtime.cancellation import asked_to_end
from services.runtime.database import Database
from services.runtime.errors import ServiceError
from services.runtime.outbox import STUCK_ATTEMPTS, Entry, Failure, claim, settle

Handler = Callable[[list[Entry]], Awaitable[None]]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RelayLimits:
    """How much a relay takes at once, how long a handler may work, how long a failure rests.

    `lease` must exceed `handler` by what two short transactions take. `together` hands the first
    attempts of a topic over in one call. A ServiceError's `retry_after` is waited for, up to
    `pause_asked_max`.
    """

    batch_entries: int = 100
    together: bool = True
    single_sends_at_once: int = 8
    sweep: timedelta = timedelta(seconds=1)
    handler: timedelta = timedelta(seconds=10)
    lease: timedelta = timedelta(seconds=30)
    pause_first: timedelta = timedelta(seconds=1)
    pause_max: timedelta = timedelta(minutes=1)
    pause_asked_max: timedelta = timedelta(minutes=1)


class Relay:
    """Hands the entries of some topics to their handlers, at least once each.

    Any number of relays may run side by side. A handler gets entries of one topic and returns
    when all of them are sent; when it raises, all of them are retried, each in a call of its
    own, so that one bad entry does not hold the others back.
    """

    def __init__(
        self,
        database: Database,
        handlers: Mapping[str, Handler],
        *,
        limits: RelayLimits | None = None,
    ) -> None:
        self._database = database
        self._handlers = dict(handlers)
        self._limits = limits or RelayLimits()
        self._kicked = asyncio.Event()

    def kick(self) -> None:
        """Look for due entries now. Call it on the relay's loop, after a commit."""
        self._kicked.set()

    async def run(self) -> None:
        """Send until cancelled. What a cancelled handler held is due again after its lease."""
        while True:
            self._kicked.clear()
            try:
                taken = await self.send_due()
            except ServiceError as error:
                _log.warning("the outbox of %s waits: %s", self._database.schema, error.message)
                taken = 0
            if taken < self._limits.batch_entries:
                await self._until_kicked()

    async def send_due(self) -> int:
        """Send one batch of due entries and return how many were taken, sent or not."""
        async with self._database.raw_jobs() as tx:
            entries = await claim(
                tx,
                list(self._handlers),
                limit=self._limits.batch_entries,
                lease=self._limits.lease,
            )
        if not entries:
            return 0
        gate = asyncio.Semaphore(self._limits.single_sends_at_once)
        outcomes = await asyncio.gather(*(self._send(call, gate) for call in self._calls(entries)))
        failures = [failure for failed in outcomes for failure in failed]
        failed_ids = {failure.entry.id for failure in failures}
        async with self._database.raw_jobs() as tx:
            await settle(tx, [each for each in entries if each.id not in failed_ids], failures)
        return len(entries)

    async def _send(self, entries: list[Entry], gate: asyncio.Semaphore) -> list[Failure]:
        try:
            async with asyncio.timeout(self._limits.handler.total_seconds()), gate:
                await self._handlers[entries[0].topic](entries)
        except asyncio.CancelledError as error:
            if asked_to_end():
                raise
            # A call that the handler awaited was cancelled, not the relay.
            return [self._failure(entry, error) for entry in entries]
        except Exception as error:
            # Whatever a handler raises means "not sent"; the row says so and is retried.
            return [self._failure(entry, error) for entry in entries]
        return []

    def _failure(self, entry: Entry, error: BaseException) -> Failure:
        reason = _describe(error)
        level = logging.ERROR if entry.attempts >= STUCK_ATTEMPTS else logging.WARNING
        _log.log(
            level,
            "outbox entry %d of %s (%s) not sent at attempt %d: %s",
            *(entry.id, self._database.schema, entry.topic, entry.attempts, reason),
        )
        return Failure(entry, self._pause(entry, error), reason)

    def _pause(self, entry: Entry, error: BaseException) -> timedelta:
        # Spread by id, so that what failed together does not return together.
        spread = 1 + entry.id % 100 / 200
        doublings = float(2 ** min(entry.attempts - 1, 20))
        pause = min(self._limits.pause_first * doublings, self._limits.pause_max) * spread
        asked = error.retry_after if isinstance(error, ServiceError) else None
        return max(pause, min(asked or timedelta(0), self._limits.pause_asked_max))

    def _calls(self, entries: Sequence[Entry]) -> list[list[Entry]]:
        """First attempts together by topic, retries one by one."""
        together: dict[str, list[Entry]] = defaultdict(list)
        alone: list[list[Entry]] = []
        for entry in entries:
            if entry.attempts == 1 and self._limits.together:
                together[entry.topic].append(entry)
            else:
                alone.append([entry])
        return [*together.values(), *alone]

    async def _until_kicked(self) -> None:
        try:
            async with asyncio.timeout(self._limits.sweep.total_seconds()):
                await self._kicked.wait()
        except TimeoutError:
            return


def _describe(error: BaseException) -> str:
    # Only our own refusals are known to carry nothing secret; of others the type must do.
    if isinstance(error, ServiceError):
        return f"{error.reason}: {error.message}"[:500]
    return type(error).__name__
