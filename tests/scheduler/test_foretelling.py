"""When a schedule will fire, what that would cost, and why it did or did not."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from google.protobuf.json_format import ParseDict

from cogni.scheduler.v1 import scheduler_service_pb2 as pb
from cogni.scheduler.v1 import slot_pb2
from tests.scheduler.world import ONE_SHOT, create_request


async def test_preview_shows_local_times_and_what_clock_changes_do(scheduler: Any) -> None:
    spec = {"cron": {"expressions": ["30 2 * * *"]}, "time_zone": "Europe/Berlin"}
    request = {"spec": spec, "start_time": "2027-03-27T00:00:00Z", "max_slots": 3}
    answer = await scheduler.PreviewSchedule(ParseDict(request, pb.PreviewScheduleRequest()))
    assert [slot.local_time for slot in answer.slots] == [
        "2027-03-27T02:30:00+01:00",
        "2027-03-28T03:00:00+02:00",
        "2027-03-29T02:30:00+02:00",
    ]
    assert answer.slots[1].dst_effect == slot_pb2.DST_EFFECT_MOVED_TO_GAP_END
    assert answer.more


async def test_preview_of_a_schedule_shows_its_jitter_and_its_end(
    world: Any, scheduler: Any
) -> None:
    spec = {
        "cron": {"expressions": ["0 * * * *"]},
        "jitter": "600s",
        "end_time": "2100-01-01T03:30:00Z",
    }
    created = (await scheduler.CreateSchedule(create_request(world, spec=spec))).schedule
    request = {"schedule_id": created.schedule_id, "start_time": "2100-01-01T00:00:00Z"}
    answer = await scheduler.PreviewSchedule(ParseDict(request, pb.PreviewScheduleRequest()))
    assert len(answer.slots) == 4
    assert not answer.more
    delays = {
        slot.fire_time.ToNanoseconds() - slot.scheduled_time.ToNanoseconds()
        for slot in answer.slots
    }
    assert len(delays) == 1
    assert 0 <= delays.pop() < 600e9


async def test_explain_says_why(world: Any, scheduler: Any) -> None:
    created = await world.create(
        {
            "cron": {"expressions": ["0 * * * *"]},
            "exclusions": [
                {
                    "window": {
                        "start_time": "2090-01-01T00:00:00Z",
                        "end_time": "2090-01-02T00:00:00Z",
                    }
                }
            ],
        }
    )
    slot = await world.fire(created)
    await world.deliver()

    async def verdict(time: Any) -> Any:
        request = pb.ExplainSlotRequest(schedule_id=created.schedule_id)
        if isinstance(time, str):
            request.scheduled_time.FromJsonString(time)
        else:
            request.scheduled_time.FromDatetime(time)
        return (await scheduler.ExplainSlot(request)).explanation

    recorded = await verdict(slot.key.scheduled_time)
    assert recorded.verdict == slot_pb2.SLOT_VERDICT_RECORDED
    assert any("was accepted" in step for step in recorded.steps)
    assert recorded.HasField("start_delay")
    planned = await verdict(slot.key.scheduled_time + timedelta(hours=5))
    assert planned.verdict == slot_pb2.SLOT_VERDICT_PLANNED
    before = await verdict(slot.key.scheduled_time - timedelta(hours=5))
    assert before.verdict == slot_pb2.SLOT_VERDICT_NOT_RECORDED
    assert any("before the schedule was created" in step for step in before.steps)
    assert (await verdict("2090-01-01T05:00:00Z")).verdict == slot_pb2.SLOT_VERDICT_EXCLUDED
    nothing = await verdict("2090-01-01T05:00:01Z")
    assert nothing.verdict == slot_pb2.SLOT_VERDICT_NOT_A_SLOT
    assert nothing.next.local_time == "2090-01-02T00:00:00+00:00"


async def test_a_simulation_tells_what_a_day_would_do_and_cost(scheduler: Any) -> None:
    request = {
        "schedule": {
            "spec": {"cron": {"expressions": ["*/15 * * * *"]}},
            "overlap_policy": "OVERLAP_POLICY_SKIP",
        },
        "start_time": "2026-03-01T00:00:00Z",
        "end_time": "2026-03-02T00:00:00Z",
        "run_duration": "1200s",
        "run_cost": {"asset": "USD", "value": "0.10"},
        "max_slots": 2,
    }
    answer = await scheduler.SimulateSchedule(ParseDict(request, pb.SimulateScheduleRequest()))
    assert (answer.total_slots, answer.started_slots, answer.skipped_slots) == (96, 48, 48)
    assert (answer.cost.asset, answer.cost.value) == ("USD", "4.80")
    assert [slot.state for slot in answer.slots] == [
        slot_pb2.SLOT_STATE_STARTED,
        slot_pb2.SLOT_STATE_SKIPPED,
    ]


async def test_a_simulation_of_a_schedule_assumes_its_latest_runs(
    world: Any, scheduler: Any
) -> None:
    created = await world.create(ONE_SHOT)
    slot = await world.fire(created)
    await world.deliver()
    [slot] = await world.slots(created)
    await world.pass_time(timedelta(seconds=30))
    await world.executor.end(slot.run_id)
    await world.hear()
    request = pb.SimulateScheduleRequest(schedule_id=created.schedule_id)
    request.end_time.FromDatetime(await world.now() + timedelta(days=3))
    answer = await scheduler.SimulateSchedule(request)
    assert answer.total_slots == 3
    assert 29 <= answer.run_duration.seconds <= 900
