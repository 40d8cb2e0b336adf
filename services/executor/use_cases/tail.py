"""Wakes everybody who follows a run, from one listener and one poll per process."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field

from services.executor.store import events
from services.runtime.database import Database
from services.runtime.errors import limit
from services.runtime.listen import Listener

_POLL_SECONDS = 1.0


@dataclass(eq=False)
class Follower:
    """One stream's view of a run: how far the log is known to reach, and a signal when it grows."""

    newest_seq: int = 0
    grown: asyncio.Event = field(default_factory=asyncio.Event)

    def reach(self, seq: int) -> None:
        """Note that the log reaches at least to `seq`."""
        if seq > self.newest_seq:
            self.newest_seq = seq
            self.grown.set()


class Tail:
    """One per process, for all its watchers.

    A follower is only told that there is more; it reads the log itself, at its own pace, so a
    slow one delays nobody and misses nothing. Followers that stand at the same place share one
    read.
    """

    def __init__(self, database: Database, listener: Listener, *, followers_max: int) -> None:
        self._database = database
        self._listener = listener
        self._followers_max = followers_max
        self._followers: dict[str, set[Follower]] = defaultdict(set)
        self._count = 0
        self._reads: dict[tuple[str, int], asyncio.Task[list[events.StoredEvent]]] = {}

    @contextmanager
    def follow(self, run_id: str) -> Iterator[Follower]:
        """Follow a run while the block lasts. Raises LIMIT_EXCEEDED when too many do."""
        if self._count >= self._followers_max:
            raise limit("watch streams", f"{self._followers_max} streams per server process")
        follower = Follower()
        self._count += 1
        self._followers[run_id].add(follower)
        try:
            yield follower
        finally:
            self._count -= 1
            self._followers[run_id].discard(follower)
            if not self._followers[run_id]:
                del self._followers[run_id]

    async def read(
        self, tenant_id: str, run_id: str, after_seq: int, limit_events: int
    ) -> list[events.StoredEvent]:
        """Return what the log holds after `after_seq`, shared with whoever asks the same."""
        key = (run_id, after_seq)
        reading = self._reads.get(key)
        if reading is None:
            reading = asyncio.create_task(self._read(tenant_id, run_id, after_seq, limit_events))
            self._reads[key] = reading
            reading.add_done_callback(lambda done: self._forget(key, done))
        # Shielded: a watcher that goes away must not cancel the read of the others.
        return await asyncio.shield(reading)

    async def run(self) -> None:
        """Wake the followers until cancelled."""
        wakeups = self._listener.wakeups(events.EVENTS_CHANNEL, poll_seconds=_POLL_SECONDS)
        async with aclosing(wakeups) as woken:
            async for wakeup in woken:
                for payload in wakeup.payloads:
                    run_id, _, seq = payload.rpartition(":")
                    self._tell(run_id, int(seq))
                if wakeup.anything and self._followers:
                    await self._poll()

    async def _poll(self) -> None:
        async with self._database.raw_jobs() as tx:
            newest = await events.newest(tx, list(self._followers))
        for run_id, seq in newest:
            self._tell(run_id, seq)

    def _forget(
        self, key: tuple[str, int], reading: asyncio.Task[list[events.StoredEvent]]
    ) -> None:
        del self._reads[key]
        # Every watcher may have gone away meanwhile; nobody then wants to know of a failure.
        if not reading.cancelled():
            reading.exception()

    def _tell(self, run_id: str, seq: int) -> None:
        for follower in self._followers.get(run_id, ()):
            follower.reach(seq)

    async def _read(
        self, tenant_id: str, run_id: str, after_seq: int, limit_events: int
    ) -> list[events.StoredEvent]:
        async with self._database.raw_tenant(tenant_id) as tx:
            return await events.read(tx, run_id, after_seq, limit_events)
