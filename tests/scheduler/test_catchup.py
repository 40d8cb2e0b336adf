"""What late slots become: bounded by window, count and mode, in bounded memory."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.scheduler.catchup import LATE_AFTER, MISSED_ROWS_MAX, Pause, plan
from services.scheduler.schedules import CatchUpMode, CatchUpPolicy, ScheduleState
from services.scheduler.slot_records import SlotReason, SlotState
from services.scheduler.slots import Slots
from services.scheduler.specs import CronRecurrence, IntervalRecurrence, Spec
from services.scheduler.wall import ELAPSED
from tests.scheduler.world import ALICE, EVERY_MINUTE

T0 = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
MINUTELY = Spec(CronRecurrence(("* * * * *",)), ELAPSED)
ALLOW_ALL = {"overlap_policy": "OVERLAP_POLICY_ALLOW_ALL"}


def _plan(late: timedelta, policy: CatchUpPolicy, spec: Spec = MINUTELY) -> Any:
    return plan(spec, 0.0, T0, T0 + late, policy, Pause())


def _tally(planned: Any) -> dict[str, int]:
    return dict(Counter(f"{slot.state} {slot.reason}" for slot in planned.slots))


@pytest.mark.parametrize(
    ("mode", "tally"),
    [
        (CatchUpMode.SKIP, {"MISSED TOO_LATE": 30}),
        (CatchUpMode.COALESCE, {"SKIPPED COALESCED": 29, "PENDING CAUGHT_UP": 1}),
        (CatchUpMode.ALL, {"PENDING CAUGHT_UP": 30}),
    ],
)
def test_half_an_hour_of_late_slots_goes_by_the_mode(
    mode: CatchUpMode, tally: dict[str, int]
) -> None:
    planned = _plan(timedelta(minutes=30, seconds=30), CatchUpPolicy(mode))
    assert _tally(planned) == tally
    assert planned.position_time == T0 + timedelta(minutes=30)
    assert planned.following.slot_time == T0 + timedelta(minutes=31)


def test_window_and_count_both_bound_what_starts() -> None:
    policy = CatchUpPolicy(CatchUpMode.ALL, timedelta(minutes=10), 4)
    planned = _plan(timedelta(minutes=30, seconds=30), policy)
    assert _tally(planned) == {"MISSED TOO_LATE": 26, "PENDING CAUGHT_UP": 4}
    planned = _plan(
        timedelta(minutes=30, seconds=30), CatchUpPolicy(CatchUpMode.ALL, timedelta(minutes=2), 100)
    )
    assert _tally(planned) == {"MISSED TOO_LATE": 28, "PENDING CAUGHT_UP": 2}


def test_late_slots_coalesce_into_one_that_is_on_time() -> None:
    planned = _plan(timedelta(minutes=3, seconds=2), CatchUpPolicy())
    assert _tally(planned) == {"SKIPPED COALESCED": 2, "PENDING DUE": 1}


def test_slots_during_a_pause_say_so() -> None:
    pause = Pause(T0, T0 + timedelta(minutes=10, seconds=30))
    planned = plan(
        MINUTELY,
        0.0,
        T0,
        T0 + timedelta(minutes=12, seconds=30),
        CatchUpPolicy(CatchUpMode.SKIP),
        pause,
    )
    assert _tally(planned) == {"MISSED PAUSED": 10, "MISSED TOO_LATE": 2}


@pytest.mark.parametrize(
    "spec",
    [MINUTELY, Spec(IntervalRecurrence(timedelta(seconds=1)), ELAPSED)],
)
def test_a_year_of_missed_slots_is_planned_in_bounded_memory(spec: Spec) -> None:
    planned = _plan(timedelta(days=365), CatchUpPolicy(CatchUpMode.ALL, max_count=1000), spec)
    assert len(planned.slots) <= MISSED_ROWS_MAX + 1000 + 20
    assert planned.position_time <= T0 + timedelta(days=365)
    assert planned.following.slot_time > T0 + timedelta(days=365)


@given(
    late=st.timedeltas(timedelta(0), timedelta(hours=3)),
    mode=st.sampled_from(CatchUpMode),
    window=st.timedeltas(timedelta(seconds=10), timedelta(hours=2)),
    count=st.integers(1, 50),
    jitter=st.timedeltas(timedelta(0), timedelta(minutes=2)),
    share=st.floats(0, 0.999),
)
@settings(max_examples=150)
def test_every_due_slot_is_dealt_with_once_and_in_order(
    late: timedelta,
    mode: CatchUpMode,
    window: timedelta,
    count: int,
    jitter: timedelta,
    share: float,
) -> None:
    spec = Spec(CronRecurrence(("* * * * *",)), ELAPSED, jitter=jitter)
    now = T0 + late
    policy = CatchUpPolicy(mode, window, count)

    planned = plan(spec, share, T0, now, policy, Pause())

    nominal = [slot.scheduled_time for slot in planned.slots]
    every = [
        found.time for found in Slots(spec).between(T0 + timedelta(seconds=1), now + LATE_AFTER)
    ]
    due = [time for time in every if time <= planned.position_time]
    assert nominal == due
    assert all(slot.fire_time <= now for slot in planned.slots)
    assert planned.following.fire_time > now
    late_starts = [s for s in planned.slots if s.reason is SlotReason.CAUGHT_UP]
    assert len(late_starts) <= {"SKIP": 0, "COALESCE": 1, "ALL": count}[mode]
    assert all(now - slot.fire_time < window for slot in late_starts)
    again = plan(spec, share, planned.position_time, now, policy, Pause())
    assert again.slots == ()


async def test_unpausing_catches_up_as_the_policy_says(world: Any) -> None:
    schedule = await world.create(EVERY_MINUTE, **ALLOW_ALL)
    await world.schedules.pause(ALICE, schedule.schedule_id, "holidays")
    await world.pass_time(timedelta(days=30))
    assert await world.clock.fire_due() == 0

    unpaused = await world.schedules.unpause(ALICE, schedule.schedule_id, "", None)
    assert unpaused.state is ScheduleState.ACTIVE
    await world.clock.fire_due()

    tally = Counter(f"{slot.state} {slot.reason}" for slot in await world.slots(schedule))
    assert tally.pop("PENDING CAUGHT_UP", 0) + tally.pop("PENDING DUE", 0) == 1
    assert tally.pop("MISSED PAUSED") >= 900
    assert set(tally) <= {"SKIPPED COALESCED", "MISSED TOO_LATE"}
    assert len(await world.slots(schedule)) <= MISSED_ROWS_MAX + 20


async def test_unpausing_may_choose_another_mode_for_once(world: Any) -> None:
    schedule = await world.create(EVERY_MINUTE, **ALLOW_ALL)
    await world.schedules.pause(ALICE, schedule.schedule_id, "")
    await world.pass_time(timedelta(minutes=20))
    await world.schedules.unpause(ALICE, schedule.schedule_id, "", CatchUpMode.ALL)
    await world.clock.fire_due()
    started = [s for s in await world.slots(schedule) if s.state is SlotState.PENDING]
    assert 19 <= len(started) <= 30
    assert (await world.get(schedule)).catch_up_once is None


@pytest.mark.parametrize("mode", list(CatchUpMode))
def test_the_wait_for_its_share_of_the_jitter_does_not_age_a_slot(mode: CatchUpMode) -> None:
    daily = Spec(CronRecurrence(("0 0 * * *",)), ELAPSED, jitter=timedelta(hours=6))
    policy = CatchUpPolicy(mode, timedelta(hours=1), 5)
    slot = datetime(2026, 3, 2, tzinfo=UTC)
    fire = slot + timedelta(hours=3)
    on_time = plan(daily, 0.5, T0, fire, policy, Pause())
    assert [(each.scheduled_time, each.reason) for each in on_time.slots] == [
        (slot, SlotReason.DUE)
    ]
    in_time = plan(daily, 0.5, T0, fire + timedelta(minutes=59), policy, Pause())
    caught_up = mode is not CatchUpMode.SKIP
    assert in_time.slots[0].reason is (SlotReason.CAUGHT_UP if caught_up else SlotReason.TOO_LATE)
    too_late = plan(daily, 0.5, T0, fire + timedelta(minutes=61), policy, Pause())
    assert too_late.slots[0].reason is SlotReason.TOO_LATE
