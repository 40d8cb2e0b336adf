"""Says when a schedule will fire, and why it did or did not."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice

from services.runtime.caller import Caller
from services.runtime.database import Database
from services.runtime.errors import Violation, invalid, not_found
from services.scheduler.explanation import Explanation, explain
from services.scheduler.schedules import Schedule, Settings
from services.scheduler.simulation import (
    RUN_DURATION_DEFAULT,
    Scenario,
    Simulation,
    simulate,
)
from services.scheduler.slot_records import SlotKey
from services.scheduler.slots import HORIZON, Occurrence, Slots, fire_time
from services.scheduler.specs import Spec, TimeWindow
from services.scheduler.store import schedules, slots

PREVIEW_DEFAULT = 10
# The latest runs whose average length a simulation assumes.
_AVERAGED_RUNS = 20


@dataclass(frozen=True, slots=True)
class Preview:
    """Slots with their fire times, and whether there are more."""

    spec: Spec
    slots: tuple[tuple[Occurrence, datetime], ...]
    more: bool


class Foretelling:
    """Answers about slots that need no change of anything."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def preview_schedule(
        self,
        caller: Caller,
        schedule_id: str,
        start: datetime | None,
        end: datetime | None,
        count: int,
    ) -> Preview:
        """The next slots of a schedule that exists."""
        schedule, moment = await self._schedule(caller, schedule_id)
        spec, share = schedule.settings.spec, schedule.jitter_share
        return await asyncio.to_thread(_preview, spec, share, start or moment, end, count)

    async def preview_spec(
        self,
        caller: Caller,
        spec: Spec,
        start: datetime | None,
        end: datetime | None,
        count: int,
    ) -> Preview:
        """The next slots of a spec that belongs to no schedule."""
        if start is None:
            async with self._database.tenant(caller.tenant_id) as tx:
                start = await schedules.now(tx)
        return await asyncio.to_thread(_preview, spec, 0.0, start, end, count)

    async def explain(
        self, caller: Caller, schedule_id: str, scheduled_time: datetime
    ) -> tuple[Schedule, Explanation]:
        """Why there is, or is not, a slot at a time."""
        schedule, moment = await self._schedule(caller, schedule_id)
        async with self._database.tenant(caller.tenant_id) as tx:
            slot = await slots.get(tx, SlotKey(schedule_id, scheduled_time))
        explanation = await asyncio.to_thread(explain, schedule, scheduled_time, slot, moment)
        return schedule, explanation

    async def simulate(
        self,
        caller: Caller,
        target: str | Settings,
        start: datetime | None,
        end: datetime,
        run_duration: timedelta | None,
        outages: tuple[TimeWindow, ...],
    ) -> tuple[Scenario, Simulation]:
        """Play a schedule, one that exists or settings of one, through a span of time."""
        async with self._database.tenant(caller.tenant_id) as tx:
            moment = await schedules.now(tx)
        share, average = 0.0, None
        if isinstance(target, str):
            schedule, moment = await self._schedule(caller, target)
            async with self._database.tenant(caller.tenant_id) as tx:
                average = await slots.average_run(tx, target, _AVERAGED_RUNS)
            target, share = schedule.settings, schedule.jitter_share
        start = start or moment
        if end <= start:
            raise invalid(Violation("end_time", "must be after start_time"))
        scenario = Scenario(
            spec=target.spec,
            share=share,
            overlap_policy=target.overlap_policy,
            catch_up=target.catch_up,
            remaining_actions=target.remaining_actions,
            start_time=start,
            end_time=end,
            run_duration=run_duration or average or RUN_DURATION_DEFAULT,
            outages=outages,
        )
        return scenario, await asyncio.to_thread(simulate, scenario)

    async def _schedule(self, caller: Caller, schedule_id: str) -> tuple[Schedule, datetime]:
        async with self._database.tenant(caller.tenant_id) as tx:
            schedule = await schedules.get(tx, schedule_id)
            if schedule is None:
                raise not_found("schedule", schedule_id)
            return schedule, await schedules.now(tx)


def _preview(
    spec: Spec, share: float, start: datetime, end: datetime | None, count: int
) -> Preview:
    count = count or PREVIEW_DEFAULT
    engine = Slots(spec)
    limit = min(end, start + HORIZON) if end is not None else start + HORIZON
    # One more than asked for says whether there are more; two more give each its follower.
    found = list(islice(engine.between(start, limit), count + 1))
    after_last = engine.after(found[-1].time) if found and spec.jitter else None
    followers = [*(each.time for each in found[1:]), after_last.time if after_last else None]
    timed = (
        [
            (each, fire_time(each.time, follower, spec, share))
            for each, follower in zip(found, followers, strict=True)
        ]
        if found
        else []
    )
    return Preview(spec, tuple(timed[:count]), len(found) > count)
