"""The Scheduler over gRPC: real server, real tokens, real database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict, ParseDict
from google.rpc import error_details_pb2

from cogni.scheduler.v1 import (
    backfill_pb2,
    slot_pb2,
    trigger_service_pb2,
    trigger_service_pb2_grpc,
)
from cogni.scheduler.v1 import scheduler_service_pb2 as pb
from cogni.scheduler.v1 import scheduler_service_pb2_grpc as stubs
from services.runtime.drain import Drain
from services.runtime.ids import new_id
from services.runtime.listen import Listener
from services.scheduler.composition import Standing, application
from tests.databases import all_is_final
from tests.plugins.calls import refused
from tests.plugins.refusals import prove_refusals

SCOPES = ("schedules:read", "schedules:write")


@pytest.fixture
async def served(world: Any, serve_service: Any) -> AsyncIterator[Any]:
    drain = Drain()
    listener = Listener(world.db.url)
    app = application(
        Standing(world.db, world.client),
        lambda: None,
        listener,
        drain,
        {"listener": listener.run},
    )
    running = await serve_service("scheduler", app, drain=drain)
    running.application = app
    return running


@pytest.fixture
def scheduler(served: Any, identities: Any) -> Any:
    return stubs.SchedulerServiceStub(served.channel(identities.user_token(scopes=SCOPES)))


def _request(world: Any, **changes: Any) -> dict[str, Any]:
    schedule = {
        "display_name": "nightly",
        "spec": {"cron": {"expressions": ["0 9 * * MON-FRI"]}, "time_zone": "Europe/Berlin"},
        "run": {"graph_id": "digest", "grant_id": world.executor.grant(), "input": {"a": [1, 2.5]}},
        **changes,
    }
    return {"request_id": new_id(), "schedule": schedule}


def _create(world: Any, **changes: Any) -> pb.CreateScheduleRequest:
    return ParseDict(_request(world, **changes), pb.CreateScheduleRequest())


async def test_no_rpc_serves_strangers(served: Any, identities: Any) -> None:
    await prove_refusals("scheduler", served.application, served, identities)


async def test_a_schedule_comes_back_with_everything_filled_in(world: Any, scheduler: Any) -> None:
    answer = await scheduler.CreateSchedule(_create(world))

    shown = MessageToDict(answer.schedule, preserving_proto_field_name=True)
    assert shown["state"] == "SCHEDULE_STATE_ACTIVE"
    assert shown["spec"]["dst_policy"] == {"gap": "GAP_POLICY_GAP_END", "fold": "FOLD_POLICY_FIRST"}
    assert shown["overlap_policy"] == "OVERLAP_POLICY_SKIP"
    assert shown["catch_up"] == {
        "mode": "CATCH_UP_MODE_COALESCE",
        "window": "3600s",
        "max_count": 100,
    }
    assert shown["creator"] == "alice"
    assert "next_slot_time" in shown
    assert "tzdata_version" in shown
    read = await scheduler.GetSchedule(
        pb.GetScheduleRequest(schedule_id=answer.schedule.schedule_id)
    )
    assert read.schedule == answer.schedule


async def test_creating_twice_with_one_request_id_makes_one_schedule(
    world: Any, scheduler: Any
) -> None:
    request = _create(world)
    answers = await asyncio.gather(*(scheduler.CreateSchedule(request) for _ in range(4)))
    assert len({answer.schedule.schedule_id for answer in answers}) == 1

    request.schedule.display_name = "another"
    refusal = await refused(scheduler.CreateSchedule(request))
    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.ALREADY_EXISTS,
        "REQUEST_ID_REUSED",
    )


async def test_every_violation_is_told_at_once(scheduler: Any) -> None:
    request = ParseDict(
        {
            "request_id": "x",
            "schedule": {
                "spec": {
                    "cron": {"expressions": ["61 * * * *", "* * *", "0 0 * * *"]},
                    "time_zone": "Mars/Olympus",
                    "jitter": "90000s",
                    "exclusions": [{}, {"rule": {"days_of_month": [{"start": 0}]}}],
                    "dst_policy": {"gap": 9},
                },
                "run": {"grant_id": "no"},
                "catch_up": {"window": "1s", "max_count": 5000},
                "remaining_actions": "0",
            },
        },
        pb.CreateScheduleRequest(),
    )
    refusal = await refused(scheduler.CreateSchedule(request))
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    fields = {each.field for each in refusal.detail(error_details_pb2.BadRequest).field_violations}
    assert fields == {
        "request_id",
        "schedule.display_name",
        "schedule.spec.cron.expressions[0]",
        "schedule.spec.cron.expressions[1]",
        "schedule.spec.time_zone",
        "schedule.spec.jitter",
        "schedule.spec.exclusions[0].excluded",
        "schedule.spec.exclusions[1].rule.days_of_month[0]",
        "schedule.spec.dst_policy.gap",
        "schedule.run.graph_id",
        "schedule.run.grant_id",
        "schedule.catch_up.window",
        "schedule.catch_up.max_count",
        "schedule.remaining_actions",
    }


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({}, "schedule.spec.recurrence"),
        ({"rrule": {"rule": "FREQ=DAILY"}}, "schedule.spec.start_time"),
        ({"rrule": {"rule": "FREQ=HOURLY"}}, "schedule.spec.rrule.rule"),
        ({"interval": {"every": "0.5s"}}, "schedule.spec.interval.every"),
        ({"interval": {"every": "1.5s"}}, "schedule.spec.interval.every"),
        ({"calendar": {}}, "schedule.spec.calendar.rules"),
        (
            {"calendar": {"rules": [{"hours": [{"start": 24}]}]}},
            "schedule.spec.calendar.rules[0].hours[0]",
        ),
        (
            {"calendar": {"rules": [{"weekdays": [{"nth": 6}]}]}},
            "schedule.spec.calendar.rules[0].weekdays[0].weekday",
        ),
        (
            {
                "interval": {"every": "60s"},
                "start_time": "2027-01-02T00:00:00Z",
                "end_time": "2027-01-01T00:00:00Z",
            },
            "schedule.spec.end_time",
        ),
    ],
)
async def test_a_spec_that_says_nothing_is_refused(
    world: Any, scheduler: Any, spec: dict[str, Any], field: str
) -> None:
    refusal = await refused(scheduler.CreateSchedule(_create(world, spec=spec)))
    violations = refusal.detail(error_details_pb2.BadRequest).field_violations
    assert field in {each.field for each in violations}


async def test_an_rrule_comes_back_as_it_was_said(world: Any, scheduler: Any) -> None:
    rule = "FREQ=MONTHLY;BYDAY=-1FR;BYHOUR=17;BYMINUTE=0;BYSECOND=0"
    spec = {"rrule": {"rule": rule}, "start_time": "2026-01-01T00:00:00Z"}
    created = (await scheduler.CreateSchedule(_create(world, spec=spec))).schedule
    assert created.spec.rrule.rule == rule
    assert created.next_slot_time.ToDatetime().hour == 17


async def test_a_spec_without_slots_is_refused(world: Any, scheduler: Any) -> None:
    spec = {"cron": {"expressions": ["0 0 30 2 *"]}}
    refusal = await refused(scheduler.CreateSchedule(_create(world, spec=spec)))
    assert refusal.reason == "SCHEDULE_NEVER_FIRES"


@pytest.mark.parametrize("case", ["unknown", "other graph", "other owner", "revoked"])
async def test_a_grant_that_cannot_carry_the_run_is_refused(
    world: Any, scheduler: Any, case: str
) -> None:
    grant_id = {
        "unknown": new_id,
        "other graph": lambda: world.executor.grant("report"),
        "other owner": lambda: world.executor.grant(owner="bob"),
        "revoked": lambda: world.executor.grant(),
    }[case]()
    if case == "revoked":
        await world.executor.revoke(grant_id)
    run = {"graph_id": "digest", "grant_id": grant_id}
    refusal = await refused(scheduler.CreateSchedule(_create(world, run=run)))
    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "GRANT_UNUSABLE",
    )
    assert refusal.info.metadata["grant_id"] == grant_id


async def test_an_executor_that_is_down_makes_creation_unavailable(
    world: Any, scheduler: Any
) -> None:
    request = _create(world)
    world.executor.down = True
    refusal = await refused(scheduler.CreateSchedule(request))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")


async def test_another_tenants_schedule_does_not_exist(
    world: Any, served: Any, scheduler: Any, identities: Any
) -> None:
    created = (await scheduler.CreateSchedule(_create(world))).schedule
    token = identities.user_token(tenant="other", scopes=SCOPES)
    stranger = stubs.SchedulerServiceStub(served.channel(token))
    for call in (
        stranger.GetSchedule(pb.GetScheduleRequest(schedule_id=created.schedule_id)),
        stranger.PauseSchedule(pb.PauseScheduleRequest(schedule_id=created.schedule_id)),
        stranger.DeleteSchedule(pb.DeleteScheduleRequest(schedule_id=created.schedule_id)),
        stranger.ListSlots(pb.ListSlotsRequest(schedule_id=created.schedule_id)),
        stranger.TriggerSchedule(
            pb.TriggerScheduleRequest(request_id=new_id(), schedule_id=created.schedule_id)
        ),
    ):
        assert (await refused(call)).reason == "NOT_FOUND"
    assert not (await stranger.ListSchedules(pb.ListSchedulesRequest())).schedules


async def test_lists_are_paged_newest_first_and_filtered(world: Any, scheduler: Any) -> None:
    names = [f"s{number}" for number in range(5)]
    for name in names:
        labels = {"team": "a" if name in ("s1", "s3") else "b"}
        await scheduler.CreateSchedule(_create(world, display_name=name, labels=labels))

    found, token = [], ""
    while True:
        page = await scheduler.ListSchedules(pb.ListSchedulesRequest(page_size=2, page_token=token))
        found += [each.display_name for each in page.schedules]
        token = page.next_page_token
        if not token:
            break
    assert found == names[::-1]
    filtered = await scheduler.ListSchedules(pb.ListSchedulesRequest(labels={"team": "a"}))
    assert [each.display_name for each in filtered.schedules] == ["s3", "s1"]

    first = await scheduler.ListSchedules(pb.ListSchedulesRequest(page_size=2))
    refusal = await refused(
        scheduler.ListSchedules(
            pb.ListSchedulesRequest(page_token=first.next_page_token, graph_id="digest")
        )
    )
    assert refusal.reason == "PAGE_TOKEN_INVALID"


async def test_updates_change_what_the_mask_names_and_guard_by_etag(
    world: Any, scheduler: Any
) -> None:
    created = (await scheduler.CreateSchedule(_create(world))).schedule
    change = {
        "schedule": {
            "schedule_id": created.schedule_id,
            "etag": created.etag,
            "display_name": "ignored",
            "spec": {"interval": {"every": "3600s"}},
            "run": {"input": {"b": True}},
        },
        "update_mask": "spec,run.input",
    }
    request = ParseDict(change, pb.UpdateScheduleRequest())

    updated = (await scheduler.UpdateSchedule(request)).schedule

    assert updated.display_name == "nightly"
    assert updated.spec.interval.every.seconds == 3600
    assert updated.run.graph_id == "digest"
    assert dict(updated.run.input) == {"b": True}
    assert updated.etag != created.etag
    assert updated.next_slot_time != created.next_slot_time
    assert (await refused(scheduler.UpdateSchedule(request))).reason == "ETAG_MISMATCH"


async def test_an_update_is_judged_by_its_mask_alone(world: Any, scheduler: Any) -> None:
    created = (await scheduler.CreateSchedule(_create(world))).schedule
    bad = {
        "schedule": {"schedule_id": created.schedule_id, "display_name": "", "labels": {"": "x"}},
        "update_mask": "displayName,labels,state",
    }
    refusal = await refused(scheduler.UpdateSchedule(ParseDict(bad, pb.UpdateScheduleRequest())))
    fields = {each.field for each in refusal.detail(error_details_pb2.BadRequest).field_violations}
    assert fields == {"schedule.display_name", "schedule.labels['']", "update_mask.paths[2]"}


async def test_pause_unpause_and_delete(world: Any, scheduler: Any) -> None:
    created = (await scheduler.CreateSchedule(_create(world))).schedule
    named = {"schedule_id": created.schedule_id}

    paused = (await scheduler.PauseSchedule(pb.PauseScheduleRequest(**named, note="why"))).schedule
    assert paused.state_note == "why"
    assert not paused.HasField("next_slot_time")
    unpaused = (await scheduler.UnpauseSchedule(pb.UnpauseScheduleRequest(**named))).schedule
    assert unpaused.next_slot_time == created.next_slot_time

    for _ in range(2):
        await scheduler.DeleteSchedule(pb.DeleteScheduleRequest(**named))
    assert not (await scheduler.ListSchedules(pb.ListSchedulesRequest())).schedules
    trigger = pb.TriggerScheduleRequest(request_id=new_id(), **named)
    for call in (
        scheduler.PauseSchedule(pb.PauseScheduleRequest(**named)),
        scheduler.UnpauseSchedule(pb.UnpauseScheduleRequest(**named)),
        scheduler.TriggerSchedule(trigger),
    ):
        assert (await refused(call)).reason == "SCHEDULE_DELETED"


async def test_a_trigger_by_hand_is_one_slot_per_request_id(world: Any, scheduler: Any) -> None:
    created = (await scheduler.CreateSchedule(_create(world))).schedule
    request = pb.TriggerScheduleRequest(request_id=new_id(), schedule_id=created.schedule_id)

    answers = await asyncio.gather(*(scheduler.TriggerSchedule(request) for _ in range(3)))
    other = pb.TriggerScheduleRequest(request_id=new_id(), schedule_id=created.schedule_id)
    await scheduler.TriggerSchedule(other)
    await world.deliver()

    assert len({answer.slot.scheduled_time.ToNanoseconds() for answer in answers}) == 1
    listed = await scheduler.ListSlots(pb.ListSlotsRequest(schedule_id=created.schedule_id))
    assert [slot.state for slot in listed.slots] == [slot_pb2.SLOT_STATE_STARTED] * 2
    assert {slot.origin for slot in listed.slots} == {slot_pb2.SLOT_ORIGIN_MANUAL}
    assert all(slot.scheduled_time.nanos for slot in listed.slots)
    assert len(world.executor.runs) == 2

    request.overlap_policy = 1
    assert (await refused(scheduler.TriggerSchedule(request))).reason == "REQUEST_ID_REUSED"


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
    created = (await scheduler.CreateSchedule(_create(world, spec=spec))).schedule
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


async def test_a_backfill_over_grpc(world: Any, scheduler: Any) -> None:
    created = (await scheduler.CreateSchedule(_create(world))).schedule
    now = await world.now()
    request = pb.BackfillScheduleRequest(
        request_id=new_id(), schedule_id=created.schedule_id, max_unfinished=3
    )
    request.start_time.FromDatetime(now - timedelta(days=14))
    request.end_time.FromDatetime(now - timedelta(days=7))
    request.cost_cap.asset, request.cost_cap.value = "USD", "1.5"
    started = (await scheduler.BackfillSchedule(request)).backfill
    assert started.total_slots == 5
    assert started.starts_per_minute == 60
    named = {"backfill_id": started.backfill_id}
    assert (await scheduler.GetBackfill(pb.GetBackfillRequest(**named))).backfill == started
    cancelled = (await scheduler.CancelBackfill(pb.CancelBackfillRequest(**named))).backfill
    assert cancelled.state == backfill_pb2.BACKFILL_STATE_CANCELLED

    unknown = pb.GetBackfillRequest(backfill_id=new_id())
    assert (await refused(scheduler.GetBackfill(unknown))).reason == "NOT_FOUND"
    bad = pb.BackfillScheduleRequest(request_id="x", starts_per_minute=-1)
    violations = (await refused(scheduler.BackfillSchedule(bad))).detail(
        error_details_pb2.BadRequest
    )
    assert {each.field for each in violations.field_violations} == {
        "request_id",
        "schedule_id",
        "start_time",
        "end_time",
        "starts_per_minute",
    }


async def test_triggers_are_in_the_contract_and_say_that_they_are_not_built(
    served: Any, identities: Any
) -> None:
    token = identities.user_token(scopes=("triggers:read",))
    stub = trigger_service_pb2_grpc.TriggerServiceStub(served.channel(token))
    refusal = await refused(
        stub.GetTrigger(trigger_service_pb2.GetTriggerRequest(trigger_id=new_id()))
    )
    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.UNIMPLEMENTED,
        "NOT_IMPLEMENTED",
    )


async def test_slots_are_paged_latest_first(world: Any, scheduler: Any) -> None:
    created = await world.create({"interval": {"every": "1s"}}, overlap_policy=6)
    await world.pass_time(timedelta(seconds=6))
    await world.clock.fire_due()
    found: list[int] = []
    token = ""
    while True:
        page = await scheduler.ListSlots(
            pb.ListSlotsRequest(schedule_id=created.schedule_id, page_size=2, page_token=token)
        )
        found += [slot.scheduled_time.seconds for slot in page.slots]
        token = page.next_page_token
        if not token:
            break
    assert found == sorted(set(found), reverse=True)
    assert len(found) >= 6


async def _states(stream: Any, count: int) -> tuple[list[str], str]:
    found: list[str] = []
    async for answer in stream:
        found += [slot_pb2.SlotState.Name(each.slot.state) for each in answer.changes]
        if len(found) >= count:
            return [name.removeprefix("SLOT_STATE_") for name in found], answer.cursor
    raise AssertionError("the stream ended")


async def test_watching_tells_every_change_once_and_resumes(world: Any, scheduler: Any) -> None:
    created = await world.create(ONE_SHOT)
    stream = scheduler.WatchSlots(pb.WatchSlotsRequest(schedule_ids=[created.schedule_id]))
    await world.fire(created)
    found, cursor = await asyncio.wait_for(_states(stream, 1), 90)
    assert found == ["PENDING"]
    stream.cancel()

    await world.deliver()
    stream = scheduler.WatchSlots(
        pb.WatchSlotsRequest(schedule_ids=[created.schedule_id], cursor=cursor)
    )
    found, _ = await asyncio.wait_for(_states(stream, 1), 90)
    stream.cancel()
    assert found == ["STARTED"]


async def test_a_draining_server_ends_watches_with_a_place_to_resume(
    world: Any, served: Any, scheduler: Any
) -> None:
    await all_is_final(world.db)
    stream = scheduler.WatchSlots(pb.WatchSlotsRequest(from_now=True))
    reading = asyncio.create_task(_last(stream))
    await stream.wait_for_connection()
    served.drain.begin()
    last, code = await asyncio.wait_for(reading, 90)
    assert last.resume
    assert last.cursor
    assert code is grpc.StatusCode.UNAVAILABLE


async def _last(stream: Any) -> tuple[Any, Any]:
    answers = []
    try:
        async for answer in stream:
            answers.append(answer)
    except grpc.aio.AioRpcError as error:
        return answers[-1], error.code()
    raise AssertionError("the stream ended without a status")


async def test_a_damaged_cursor_is_refused(scheduler: Any) -> None:
    refusal = await refused(scheduler.WatchSlots(pb.WatchSlotsRequest(cursor="nonsense")))
    assert refusal.reason == "CURSOR_INVALID"


async def test_the_tenant_wall_stands(database: Any, prove_tenant_wall: Any) -> None:
    reason = "says where the Scheduler is in the Executor's streams; closed to the app role"
    await prove_tenant_wall(await database("scheduler"), tenantless={"streams": reason})


ONE_SHOT = {"interval": {"every": "86400s"}}
