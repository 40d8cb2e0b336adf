"""CreateSchedule: what comes back, once per request_id, and what is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict, ParseDict
from google.rpc import error_details_pb2

from cogni.scheduler.v1 import scheduler_service_pb2 as pb
from services.runtime.ids import new_id
from tests.plugins.calls import refused
from tests.scheduler.world import create_request


async def test_a_schedule_comes_back_with_everything_filled_in(world: Any, scheduler: Any) -> None:
    answer = await scheduler.CreateSchedule(create_request(world))

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
    request = create_request(world)
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
    refusal = await refused(scheduler.CreateSchedule(create_request(world, spec=spec)))
    violations = refusal.detail(error_details_pb2.BadRequest).field_violations
    assert field in {each.field for each in violations}


async def test_an_rrule_comes_back_as_it_was_said(world: Any, scheduler: Any) -> None:
    rule = "FREQ=MONTHLY;BYDAY=-1FR;BYHOUR=17;BYMINUTE=0;BYSECOND=0"
    spec = {"rrule": {"rule": rule}, "start_time": "2026-01-01T00:00:00Z"}
    created = (await scheduler.CreateSchedule(create_request(world, spec=spec))).schedule
    assert created.spec.rrule.rule == rule
    assert created.next_slot_time.ToDatetime().hour == 17


async def test_a_spec_without_slots_is_refused(world: Any, scheduler: Any) -> None:
    spec = {"cron": {"expressions": ["0 0 30 2 *"]}}
    refusal = await refused(scheduler.CreateSchedule(create_request(world, spec=spec)))
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
    refusal = await refused(scheduler.CreateSchedule(create_request(world, run=run)))
    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "GRANT_UNUSABLE",
    )
    assert refusal.info.metadata["grant_id"] == grant_id


async def test_an_executor_that_is_down_makes_creation_unavailable(
    world: Any, scheduler: Any
) -> None:
    request = create_request(world)
    world.executor.down = True
    refusal = await refused(scheduler.CreateSchedule(request))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")
