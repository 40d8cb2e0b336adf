"""A simulated schedule does what the rules that fire would do."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.runtime.errors import ServiceError
from services.scheduler.schedules import CatchUpMode, CatchUpPolicy, OverlapPolicy
from services.scheduler.simulation import Scenario, simulate
from services.scheduler.slot_records import SlotState
from services.scheduler.specs import CronRecurrence, IntervalRecurrence, Spec, TimeWindow
from services.scheduler.wall import ELAPSED

T0 = datetime(2026, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
QUARTERLY = Scenario(
    spec=Spec(CronRecurrence(("*/15 * * * *",)), ELAPSED),
    share=0.0,
    overlap_policy=OverlapPolicy.SKIP,
    catch_up=CatchUpPolicy(),
    remaining_actions=None,
    start_time=T0,
    end_time=T0 + 2 * HOUR,
    run_duration=timedelta(minutes=20),
)


def _counts(simulation: Any) -> dict[str, int]:
    return dict(Counter(slot.state.value for slot in simulation.slots))


@pytest.mark.parametrize(
    ("policy", "counts", "buffered", "cancelled", "concurrent"),
    [
        (OverlapPolicy.SKIP, {"STARTED": 4, "SKIPPED": 4}, 0, 0, 1),
        (OverlapPolicy.BUFFER_ONE, {"STARTED": 7, "SKIPPED": 1}, 6, 0, 1),
        (OverlapPolicy.BUFFER_ALL, {"STARTED": 8}, 7, 0, 1),
        (OverlapPolicy.CANCEL_OTHER, {"STARTED": 8}, 7, 7, 1),
        (OverlapPolicy.TERMINATE_OTHER, {"STARTED": 8}, 0, 7, 1),
        (OverlapPolicy.ALLOW_ALL, {"STARTED": 8}, 0, 0, 2),
    ],
)
def test_each_overlap_policy_plays_out(
    policy: OverlapPolicy, counts: dict[str, int], buffered: int, cancelled: int, concurrent: int
) -> None:
    simulation = simulate(replace(QUARTERLY, overlap_policy=policy))
    assert _counts(simulation) == counts
    assert simulation.buffered_count == buffered
    assert simulation.cancelled_runs == cancelled
    assert simulation.concurrent_runs_max == concurrent


def test_waiting_slots_start_when_the_run_before_ends() -> None:
    simulation = simulate(replace(QUARTERLY, overlap_policy=OverlapPolicy.BUFFER_ALL))
    starts = [slot.start_time for slot in simulation.slots]
    assert starts == [T0 + timedelta(minutes=20) * n for n in range(8)]


@pytest.mark.parametrize(
    ("mode", "counts"),
    [
        (CatchUpMode.SKIP, {"STARTED": 4, "MISSED": 4}),
        (CatchUpMode.COALESCE, {"STARTED": 5, "SKIPPED": 3}),
        (CatchUpMode.ALL, {"STARTED": 8}),
    ],
)
def test_an_outage_ends_with_catch_up(mode: CatchUpMode, counts: dict[str, int]) -> None:
    outage = TimeWindow(T0 + timedelta(minutes=14), T0 + timedelta(minutes=65))
    simulation = simulate(
        replace(
            QUARTERLY,
            overlap_policy=OverlapPolicy.ALLOW_ALL,
            catch_up=CatchUpPolicy(mode),
            outages=(outage,),
        )
    )
    assert _counts(simulation) == counts
    late = [slot for slot in simulation.slots if slot.start_time == outage.end_time]
    assert all(slot.scheduled_time <= outage.end_time for slot in late)


def test_remaining_actions_end_a_simulation() -> None:
    simulation = simulate(replace(QUARTERLY, remaining_actions=3))
    assert simulation.count(SlotState.STARTED) == 3


def test_a_simulation_is_bounded() -> None:
    secondly = Spec(IntervalRecurrence(timedelta(seconds=1)), ELAPSED)
    with pytest.raises(ServiceError) as refused:
        simulate(replace(QUARTERLY, spec=secondly, end_time=T0 + timedelta(days=2)))
    assert refused.value.reason == "LIMIT_EXCEEDED"


def test_an_outage_of_a_century_is_passed_over_at_once() -> None:
    century = timedelta(days=36_500)
    outage = TimeWindow(T0 + HOUR, T0 + century)
    scenario = replace(
        QUARTERLY,
        spec=Spec(IntervalRecurrence(timedelta(seconds=1)), ELAPSED),
        end_time=T0 + century + timedelta(seconds=10),
        outages=(outage,),
    )
    played = simulate(scenario)
    after = [slot for slot in played.slots if slot.fire_time > outage.end_time]
    assert len(played.slots) < 5000
    assert len(after) == 9
