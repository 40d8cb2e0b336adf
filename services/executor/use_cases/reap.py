"""Carries on where somebody died: wakes runners, stops what must stop, ends what has expired."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta

from services.executor.runs import Cancellation, CancelReason
from services.executor.store import events, grants, reaping, runs
from services.executor.use_cases.backing import Backing
from services.executor.use_cases.stop_run import end, request_stop, stop_runs_under
from services.runtime.errors import ServiceError
from services.runtime.tokens import CLOCK_SKEW

_log = logging.getLogger(__name__)

_ROUND_SECONDS = 1.0
_BATCH = 100
# Runners look by themselves once a second; a hint helps only when their look was missed.
_FORGOTTEN_AFTER = timedelta(seconds=10)
# A runner that lives ends its run by itself when its time is over.
_TIMEOUT_GRACE = timedelta(seconds=10)
#: Who asks when nobody does.
REAPER = "service:executor"

#: Sends the hint that these runs can be claimed.
WakeUp = Callable[[list[str]], Awaitable[None]]


class Reaper:
    """One per process; any number may work side by side."""

    def __init__(self, on: Backing, wake_up: WakeUp, clock_skew: timedelta = CLOCK_SKEW) -> None:
        self._on = on
        self._wake_up = wake_up
        self._clock_skew = clock_skew

    async def run(self) -> None:
        """Reap until cancelled."""
        while True:
            await self.reap()
            await asyncio.sleep(_ROUND_SECONDS)

    async def reap(self) -> None:
        """Do one round of everything."""
        await self.expire_grants()
        await self.stop_overdue()
        await self.end_abandoned()
        await self.redispatch()

    async def expire_grants(self) -> None:
        """End grants whose time is over, and stop the runs of all ended ones.

        Also of those that a server revoked and died before it had stopped the runs.
        """
        async with self._on.database.raw_jobs() as tx:
            await grants.expire_due(tx, _BATCH)
            ended = await grants.ended_with_runs(tx, _BATCH)
        for grant_id, tenant_id in ended:
            async with self._on.database.raw_tenant(tenant_id) as tx:
                grant = await grants.get(tx, grant_id)
            assert grant is not None, "grants are never deleted"
            revoked = grant.revoke_time is not None
            reason = CancelReason.GRANT_REVOKED if revoked else CancelReason.GRANT_EXPIRED
            cancellation = Cancellation(reason, "", grant.revoker or REAPER)
            await stop_runs_under(self._on, tenant_id, grant_id, cancellation)

    async def stop_overdue(self) -> None:
        """Ask runs to stop that take longer than their timeout."""
        async with self._on.database.raw_jobs() as tx:
            found = await reaping.overdue(tx, _BATCH, _TIMEOUT_GRACE)
        for run_id, tenant_id in found:
            async with self._on.database.raw_tenant(tenant_id) as tx:
                await request_stop(tx, run_id, Cancellation(CancelReason.TIMEOUT, "", REAPER))

    async def end_abandoned(self) -> None:
        """End the runs that were asked to stop and that no runner carries any more."""
        async with self._on.database.raw_jobs() as tx:
            found = await reaping.stoppable(tx, _BATCH, self._clock_skew)
        for run_id, tenant_id in found:
            async with self._on.database.raw_tenant(tenant_id) as tx:
                await self._end(tx, run_id)

    async def redispatch(self) -> None:
        """Wake the runners for what they could claim: a hint, since they look by themselves."""
        async with self._on.database.raw_jobs() as tx:
            found = await reaping.expired(tx, _BATCH)
            found += await reaping.forgotten(tx, _BATCH, _FORGOTTEN_AFTER)
        if not found:
            return
        try:
            await self._wake_up([run_id for run_id, _ in found])
        except ServiceError as error:
            # A broker that is down must not slow down what needs PostgreSQL alone.
            _log.warning("runners cannot be woken (%s); they look by themselves", error.message)

    async def _end(self, tx: events.Connection, run_id: str) -> None:
        if not await reaping.take_over(tx, run_id, self._clock_skew):
            return
        run = await runs.get(tx, run_id, lock=True)
        assert run is not None, "its lease is there"
        assert run.cancellation is not None, "it was found by that, and nobody takes it back"
        await end(tx, run, run.cancellation, [], None)
