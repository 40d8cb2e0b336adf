"""The Scheduler over gRPC: real server, real tokens, real database."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict
from google.rpc import error_details_pb2

from cogni.scheduler.v1 import (
    backfill_pb2,
    slot_pb2,
    trigger_service_pb2,
    trigger_service_pb2_grpc,
)
from cogni.scheduler.v1 import scheduler_service_pb2 as pb
from cogni.scheduler.v1 import scheduler_service_pb2_grpc as stubs
from services.runtime.ids import new_id
from tests.plugins.calls import refused
from tests.plugins.refusals import prove_refusals
from tests.scheduler.world import SCOPES, create_request


async def test_no_rpc_serves_strangers(served: Any, identities: Any) -> None:
    await prove_refusals("scheduler", served.application, served, identities)


async def test_another_tenants_schedule_does_not_exist(
    world: Any, served: Any, scheduler: Any, identities: Any
) -> None:
    created = (await scheduler.CreateSchedule(create_request(world))).schedule
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
        await scheduler.CreateSchedule(create_request(world, display_name=name, labels=labels))

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
    created = (await scheduler.CreateSchedule(create_request(world))).schedule
    change = {
        "schedule": {
            "schedule_id": created.schedule_id,
            "etag": created.etag,
            "display_name": "ignored",
            # At half past, where the cron expression's slots never are, whatever the time is now.
            "spec": {"interval": {"every": "3600s", "anchor_time": "2026-01-01T00:30:00Z"}},
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
    created = (await scheduler.CreateSchedule(create_request(world))).schedule
    bad = {
        "schedule": {"schedule_id": created.schedule_id, "display_name": "", "labels": {"": "x"}},
        "update_mask": "displayName,labels,state",
    }
    refusal = await refused(scheduler.UpdateSchedule(ParseDict(bad, pb.UpdateScheduleRequest())))
    fields = {each.field for each in refusal.detail(error_details_pb2.BadRequest).field_violations}
    assert fields == {"schedule.display_name", "schedule.labels['']", "update_mask.paths[2]"}


async def test_pause_unpause_and_delete(world: Any, scheduler: Any) -> None:
    created = (await scheduler.CreateSchedule(create_request(world))).schedule
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
    created = (await scheduler.CreateSchedule(create_request(world))).schedule
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


async def test_a_backfill_over_grpc(world: Any, scheduler: Any) -> None:
    created = (await scheduler.CreateSchedule(create_request(world))).schedule
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


async def test_the_tenant_wall_stands(database: Any, prove_tenant_wall: Any) -> None:
    reason = "says where the Scheduler is in the Executor's streams; closed to the app role"
    await prove_tenant_wall(await database("scheduler"), tenantless={"streams": reason})
