"""A run is started once per request, and only under a grant that allows it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from cogni.executor.v1 import executor_service_pb2 as pb
from cogni.executor.v1 import grant_service_pb2 as grant_pb
from cogni.executor.v1 import run_pb2
from cogni.executor.v1.audit_record_pb2 import AUDIT_DECISION_DENIED
from services.executor.graphs import Graph, GraphState
from services.runtime.ids import new_id
from tests.executor.conftest import GRAPH, World, publish, start_request
from tests.plugins.calls import refused


async def test_a_started_run_is_queued_with_its_first_event_and_its_wake_up(world: World) -> None:
    grant_id = await world.grant()

    run = await world.start(grant_id, input={"feed": "x", "depth": 3}, labels={"team": "a"})

    assert run.state == run_pb2.RUN_STATE_QUEUED
    assert (run.attempt, run.last_seq, run.owner, run.revision) == (0, 1, "alice", "r1")
    assert dict(run.labels) == {"team": "a"}
    assert run.input["depth"] == 3
    assert await world.run(run.run_id) == _with_usage(run)
    async with asyncio.timeout(60):
        assert await world.hints.get() == run.run_id


async def test_a_repeated_request_returns_the_run_that_the_first_one_made(world: World) -> None:
    request = start_request(await world.grant(), input={"n": 1})

    first = (await world.executor().StartRun(request)).run
    attempt = await world.claim(first.run_id)
    again = (await world.executor().StartRun(request)).run

    assert again.run_id == first.run_id
    assert (again.state, again.attempt) == (run_pb2.RUN_STATE_RUNNING, attempt.number)


async def test_a_thousand_concurrent_repeats_make_one_run(world: World) -> None:
    request = start_request(await world.grant())
    stub = world.executor()

    answers = await asyncio.gather(*(stub.StartRun(request) for _ in range(1000)))

    assert len({answer.run.run_id for answer in answers}) == 1
    listed = await stub.ListRuns(pb.ListRunsRequest())
    assert len(listed.runs) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"input": {"n": 2}},
        {"labels": {"a": "b"}},
        {"context": {"a": 1}},
        {"options": run_pb2.RunOptions(max_attempts=2)},
    ],
)
async def test_a_reused_request_id_with_other_content_is_refused(
    world: World, change: dict[str, Any]
) -> None:
    grant_id, request_id = await world.grant(), new_id()
    await world.start(grant_id, request_id=request_id, input={"n": 1})

    refusal = await refused(
        world.executor().StartRun(
            start_request(grant_id, **{"request_id": request_id, "input": {"n": 1}, **change})
        )
    )

    assert refusal.code == grpc.StatusCode.ALREADY_EXISTS
    assert refusal.reason == "REQUEST_ID_REUSED"


async def test_the_same_request_id_of_two_tenants_makes_two_runs(world: World) -> None:
    request_id = new_id()
    mine = await world.start(await world.grant(), request_id=request_id)
    theirs_grant = await world.grant("other", "bob")

    theirs = await world.executor("other", "bob").StartRun(
        start_request(theirs_grant, request_id=request_id)
    )

    assert theirs.run.run_id != mine.run_id


async def test_a_grant_that_does_not_name_the_graph_denies_it_and_the_denial_is_recorded(
    world: World,
) -> None:
    grant_id = await world.grant(graphs=["graph:execute:other"])

    refusal = await refused(world.executor().StartRun(start_request(grant_id)))

    assert refusal.code == grpc.StatusCode.PERMISSION_DENIED
    assert refusal.reason == "GRAPH_NOT_GRANTED"
    metadata = dict(refusal.info.metadata)
    assert (metadata["grant_id"], metadata["graph_id"]) == (grant_id, GRAPH)
    records = await world.executor().ListAuditRecords(
        pb.ListAuditRecordsRequest(grant_id=grant_id, decision=AUDIT_DECISION_DENIED)
    )
    [record] = records.audit_records
    assert (record.action, record.actor) == ("run.start", "alice")
    assert not (await world.executor().ListRuns(pb.ListRunsRequest())).runs


async def test_only_the_grants_owner_and_services_for_the_owner_can_start_runs(
    world: World,
) -> None:
    grant_id = await world.grant()

    of_bob = await refused(world.executor(subject="bob").StartRun(start_request(grant_id)))
    of_service = await refused(world.scheduler("acme").StartRun(start_request(grant_id)))
    for_alice = await world.scheduler("acme", "alice").StartRun(start_request(grant_id))

    assert of_bob.reason == of_service.reason == "GRANT_NOT_OWNED"
    assert for_alice.run.owner == "alice"


async def test_revoked_and_expired_grants_start_nothing(world: World) -> None:
    revoked = await world.grant()
    await world.grants().RevokeGrant(grant_pb.RevokeGrantRequest(grant_id=revoked))
    past = Timestamp()
    past.FromDatetime(datetime.now(UTC) - timedelta(seconds=1))
    expired = await world.grant(expire_time=past)

    reasons = [
        (await refused(world.executor().StartRun(start_request(grant_id)))).reason
        for grant_id in (revoked, expired)
    ]

    assert reasons == ["GRANT_REVOKED", "GRANT_EXPIRED"]


async def test_unknown_broken_and_unavailable_graphs_are_refused_apart(world: World) -> None:
    await publish(world.database, Graph("broken", "r1", GraphState.BROKEN, error="no module"))
    names = ["unknown", "broken", GRAPH]
    grant_id = await world.grant(graphs=[f"graph:execute:{name}" for name in names])

    refusals = [
        await refused(world.executor().StartRun(start_request(grant_id, graph_id=name, **more)))
        for name, more in zip(names, [{}, {}, {"revision": "r9"}], strict=True)
    ]

    assert [refusal.reason for refusal in refusals] == [
        "NOT_FOUND",
        "GRAPH_BROKEN",
        "REVISION_NOT_AVAILABLE",
    ]
    assert refusals[0].info.metadata["resource"] == "graph"


async def test_a_thread_carries_one_run_at_a_time_and_only_its_owners(world: World) -> None:
    grant_id = await world.grant()
    first = await world.start(grant_id)
    bobs = await world.grant(subject="bob")

    busy = await refused(
        world.executor().StartRun(start_request(grant_id, thread_id=first.thread_id))
    )
    foreign = await refused(
        world.executor(subject="bob").StartRun(start_request(bobs, thread_id=first.thread_id))
    )
    unknown = await refused(world.executor().StartRun(start_request(grant_id, thread_id=new_id())))
    assert await (await world.claim(first.run_id)).succeed()
    second = await world.start(grant_id, thread_id=first.thread_id)

    assert (busy.reason, busy.info.metadata["run_id"]) == ("THREAD_BUSY", first.run_id)
    assert foreign.reason == "THREAD_NOT_OWNED"
    assert unknown.reason == "NOT_FOUND"
    assert second.thread_id == first.thread_id
    assert second.run_id != first.run_id


async def test_concurrent_starts_on_one_thread_make_one_run(world: World) -> None:
    grant_id = await world.grant()
    first = await world.start(grant_id)
    assert await (await world.claim(first.run_id)).succeed()
    stub = world.executor()

    answers = await asyncio.gather(
        *(stub.StartRun(start_request(grant_id, thread_id=first.thread_id)) for _ in range(8)),
        return_exceptions=True,
    )

    assert sum(isinstance(answer, pb.StartRunResponse) for answer in answers) == 1


async def test_people_can_not_claim_to_be_a_schedule(world: World) -> None:
    origin = run_pb2.RunOrigin(schedule=run_pb2.ScheduleOrigin(schedule_id="s"))
    grant_id = await world.grant()

    refusal = await refused(world.executor().StartRun(start_request(grant_id, origin=origin)))
    accepted = await world.scheduler("acme", "alice").StartRun(
        start_request(grant_id, origin=origin)
    )

    assert refusal.reason == "INVALID_REQUEST"
    assert accepted.run.origin.schedule.schedule_id == "s"


def _with_usage(run: run_pb2.Run) -> run_pb2.Run:
    complete = run_pb2.Run()
    complete.CopyFrom(run)
    complete.usage.SetInParent()
    return complete
