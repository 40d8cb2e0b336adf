"""Pulls as many runs as the process has free slots, and carries each in a task of its own."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta

from cogni.executor.v1.run_event_pb2 import AttemptCause, AttemptStarted
from services.executor.events import Draft
from services.executor.runner.attempt import Attempt, Workshop
from services.executor.runner.ending import Finished, end
from services.executor.runner.lease_keeper import LeaseKeeper
from services.executor.runner.stopping import stopped_by
from services.executor.runner.threads import LoopThreads
from services.executor.runs import RunError, RunState
from services.executor.store import controls, events, leases
from services.executor.store.events import CONTROLS_CHANNEL, Connection
from services.executor.store.leases import Claim, LeaseTimes
from services.runtime.errors import ServiceError
from services.runtime.listen import Listener

_log = logging.getLogger(__name__)

#: Runners look by themselves so often, whatever wakes them besides.
LOOK_SECONDS = 1.0
_TICK_SECONDS = 0.25

_CAUSES = {
    "STARTED": AttemptCause.ATTEMPT_CAUSE_FIRST,
    "RESUMED": AttemptCause.ATTEMPT_CAUSE_RESUMED,
    "HANDED_OVER": AttemptCause.ATTEMPT_CAUSE_HANDED_OVER,
    "LEASE_EXPIRED": AttemptCause.ATTEMPT_CAUSE_LEASE_EXPIRED,
}


@dataclass(frozen=True)
class LoopSettings:
    """How many runs the process carries, as whom, and how long a suspect stays alone."""

    holder: str
    slots: int
    times: LeaseTimes
    #: Doubled with each suspicion.
    probation: timedelta
    #: How long runs may go on when the process shall end, before they are handed over.
    drain: timedelta
    #: How many blocking nodes, tools and models work at once; the others wait their turn.
    graph_threads: int = 64


class Loop:
    """The runner's main loop. Nothing waits in its memory: what it claims, it carries."""

    def __init__(
        self,
        workshop: Workshop,
        settings: LoopSettings,
        keeper: Callable[[Callable[[str, int], None]], LeaseKeeper],
        listener: Listener,
    ) -> None:
        self._workshop = workshop
        self._settings = settings
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        self._attempts: dict[str, tuple[Attempt, asyncio.Task[None]]] = {}
        self._alone_until: tuple[str, float] | None = None
        self._draining = False
        self._keeper = keeper(self._lost_in_thread)

    def wake(self) -> None:
        """Look for runs now. May be called from any thread."""
        self._loop.call_soon_threadsafe(self._woken.set)

    def drain(self) -> None:
        """Claim no more, and end when what is carried has ended or is handed over."""
        self._loop.call_soon_threadsafe(self._begin_drain)

    @property
    def carried(self) -> int:
        """How many runs are under way."""
        return len(self._attempts)

    async def run(self) -> None:
        """Carry runs until drained."""
        self._loop.set_default_executor(LoopThreads(self._settings.graph_threads))
        self._keeper.start()
        background = [
            asyncio.create_task(self._tick()),
            asyncio.create_task(self._watch_controls()),
        ]
        try:
            while not self._draining:
                await self._look()
                await self._until_woken()
            await self._drain()
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            self._keeper.stop()

    async def _look(self) -> None:
        try:
            await self._claim()
        except (ServiceError, OSError) as error:
            _log.warning("no runs can be claimed (%s)", error)

    async def _claim(self) -> None:
        if self._is_alone():
            return
        free = self._settings.slots - len(self._attempts)
        if free <= 0:
            return
        alone = not self._attempts
        suspect = await self._claim_expired(alone=alone)
        if suspect is not None:
            self._begin(suspect)
            if alone:
                self._stay_alone(suspect)
                return
            free -= 1
        while free > 0 and (claims := await self._claim_ready(free)):
            for claim in claims:
                self._begin(claim)
            free -= len(claims)

    async def _claim_ready(self, count: int) -> list[Claim]:
        settings = self._settings
        async with self._workshop.database.raw_jobs() as tx:
            claims = await leases.claim_ready(tx, settings.holder, count, settings.times)
            for claim in claims:
                await self._announce(tx, claim)
        return claims

    async def _claim_expired(self, *, alone: bool) -> Claim | None:
        settings = self._settings
        async with self._workshop.database.raw_jobs() as tx:
            claim = await leases.claim_expired(tx, settings.holder, settings.times, alone=alone)
            if claim is not None and not _exhausted(claim):
                await self._announce(tx, claim)
        return claim

    async def _announce(self, tx: Connection, claim: Claim) -> None:
        run = claim.run
        started = AttemptStarted(
            cause=_CAUSES[claim.cause],
            runner=self._settings.holder,
            revision=self._workshop.catalogue.revision(run.graph_id),
        )
        newest = await events.append_fenced(
            tx, run.run_id, run.tenant_id, claim.epoch, run.attempt, [Draft(started)]
        )
        assert newest is not None, "the lease was claimed in this transaction"
        await events.notify(tx, [(run.run_id, newest)])

    def _begin(self, claim: Claim) -> None:
        attempt = Attempt(self._workshop, claim)
        run_id = claim.run.run_id
        self._keeper.hold(run_id, claim.epoch)
        carrying = self._give_up(attempt) if _exhausted(claim) else attempt.carry()
        task = asyncio.create_task(carrying, name=f"attempt {run_id}")
        self._attempts[run_id] = (attempt, task)
        task.add_done_callback(lambda done: self._ended(run_id, claim.epoch, done))

    async def _give_up(self, attempt: Attempt) -> None:
        """End a run whose processes keep dying, without trying it again."""
        most = attempt.claim.run.options.max_attempts
        error = RunError(
            "ATTEMPTS_EXHAUSTED",
            f"The process that carried the run died {most} times while it carried nothing else.",
        )
        await end(
            self._workshop.database,
            self._workshop.journal,
            attempt.holding,
            Finished(RunState.FAILED, error=error),
        )

    def _ended(self, run_id: str, epoch: int, task: asyncio.Task[None]) -> None:
        self._keeper.release(run_id, epoch)
        # The run may be back already: answered while its old attempt had yet to learn that it
        # waits. What is kept of it is then the new attempt's.
        carried = self._attempts.get(run_id)
        if carried is not None and carried[1] is task:
            del self._attempts[run_id]
            if self._alone_until is not None and self._alone_until[0] == run_id:
                self._alone_until = None
        if not task.cancelled() and (failure := task.exception()) is not None:
            _log.error("an attempt ended with a defect of the runner", exc_info=failure)
        self._woken.set()

    def _is_alone(self) -> bool:
        """Whether a suspect is on probation, and nothing else may be carried."""
        if self._alone_until is None:
            return False
        run_id, until = self._alone_until
        if self._loop.time() < until:
            return True
        self._alone_until = None
        if run_id in self._attempts:
            attempt = self._attempts[run_id][0]
            self._workshop.adopt(self._loop.create_task(self._absolve(attempt)))
        return False

    async def _absolve(self, attempt: Attempt) -> None:
        async with self._workshop.database.raw_jobs() as tx:
            await leases.absolve(tx, attempt.holding.run_id, attempt.holding.epoch)

    def _stay_alone(self, suspect: Claim) -> None:
        doublings = min(suspect.suspicions - 1, 8)
        probation = self._settings.probation.total_seconds() * 2**doublings
        self._alone_until = (suspect.run.run_id, self._loop.time() + probation)

    async def _until_woken(self) -> None:
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                await self._woken.wait()
        except TimeoutError:
            return
        finally:
            self._woken.clear()

    async def _tick(self) -> None:
        while True:
            self._keeper.tick()
            await asyncio.sleep(_TICK_SECONDS)

    async def _watch_controls(self) -> None:
        """Stop runs that somebody cancels, or whose grant ends: at once, and by looking."""
        async with aclosing(
            self._listener.wakeups(CONTROLS_CHANNEL, poll_seconds=LOOK_SECONDS)
        ) as wakeups:
            async for wakeup in wakeups:
                carried = self._attempts.keys()
                looked_at = carried if wakeup.anything else wakeup.payloads & carried
                if looked_at:
                    await self._stop_those(list(looked_at))

    async def _stop_those(self, run_ids: list[str]) -> None:
        try:
            async with self._workshop.database.raw_jobs() as tx:
                stops = await controls.stops(tx, run_ids)
        except (ServiceError, OSError) as error:
            _log.warning("cancellations cannot be read (%s)", error)
            return
        for stop in stops:
            if stop.run_id in self._attempts:
                self._attempts[stop.run_id][0].stop(stopped_by(stop))

    def _lost_in_thread(self, run_id: str, epoch: int) -> None:
        self._loop.call_soon_threadsafe(self._lost, run_id, epoch)

    def _lost(self, run_id: str, epoch: int) -> None:
        carried = self._attempts.get(run_id)
        if carried is not None and carried[0].holding.epoch == epoch:
            carried[0].abandon()

    def _begin_drain(self) -> None:
        self._draining = True
        self._woken.set()

    async def _drain(self) -> None:
        tasks = [task for _, task in self._attempts.values()]
        if tasks:
            await asyncio.wait(tasks, timeout=self._settings.drain.total_seconds())
        left = list(self._attempts.values())
        for attempt, _ in left:
            attempt.hand_over()
        await asyncio.gather(*(task for _, task in left), return_exceptions=True)


def _exhausted(claim: Claim) -> bool:
    return claim.deaths >= claim.run.options.max_attempts
