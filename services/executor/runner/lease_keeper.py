"""Keeps the process's leases alive from a thread of its own, and ends a process that hangs.

A graph that blocks the event loop freezes its neighbours too. While the loop ticks, leases are
renewed whatever it is busy with; when it has not ticked for `loop_stall`, the process ends, and
others take its runs.
"""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta

from services.executor.store import leases
from services.runtime.database import Database

_log = logging.getLogger(__name__)

#: sysexits.h EX_SOFTWARE; whoever supervises the process sees that it ended itself.
STALLED_EXIT_CODE = 70
_LOOK_SECONDS = 0.25


@dataclass(frozen=True)
class KeeperTimes:
    """How long leases last, how often they are renewed, and when a loop counts as stalled."""

    lease: timedelta
    renewal: timedelta
    loop_stall: timedelta


@dataclass
class _Held:
    epoch: int
    renewed: float


class LeaseKeeper(threading.Thread):
    """Renews what `hold` names until `release`; tells `lost` of leases it could not keep.

    `open_database` is called in the thread: a pool belongs to the loop it is used on. `lost` is
    called in the thread as well.
    """

    def __init__(
        self,
        open_database: Callable[[], Database],
        holder: str,
        times: KeeperTimes,
        lost: Callable[[str, int], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        end_process: Callable[[int], object] = os._exit,
    ) -> None:
        super().__init__(name="lease-keeper", daemon=True)
        self._open_database = open_database
        self._holder = holder
        self._times = times
        self._lost = lost
        self._clock = clock
        self._end_process = end_process
        self._lock = threading.Lock()
        self._held: dict[str, _Held] = {}
        self._ticked = clock()
        self._stopping = threading.Event()

    def hold(self, run_id: str, epoch: int) -> None:
        """Renew this lease from now on; it has just been claimed."""
        with self._lock:
            self._held[run_id] = _Held(epoch, self._clock())

    def release(self, run_id: str, epoch: int) -> None:
        """Renew this lease no more; a later one of the run is still renewed."""
        with self._lock:
            held = self._held.get(run_id)
            if held is not None and held.epoch == epoch:
                del self._held[run_id]

    def tick(self) -> None:
        """Show that the loop is alive."""
        self._ticked = self._clock()

    def stop(self) -> None:
        """End the thread; leases that are still held expire."""
        self._stopping.set()

    def run(self) -> None:
        """Keep leases until stopped."""
        asyncio.run(self._keep())

    async def _keep(self) -> None:
        database = self._open_database()
        renewed = self._clock()
        try:
            while not self._stopping.is_set():
                self._end_when_stalled()
                now = self._clock()
                if now - renewed >= self._times.renewal.total_seconds():
                    renewed = now
                    await self._renew(database)
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            await database.close()

    def _end_when_stalled(self) -> None:
        silent = self._clock() - self._ticked
        if silent > self._times.loop_stall.total_seconds():
            _log.critical(
                "the event loop has not ticked for %.0f s: graph code blocks it; ending the "
                "process so that its runs go on elsewhere",
                silent,
            )
            self._end_process(STALLED_EXIT_CODE)

    async def _renew(self, database: Database) -> None:
        with self._lock:
            wanted = {run_id: held.epoch for run_id, held in self._held.items()}
        if not wanted:
            return
        asked = self._clock()
        try:
            async with asyncio.timeout(self._times.renewal.total_seconds()):
                async with database.raw_jobs() as tx:
                    kept = await leases.renew(tx, self._holder, self._times.lease, wanted)
        except Exception as error:
            # Whatever it is: a keeper that ended would end every run of the process.
            _log.warning("leases could not be renewed (%s)", error)
            self._give_up_the_expired()
            return
        self._note(wanted, kept, asked)

    def _note(self, wanted: Mapping[str, int], kept: frozenset[str], asked: float) -> None:
        gone = []
        with self._lock:
            for run_id, epoch in wanted.items():
                held = self._held.get(run_id)
                if held is None or held.epoch != epoch:
                    continue
                if run_id in kept:
                    held.renewed = asked
                else:
                    gone.append((run_id, epoch))
                    del self._held[run_id]
        for run_id, epoch in gone:
            self._lost(run_id, epoch)

    def _give_up_the_expired(self) -> None:
        """What the database no longer protects must stop by our own clock."""
        now, lease = self._clock(), self._times.lease.total_seconds()
        with self._lock:
            gone = [
                (run_id, held.epoch)
                for run_id, held in self._held.items()
                if now - held.renewed > lease
            ]
            for run_id, _ in gone:
                del self._held[run_id]
        for run_id, epoch in gone:
            self._lost(run_id, epoch)
