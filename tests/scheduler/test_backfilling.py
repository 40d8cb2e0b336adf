"""A backfill starts what never had a run, at its pace and within its cap, and nothing else."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import text

from cogni.type.v1.amount_pb2 import Amount
from services.runtime.errors import ServiceError
from services.runtime.ids import new_id
from services.scheduler.backfills import BackfillOrder, BackfillState, CostCap
from services.scheduler.schedules import OverlapPolicy
from services.scheduler.slot_records import SlotOrigin, SlotReason, SlotState
from tests.scheduler.world import ALICE, EVERY_MINUTE

MINUTE = timedelta(minutes=1)


async def _schedule(world: Any, **fields: Any) -> tuple[Any, datetime]:
    """A schedule that fires each minute, and the whole minute now."""
    schedule = await world.create(EVERY_MINUTE, **fields)
    return schedule, (await world.now()).replace(second=0, microsecond=0)


def _order(schedule: Any, end: datetime, minutes: int, **changes: Any) -> BackfillOrder:
    order = BackfillOrder(
        schedule_id=schedule.schedule_id,
        start_time=end - minutes * MINUTE,
        end_time=end,
        starts_per_minute=6000,
        max_unfinished=0,
        overlap_policy=OverlapPolicy.ALLOW_ALL,
        cost_cap=None,
    )
    return replace(order, **changes)


async def _start(world: Any, order: BackfillOrder) -> Any:
    return await world.backfills.start(ALICE, new_id(), order)


async def _run_to_end(world: Any, backfill: Any) -> Any:
    for _ in range(200):
        await world.stepper.step_due()
        await world.deliver()
        await world.hear()
        found = await world.backfills.get(ALICE, backfill.backfill_id)
        if found.state is not BackfillState.RUNNING:
            return found
        await world.pass_time(timedelta(seconds=61))
    raise AssertionError("the backfill does not end")


async def test_every_absent_slot_of_the_span_starts_once(world: Any) -> None:
    schedule, now = await _schedule(world)
    backfill = await _start(world, _order(schedule, now, 5))
    assert backfill.total_count == 5

    done = await _run_to_end(world, backfill)

    assert (done.state, done.done_count, done.started_count) == (BackfillState.COMPLETED, 5, 5)
    slots = await world.slots(schedule)
    assert [slot.key.scheduled_time for slot in slots] == [
        now - n * MINUTE for n in range(5, 0, -1)
    ]
    assert {slot.origin for slot in slots} == {SlotOrigin.BACKFILL}
    assert len(world.executor.runs) == 5


async def test_slots_with_an_outcome_are_left_alone_and_missed_ones_start(world: Any) -> None:
    schedule, _ = await _schedule(world, catch_up={"mode": "CATCH_UP_MODE_SKIP"})
    await world.fire(schedule)
    await world.deliver()
    await world.pass_time(4 * MINUTE)
    await world.clock.fire_due()
    await world.deliver()
    before = await world.slots(schedule)
    missed = [slot for slot in before if slot.state is SlotState.MISSED]
    assert len(missed) >= 3
    runs = set(world.executor.runs)

    span_end = before[-1].key.scheduled_time + MINUTE
    span = _order(schedule, min(span_end, await world.now()), 10)
    done = await _run_to_end(world, await _start(world, span))

    after = {slot.key: slot for slot in await world.slots(schedule)}
    for slot in before:
        if slot.state is SlotState.STARTED:
            assert after[slot.key].run_id == slot.run_id
            assert after[slot.key].origin is SlotOrigin.SCHEDULE
    assert all(after[slot.key].state is SlotState.STARTED for slot in missed)
    assert all(after[slot.key].reason is SlotReason.BACKFILLED for slot in missed)
    assert done.present_count == len(before) - len(missed)
    assert runs < set(world.executor.runs)
    assert (await world.get(schedule)).counts.missed == 0


async def test_a_second_backfill_of_the_same_span_is_refused_as_empty(world: Any) -> None:
    schedule, now = await _schedule(world)
    await _run_to_end(world, await _start(world, _order(schedule, now, 3)))
    with pytest.raises(ServiceError) as refused:
        await _start(world, _order(schedule, now, 3))
    assert refused.value.reason == "BACKFILL_EMPTY"


async def test_backfills_that_race_start_each_slot_once(world: Any) -> None:
    schedule, now = await _schedule(world)
    both = [await _start(world, _order(schedule, now, 8)) for _ in range(2)]
    await asyncio.gather(*(world.stepper.step_due() for _ in range(4)))
    ends = [await _run_to_end(world, backfill) for backfill in both]
    assert sum(end.started_count for end in ends) == 8
    assert sum(end.present_count for end in ends) == 8
    assert len(world.executor.runs) == 8


async def test_the_pace_is_kept(world: Any) -> None:
    schedule, now = await _schedule(world)
    backfill = await _start(world, _order(schedule, now, 5, starts_per_minute=1))
    for started in (1, 2, 3):
        for _ in range(3):
            await world.stepper.step_due()
        found = await world.backfills.get(ALICE, backfill.backfill_id)
        assert found.done_count == started
        await world.pass_time(timedelta(seconds=61))


async def test_unfinished_runs_are_bounded(world: Any) -> None:
    schedule, now = await _schedule(world)
    backfill = await _start(world, _order(schedule, now, 5, max_unfinished=2))
    for _ in range(3):
        await world.stepper.step_due()
        await world.deliver()
        await world.hear()
        await world.pass_time(timedelta(seconds=2))
    assert len(world.executor.runs) == 2

    await world.executor.end(next(iter(world.executor.runs)))
    await world.hear()
    await world.stepper.step_due()
    await world.deliver()
    assert len(world.executor.runs) == 3
    found = await world.backfills.get(ALICE, backfill.backfill_id)
    assert found.state is BackfillState.RUNNING


async def test_the_cost_cap_stops_a_backfill(world: Any) -> None:
    schedule, now = await _schedule(world)
    cap = CostCap("USD", Decimal("0.25"))
    backfill = await _start(world, _order(schedule, now, 10, max_unfinished=1, cost_cap=cap))
    for _ in range(20):
        await world.stepper.step_due()
        await world.deliver()
        for run in world.executor.runs.values():
            if run.state == 1:
                run.usage.costs.append(Amount(asset="USD", value="0.10"))
                await world.executor.end(run.run_id)
        await world.hear()
        await world.pass_time(timedelta(seconds=2))
    found = await world.backfills.get(ALICE, backfill.backfill_id)
    assert found.state is BackfillState.CAPPED
    assert found.cost == Decimal("0.30")
    assert len(world.executor.runs) == 3


async def test_cancelling_takes_back_what_waits(world: Any) -> None:
    schedule, now = await _schedule(world)
    order = _order(schedule, now, 5, overlap_policy=OverlapPolicy.BUFFER_ALL)
    backfill = await _start(world, order)
    await world.stepper.step_due()
    await world.deliver()
    assert await world.states(schedule) == ["STARTED", *["BUFFERED"] * 4]

    for _ in range(2):
        cancelled = await world.backfills.cancel(ALICE, backfill.backfill_id)
    assert cancelled.state in (BackfillState.CANCELLED, BackfillState.COMPLETED)


async def test_cancelling_a_running_backfill_starts_nothing_further(world: Any) -> None:
    schedule, now = await _schedule(world)
    backfill = await _start(world, _order(schedule, now, 50, starts_per_minute=1))
    await world.stepper.step_due()
    cancelled = await world.backfills.cancel(ALICE, backfill.backfill_id)
    assert cancelled.state is BackfillState.CANCELLED
    await world.pass_time(timedelta(minutes=5))
    assert await world.stepper.step_due() == 0
    assert await world.states(schedule) == ["CANCELLED"]


async def test_a_deleted_schedule_fails_its_backfills(world: Any) -> None:
    schedule, now = await _schedule(world)
    backfill = await _start(world, _order(schedule, now, 50, starts_per_minute=1))
    await world.schedules.delete(ALICE, schedule.schedule_id, "")
    await world.stepper.step_due()
    found = await world.backfills.get(ALICE, backfill.backfill_id)
    assert found.state is BackfillState.FAILED


async def test_a_repeat_of_the_request_is_the_same_backfill(world: Any) -> None:
    schedule, now = await _schedule(world)
    request_id, order = new_id(), _order(schedule, now, 5)
    first = await world.backfills.start(ALICE, request_id, order)
    again = await world.backfills.start(ALICE, request_id, order)
    assert first.backfill_id == again.backfill_id
    with pytest.raises(ServiceError) as refused:
        await world.backfills.start(ALICE, request_id, replace(order, max_unfinished=7))
    assert refused.value.reason == "REQUEST_ID_REUSED"


@pytest.mark.parametrize("case", ["future", "too many", "no slot"])
async def test_spans_that_cannot_be_filled_are_refused(world: Any, case: str) -> None:
    schedule, now = await _schedule(world)
    order, reason = {
        "future": (_order(schedule, now + 10 * MINUTE, 5), "INVALID_REQUEST"),
        "too many": (_order(schedule, now, 100_001), "LIMIT_EXCEEDED"),
        "no slot": (
            replace(
                _order(schedule, now, 1),
                start_time=now - timedelta(seconds=50),
                end_time=now - timedelta(seconds=40),
            ),
            "BACKFILL_EMPTY",
        ),
    }[case]
    with pytest.raises(ServiceError) as refused:
        await _start(world, order)
    assert refused.value.reason == reason


@pytest.mark.parametrize("policy", ["CANCEL_OTHER", "TERMINATE_OTHER", "ALLOW_ALL"])
async def test_a_slot_that_a_backfill_was_faster_with_is_neither_fired_nor_counted_again(
    world: Any, policy: str
) -> None:
    schedule = await world.create(overlap_policy=f"OVERLAP_POLICY_{policy}", remaining_actions=1)
    due = await world.reach(schedule)
    order = replace(_order(schedule, due, 0), end_time=due + timedelta(milliseconds=1))
    await _start(world, order)
    await world.stepper.step_due()

    await world.clock.fire_due()
    await world.deliver()
    await world.pass_time(MINUTE)
    await world.deliver()

    [slot] = await world.slots(schedule)
    assert (slot.state, slot.origin) == (SlotState.STARTED, SlotOrigin.BACKFILL)
    assert world.executor.cancelled == []
    assert (await world.get(schedule)).settings.remaining_actions == 1


@pytest.mark.parametrize("revoked", ["its own grant", "the schedule's new grant"])
async def test_a_backfill_stops_with_the_grant_its_runs_are_under(world: Any, revoked: str) -> None:
    schedule, now = await _schedule(world)
    backfill = await _start(world, _order(schedule, now, 5, starts_per_minute=1))
    another = world.executor.grant()
    await world.schedules.update(
        ALICE,
        schedule.schedule_id,
        "",
        lambda old: replace(old, run=replace(old.run, grant_id=another)),
    )
    own = schedule.settings.run.grant_id
    await world.executor.revoke(own if revoked == "its own grant" else another)
    await world.hear("grants")

    await world.stepper.step_due()

    found = await world.backfills.get(ALICE, backfill.backfill_id)
    stopped = (BackfillState.FAILED, 0)
    assert (found.state, found.done_count) == (
        stopped if revoked == "its own grant" else (BackfillState.RUNNING, 1)
    )


async def test_a_backfill_whose_spec_can_no_longer_be_read_fails_alone(world: Any) -> None:
    schedule, now = await _schedule(world)
    broken = await _start(world, _order(schedule, now - 5 * MINUTE, 3))
    sound = await _start(world, _order(schedule, now, 3))
    async with world.db.jobs() as tx:
        await tx.execute(
            text(
                "UPDATE backfills SET spec = CAST(jsonb_set(CAST(spec AS jsonb), '{time_zone}', "
                "'\"Mars/Olympus\"') AS json) WHERE backfill_id = :id"
            ),
            {"id": broken.backfill_id},
        )

    await world.stepper.step_due()

    done = await world.backfills.get(ALICE, sound.backfill_id)
    assert done.done_count == 3
    async with world.db.jobs() as tx:
        kept = text("SELECT state FROM backfills WHERE backfill_id = :id")
        assert await tx.scalar(kept, {"id": broken.backfill_id}) == "FAILED"
