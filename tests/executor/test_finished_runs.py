"""A finished run can be repeated and deleted; what it cost and what was decided stays."""

from __future__ import annotations

import asyncio

import pytest

from cogni.executor.v1 import executor_service_pb2 as pb
from cogni.executor.v1 import run_pb2
from services.runtime.ids import new_id
from tests.executor.conftest import World, start_request
from tests.plugins.calls import refused

DEADLINE_SECONDS = 60


async def test_a_replay_is_a_new_run_on_a_new_thread_that_names_the_run_it_repeats(
    world: World,
) -> None:
    first = await _finished(world, input={"n": 7}, labels={"a": "b"})
    request = pb.ReplayRunRequest(request_id=new_id(), run_id=first.run_id)

    answers = await asyncio.gather(*(world.executor().ReplayRun(request) for _ in range(5)))

    assert len({answer.run.run_id for answer in answers}) == 1
    replay = answers[0].run
    assert replay.replayed_run_id == first.run_id
    assert (replay.run_id != first.run_id, replay.thread_id != first.thread_id) == (True, True)
    assert (replay.input, replay.grant_id) == (first.input, first.grant_id)
    assert not replay.labels
    assert replay.state == run_pb2.RUN_STATE_QUEUED


async def test_a_replay_is_bound_by_its_grant_like_any_start(world: World) -> None:
    first = await _finished(world)
    other = await world.grant(graphs=["graph:execute:other"])

    refusal = await refused(
        world.executor().ReplayRun(
            pb.ReplayRunRequest(request_id=new_id(), run_id=first.run_id, grant_id=other)
        )
    )

    assert refusal.reason == "GRAPH_NOT_GRANTED"


@pytest.mark.parametrize("rpc", ["ReplayRun", "DeleteRun"])
async def test_an_active_or_unknown_run_can_be_neither_replayed_nor_deleted(
    world: World, rpc: str
) -> None:
    run = await world.start(await world.grant())

    def call(run_id: str, tenant: str = "acme") -> object:
        kind = getattr(pb, f"{rpc}Request")
        request = kind(run_id=run_id)
        if rpc == "ReplayRun":
            request.request_id = new_id()
        return getattr(world.executor(tenant), rpc)(request)

    reasons = [
        (await refused(call(run.run_id))).reason,
        (await refused(call(new_id()))).reason,
        (await refused(call(run.run_id, "other"))).reason,
    ]

    assert reasons == ["RUN_ACTIVE", "NOT_FOUND", "NOT_FOUND"]


async def test_a_deleted_run_is_gone_and_its_traces_stay(world: World) -> None:
    request = start_request(await world.grant())
    run = (await world.executor().StartRun(request)).run
    await (await world.claim(run.run_id)).succeed()
    await _closed(world, run.run_id)

    for _ in range(2):
        await world.executor().DeleteRun(pb.DeleteRunRequest(run_id=run.run_id))

    gone = await refused(world.executor().GetRun(pb.GetRunRequest(run_id=run.run_id)))
    watched = await refused(world.executor().WatchRun(pb.WatchRunRequest(run_id=run.run_id)))
    repeated = await refused(world.executor().StartRun(request))
    audit = await world.executor().ListAuditRecords(pb.ListAuditRecordsRequest(run_id=run.run_id))
    assert {gone.reason, watched.reason, repeated.reason} == {"NOT_FOUND"}
    assert audit.audit_records[0].action == "run.delete"
    async with world.database.raw_jobs() as tx:
        for table in ("run_events", "run_leases", "checkpoints", "invocations"):
            count = await tx.fetchval(f"SELECT count(*) FROM {table} WHERE run_id = $1", run.run_id)
            assert count == 0, table


async def test_values_that_a_later_run_of_the_thread_stands_on_survive(world: World) -> None:
    first = await _finished(world)
    second = await world.start(first.grant_id, thread_id=first.thread_id)
    async with world.database.raw_tenant("acme") as tx:
        await tx.execute(
            "INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, tenant_id,"
            " run_id, type, blob) VALUES ($1, '', 'messages', '1', 'acme', $2, 'msgpack', 'x')",
            first.thread_id,
            first.run_id,
        )
    await _closed(world, first.run_id)

    await world.executor().DeleteRun(pb.DeleteRunRequest(run_id=first.run_id))

    async with world.database.raw_tenant("acme") as tx:
        heir = await tx.fetchval("SELECT run_id::text FROM checkpoint_blobs")
    assert heir == second.run_id


async def _finished(world: World, **changes: object) -> run_pb2.Run:
    run = await world.start(await world.grant(), **changes)
    assert await (await world.claim(run.run_id)).succeed()
    found: run_pb2.Run = await world.run(run.run_id)
    return found


async def _closed(world: World, run_id: str) -> None:
    """Wait until the server's own delivery has closed the run."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            async with world.database.raw_jobs() as tx:
                closed = "SELECT close_time IS NOT NULL FROM runs WHERE run_id = $1"
                if await tx.fetchval(closed, run_id):
                    return
