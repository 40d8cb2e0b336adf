"""Whatever a caller sends is answered by a reason of the contract, never by INTERNAL."""

from __future__ import annotations

import time
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import ParseDict
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2

from cogni.scheduler.v1 import scheduler_service_pb2 as pb
from services.runtime.ids import new_id
from tests.plugins.bad_input import prove_bad_input
from tests.plugins.calls import refused
from tests.plugins.strangers import prove_strangers


@pytest.fixture
async def known(world: Any, scheduler: Any) -> dict[str, Any]:
    """What the Scheduler has that requests can name."""
    wanted = ParseDict(
        {
            "request_id": new_id(),
            "schedule": {
                "display_name": "nightly",
                "spec": {"cron": {"expressions": ["0 9 * * MON-FRI"]}},
                "run": {
                    "graph_id": "digest",
                    "grant_id": world.executor.grant(),
                    "input": {"a": [1, 2.5]},
                },
            },
        },
        pb.CreateScheduleRequest(),
    )
    made = await scheduler.CreateSchedule(wanted)
    made.schedule.etag = ""
    now = int(time.time())
    start, end = Timestamp(seconds=now + 3600), Timestamp(seconds=now + 7200)

    return {
        "schedule_id": made.schedule.schedule_id,
        "start_time": start,
        "end_time": end,
        "cogni.scheduler.v1.BackfillScheduleRequest": pb.BackfillScheduleRequest(
            request_id=new_id(),
            schedule_id=made.schedule.schedule_id,
            start_time=Timestamp(seconds=now - 7200),
            end_time=Timestamp(seconds=now - 3600),
        ),
        "cogni.scheduler.v1.CreateScheduleRequest": wanted,
        "cogni.scheduler.v1.Schedule": made.schedule,
        "cogni.scheduler.v1.ScheduleSpec": wanted.schedule.spec,
        "update_mask": FieldMask(paths=["display_name", "run", "catch_up", "labels"]),
        "etag": "",
    }


async def test_no_request_is_answered_by_a_defect(
    served: Any, identities: Any, known: dict[str, Any]
) -> None:
    count = await prove_bad_input("scheduler", served.application, served, identities, known)

    assert count > 1000


async def test_to_another_tenant_all_of_it_is_unknown(
    served: Any, identities: Any, known: dict[str, Any]
) -> None:
    count = await prove_strangers("scheduler", served.application, served, identities, known)

    assert count > 10


async def test_a_simulation_is_refused_by_what_of_its_run_nobody_could_read(scheduler: Any) -> None:
    request = pb.SimulateScheduleRequest(end_time=Timestamp(seconds=2_000_000_000))
    request.schedule.spec.cron.expressions.append("* * * * *")
    request.schedule.run.input.update({"a": float("nan")})
    request.schedule.run.context.update({"a": float("inf")})
    request.schedule.run.limits.timeout.seconds = 315_576_000_000

    refusal = await refused(scheduler.SimulateSchedule(request))

    bad = refusal.detail(error_details_pb2.BadRequest)
    assert {violation.field for violation in bad.field_violations} == {
        "schedule.run.input",
        "schedule.run.context",
        "schedule.run.limits.timeout",
    }
