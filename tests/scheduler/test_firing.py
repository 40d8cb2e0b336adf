"""Due schedules become slots, once each, and their runs start, once each."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import grpc
import pytest

from services.scheduler.schedules import ScheduleState, StateReason
from services.scheduler.slot_records import SlotReason, SlotState
from services.scheduler.use_cases.dispatch import key_of
from services.scheduler.use_cases.firing import Clock
from tests.scheduler.world import EVERY_MINUTE

# A machine that stalls for more than ten seconds makes a slot late.
ON_TIME = (SlotReason.DUE, SlotReason.CAUGHT_UP)
ONCE_A_YEAR: dict[str, Any] = {
    "interval": {"every": "31536000s", "anchor_time": "2026-01-01T00:00:00Z"}
}


async def test_a_due_slot_is_recorded_and_its_run_started(world: Any) -> None:
    schedule = await world.create()
    slot_time = await world.reach(schedule)

    assert await world.clock.fire_due() == 1
    assert await world.deliver() == 1

    [slot] = await world.slots(schedule)
    assert slot.key.scheduled_time == slot_time
    assert slot.state is SlotState.STARTED
    assert slot.reason in ON_TIME
    [request] = world.executor.requests
    assert slot.run_id == world.executor.by_request[request.request_id]
    assert request.request_id == slot.key.start_request_id
    assert request.origin.schedule.schedule_id == schedule.schedule_id
    assert dict(request.input) == {"n": 1}
    now_kept = await world.get(schedule)
    assert now_kept.counts.started == 1
    assert now_kept.last_slot_time == slot_time
    assert now_kept.next_slot_time == slot_time + timedelta(hours=1)


async def test_nothing_fires_before_its_time(world: Any) -> None:
    schedule = await world.create()
    assert await world.clock.fire_due() == 0
    assert await world.slots(schedule) == []


async def test_clocks_that_race_make_each_slot_once(world: Any) -> None:
    schedules = [await world.create(ONCE_A_YEAR) for _ in range(20)]
    await world.reach(schedules[0])
    clocks = [Clock(world.db, lambda: None) for _ in range(4)]

    claimed = sum(await asyncio.gather(*(clock.fire_due(7) for clock in clocks)))
    while more := await world.clock.fire_due(7):
        claimed += more

    # Each was claimed once: the slot's key alone would hide a second claim.
    assert claimed == 20
    assert [len(await world.slots(each)) for each in schedules] == [1] * 20
    assert await world.deliver() == 20
    assert len(world.executor.runs) == 20


async def test_a_message_delivered_twice_starts_nothing_twice(world: Any) -> None:
    schedule = await world.create()
    await world.fire(schedule)
    await world.relay.send_due()
    [message] = world.messages

    key = key_of(*message)
    await asyncio.gather(*(world.starter.start(key) for _ in range(5)))
    await world.starter.start(key)

    assert len(world.executor.runs) == 1
    assert await world.states(schedule) == ["STARTED"]
    assert (await world.get(schedule)).counts.started == 1


async def test_a_lost_message_is_sent_again(world: Any) -> None:
    schedule = await world.create()
    await world.fire(schedule)
    await world.relay.send_due()
    world.messages.clear()

    assert await world.sweeper.redispatch() == 0
    await world.pass_time(timedelta(seconds=31))
    assert await world.sweeper.redispatch() == 1
    assert await world.sweeper.redispatch() == 0
    await world.deliver()

    assert await world.states(schedule) == ["STARTED"]


async def test_a_start_whose_answer_was_lost_finds_the_same_run(world: Any) -> None:
    schedule = await world.create()
    await world.fire(schedule)
    world.executor.lose_answers = 1000
    await world.deliver()
    assert await world.states(schedule) == ["PENDING"]

    world.executor.lose_answers = 0
    await world.pass_time(timedelta(minutes=2))
    assert await world.sweeper.redispatch() == 1
    await world.deliver()

    assert await world.states(schedule) == ["STARTED"]
    assert len(world.executor.runs) == 1


async def test_an_executor_that_is_down_postpones_the_start(world: Any) -> None:
    schedule = await world.create()
    await world.fire(schedule)
    world.executor.down = True
    await world.deliver()

    [slot] = await world.slots(schedule)
    assert (slot.state, slot.reason) == (SlotState.PENDING, SlotReason.EXECUTOR_UNAVAILABLE)
    assert slot.attempts == 1

    world.executor.down = False
    await world.pass_time(timedelta(seconds=2))
    await world.sweeper.redispatch()
    await world.deliver()
    [slot] = await world.slots(schedule)
    assert slot.state is SlotState.STARTED
    assert slot.reason in ON_TIME


async def test_a_refused_start_is_final_and_pauses_the_schedule(world: Any) -> None:
    schedule = await world.create()
    await world.fire(schedule)
    world.executor.refusal = (grpc.StatusCode.FAILED_PRECONDITION, "GRAPH_BROKEN")
    await world.deliver()

    [slot] = await world.slots(schedule)
    assert (slot.state, slot.reason) == (SlotState.REFUSED, SlotReason.START_REFUSED)
    assert "GRAPH_BROKEN" in slot.note
    now_kept = await world.get(schedule)
    assert (now_kept.state, now_kept.state_reason) == (
        ScheduleState.PAUSED,
        StateReason.START_REFUSED,
    )
    assert now_kept.counts.failed == 1


async def test_a_wrong_token_of_ours_is_no_refusal_of_the_slot(world: Any) -> None:
    schedule = await world.create()
    await world.fire(schedule)
    world.executor.refusal = (grpc.StatusCode.PERMISSION_DENIED, "CALLER_NOT_ALLOWED")
    await world.deliver()
    assert await world.states(schedule) == ["PENDING"]


async def test_remaining_actions_end_a_schedule(world: Any) -> None:
    spec = {"interval": {"every": "1s"}}
    schedule = await world.create(
        spec,
        remaining_actions="2",
        overlap_policy="OVERLAP_POLICY_ALLOW_ALL",
        catch_up={"mode": "CATCH_UP_MODE_ALL"},
    )
    await world.pass_time(timedelta(seconds=5))
    await world.clock.fire_due()

    assert await world.states(schedule) == ["PENDING"] * 2
    now_kept = await world.get(schedule)
    assert (now_kept.state, now_kept.state_reason) == (
        ScheduleState.COMPLETED,
        StateReason.ACTIONS_USED_UP,
    )
    assert now_kept.settings.remaining_actions == 0
    assert now_kept.next_slot_time is None
    assert await world.clock.fire_due() == 0


async def test_the_end_of_the_spec_completes_a_schedule(world: Any) -> None:
    end = await world.now() + timedelta(seconds=90)
    schedule = await world.create(
        {"interval": {"every": "60s"}, "end_time": end.isoformat().replace("+00:00", "Z")}
    )
    await world.pass_time(timedelta(seconds=95))
    await world.clock.fire_due()
    now_kept = await world.get(schedule)
    assert now_kept.state_reason is StateReason.NO_SLOT_LEFT
    assert len(await world.slots(schedule)) in (1, 2)


async def test_jitter_delays_firing_and_not_the_nominal_time(world: Any) -> None:
    schedule = await world.create({"cron": {"expressions": ["0 * * * *"]}, "jitter": "1800s"})
    assert schedule.next_slot_time is not None
    assert schedule.next_slot_time.minute == 0
    delay = schedule.next_fire_time - schedule.next_slot_time
    assert timedelta(0) <= delay < timedelta(minutes=30)

    await world.pass_time(schedule.next_slot_time - await world.now() + timedelta(seconds=1))
    if delay > timedelta(minutes=3):
        assert await world.clock.fire_due() == 0
    slot = await world.fire(schedule)

    assert slot.key.scheduled_time == schedule.next_slot_time
    assert slot.fire_time == schedule.next_fire_time


@pytest.mark.parametrize("jump", [timedelta(hours=1), timedelta(days=366)])
async def test_a_clock_that_jumps_back_makes_no_slot_twice(world: Any, jump: timedelta) -> None:
    schedule = await world.create(EVERY_MINUTE, overlap_policy="OVERLAP_POLICY_ALLOW_ALL")
    await world.pass_time(jump)
    await world.clock.fire_due()
    before = await world.slots(schedule)
    assert len(before) <= 1020

    await world.pass_time(-jump)
    assert await world.clock.fire_due() == 0
    await world.pass_time(jump + timedelta(seconds=60))
    await world.clock.fire_due()

    after = await world.slots(schedule)
    assert after[: len(before)] == before
    assert len(after) > len(before)
    times = [slot.key.scheduled_time for slot in after]
    assert times == sorted(set(times))


async def test_a_spec_that_cannot_be_read_any_more_pauses_its_schedule_alone(world: Any) -> None:
    broken, sound = await world.create(), await world.create()
    await world.reach(sound)
    async with world.db.jobs() as tx:
        connection = await tx.get_raw_connection()
        await connection.driver_connection.execute(
            "UPDATE schedules SET spec = replace(spec::text, '\"UTC\"', '\"Mars/Olympus\"')::json "
            "WHERE schedule_id = $1",
            broken.schedule_id,
        )
    await world.clock.fire_due()

    assert (await world.get(broken)).state is ScheduleState.PAUSED
    assert "Mars/Olympus" in (await world.get(broken)).state_note
    assert len(await world.slots(sound)) == 1


async def test_another_release_of_the_zones_recomputes_the_next_slot(world: Any) -> None:
    schedule = await world.create({"cron": {"expressions": ["0 0 1 1 *"]}})
    async with world.db.jobs() as tx:
        connection = await tx.get_raw_connection()
        await connection.driver_connection.execute(
            "UPDATE schedules SET tzdata_version = '1999a', "
            "next_slot_time = next_slot_time + interval '1 hour', "
            "next_fire_time = next_fire_time + interval '1 hour'"
        )
    assert await world.clock.recompute_outdated() == 1
    assert (await world.get(schedule)).next_slot_time == schedule.next_slot_time
    assert await world.clock.recompute_outdated() == 0
