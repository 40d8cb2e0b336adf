"""What a slot does while earlier runs are not finished, by each policy."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogni.executor.v1 import run_pb2
from services.scheduler.overlap import (
    BUFFERED_MAX,
    OverlapView,
    Unfinished,
    decide,
    next_turn,
)
from services.scheduler.schedules import OverlapPolicy, ScheduleState, StateReason
from services.scheduler.slot_records import SlotReason, SlotState

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def _policy(name: str) -> dict[str, Any]:
    return {"overlap_policy": f"OVERLAP_POLICY_{name}"}


async def _running(world: Any, policy: str, **fields: Any) -> Any:
    """A schedule whose first slot has started a run that has not ended."""
    schedule = await world.create(**_policy(policy), **fields)
    await world.fire(schedule)
    await world.deliver()
    await world.hear()
    return schedule


async def _next(world: Any, schedule: Any) -> None:
    await world.fire(schedule)
    await world.deliver()
    # What the start decided may itself owe something.
    await world.deliver()


@pytest.mark.parametrize(
    ("policy", "states", "runs"),
    [
        ("SKIP", ["STARTED", "SKIPPED", "SKIPPED"], 1),
        ("BUFFER_ONE", ["STARTED", "BUFFERED", "SKIPPED"], 1),
        ("BUFFER_ALL", ["STARTED", "BUFFERED", "BUFFERED"], 1),
        ("ALLOW_ALL", ["STARTED", "STARTED", "STARTED"], 3),
    ],
)
async def test_slots_during_a_run_do_what_the_policy_says(
    world: Any, policy: str, states: list[str], runs: int
) -> None:
    schedule = await _running(world, policy)
    await _next(world, schedule)
    await _next(world, schedule)
    assert await world.states(schedule) == states
    assert len(world.executor.runs) == runs


@pytest.mark.parametrize("policy", ["BUFFER_ONE", "BUFFER_ALL"])
async def test_a_waiting_slot_starts_when_the_run_has_ended(world: Any, policy: str) -> None:
    schedule = await _running(world, policy)
    await _next(world, schedule)
    [first, waiting] = await world.slots(schedule)
    assert (await world.get(schedule)).counts.buffered == 1

    await world.executor.end(first.run_id)
    await world.hear()
    await world.deliver()

    [_, started] = await world.slots(schedule)
    assert (waiting.state, started.state) == (SlotState.BUFFERED, SlotState.STARTED)
    assert started.reason is SlotReason.TURN_CAME
    assert (await world.get(schedule)).counts.buffered == 0


async def test_waiting_slots_start_one_after_another_in_order(world: Any) -> None:
    schedule = await _running(world, "BUFFER_ALL")
    for _ in range(3):
        await _next(world, schedule)
    for done in range(4):
        started = [slot for slot in await world.slots(schedule) if slot.run_id]
        assert [slot.state for slot in started] == [SlotState.STARTED] * (done + 1)
        await world.executor.end(started[-1].run_id)
        await world.hear()
        await world.deliver()
    assert len(world.executor.runs) == 4


async def test_cancel_other_cancels_the_run_and_waits_for_its_end(world: Any) -> None:
    schedule = await _running(world, "CANCEL_OTHER")
    [first] = await world.slots(schedule)
    await _next(world, schedule)

    assert world.executor.cancelled == [first.run_id]
    assert await world.states(schedule) == ["STARTED", "BUFFERED"]
    await world.hear()
    await world.deliver()
    assert await world.states(schedule) == ["STARTED", "STARTED"]


async def test_terminate_other_cancels_the_run_and_starts_at_once(world: Any) -> None:
    schedule = await _running(world, "TERMINATE_OTHER")
    [first] = await world.slots(schedule)
    await _next(world, schedule)
    assert await world.states(schedule) == ["STARTED", "STARTED"]
    await world.deliver()
    assert world.executor.cancelled == [first.run_id]


async def test_a_run_that_ended_unheard_does_not_skip_the_next_slot(world: Any) -> None:
    schedule = await _running(world, "SKIP")
    [first] = await world.slots(schedule)
    world.executor.end_unheard(first.run_id)

    await _next(world, schedule)

    assert await world.states(schedule) == ["STARTED", "STARTED"]


async def test_no_slot_is_skipped_on_an_old_view_while_the_executor_is_down(world: Any) -> None:
    schedule = await _running(world, "SKIP")
    [first] = await world.slots(schedule)
    world.executor.end_unheard(first.run_id)
    world.executor.down = True
    await _next(world, schedule)
    assert await world.states(schedule) == ["STARTED", "PENDING"]
    await _next(world, schedule)
    assert await world.states(schedule) == ["STARTED", "PENDING", "SKIPPED"]

    world.executor.down = False
    await world.pass_time(timedelta(minutes=2))
    await world.sweeper.redispatch()
    await world.deliver()
    assert await world.states(schedule) == ["STARTED", "STARTED", "SKIPPED"]


async def test_a_run_heard_of_before_its_start_was_noted_counts_as_started(world: Any) -> None:
    schedule = await world.create()
    await world.fire(schedule)
    world.executor.lose_answers = 1000
    await world.deliver()
    assert await world.states(schedule) == ["PENDING"]

    await world.hear()

    [slot] = await world.slots(schedule)
    assert slot.state is SlotState.STARTED
    assert slot.run_id in world.executor.runs


async def test_a_failed_run_pauses_a_schedule_that_asks_for_it(world: Any) -> None:
    schedule = await _running(world, "SKIP", pause_on_failure=True)
    [slot] = await world.slots(schedule)
    await world.executor.end(slot.run_id, run_pb2.RUN_STATE_FAILED)
    await world.hear()
    now_kept = await world.get(schedule)
    assert (now_kept.state, now_kept.state_reason) == (
        ScheduleState.PAUSED,
        StateReason.RUN_FAILED,
    )


_VIEWS = st.lists(
    st.sampled_from([SlotState.PENDING, SlotState.STARTED, SlotState.BUFFERED]), max_size=120
).map(
    lambda states: OverlapView(
        tuple(Unfinished(T0 + timedelta(seconds=n), state) for n, state in enumerate(states))
    )
)


@given(view=_VIEWS, policy=st.sampled_from(OverlapPolicy))
def test_no_policy_starts_beside_a_run_unless_it_says_so(
    view: OverlapView, policy: OverlapPolicy
) -> None:
    decision = decide(policy, view, SlotReason.DUE)
    may_overlap = policy in (OverlapPolicy.ALLOW_ALL, OverlapPolicy.TERMINATE_OTHER)
    if decision.state is SlotState.PENDING and not may_overlap:
        assert view.unfinished == ()
    if decision.state is SlotState.BUFFERED:
        left = view.without(decision.displaced)
        assert len(left.buffered) < BUFFERED_MAX
        assert view.unfinished
    turn = next_turn(view)
    assert (turn is None) == (bool(view.active) or not view.buffered)


async def test_a_slot_that_is_skipped_after_all_uses_up_no_action(world: Any) -> None:
    schedule = await _running(world, "SKIP", remaining_actions=2)

    await _next(world, schedule)
    assert await world.states(schedule) == ["STARTED", "SKIPPED"]
    now_kept = await world.get(schedule)
    assert (now_kept.state, now_kept.settings.remaining_actions) == (ScheduleState.ACTIVE, 1)

    [first, _] = await world.slots(schedule)
    world.executor.end_unheard(first.run_id)
    await _next(world, schedule)
    assert await world.states(schedule) == ["STARTED", "SKIPPED", "STARTED"]
    now_kept = await world.get(schedule)
    assert (now_kept.state, now_kept.settings.remaining_actions) == (ScheduleState.COMPLETED, 0)
