"""Runs stop when they are told to: at once, or through their runner, and only once."""

from __future__ import annotations

import asyncio

import pytest

from cogni.executor.v1 import executor_service_pb2 as pb
from cogni.executor.v1 import run_pb2
from cogni.executor.v1.run_event_pb2 import RunInterrupted
from cogni.type.v1.error_reason_pb2 import ErrorReason
from services.executor.runs import WaitingReason
from services.executor.store import events, runs
from services.runtime.ids import new_id
from tests.executor.conftest import Attempt, World
from tests.plugins.calls import refused


async def test_a_queued_run_is_cancelled_when_the_call_returns(world: World) -> None:
    run = await world.start(await world.grant())

    cancelled = await _cancel(world, run.run_id, comment="wrong feed")

    assert cancelled.state == run_pb2.RUN_STATE_CANCELLED
    assert cancelled.error.reason == ErrorReason.ERROR_REASON_RUN_CANCELLED
    assert cancelled.cancellation.requester == "alice"
    assert cancelled.cancellation.comment == "wrong feed"
    assert await _types(world, run.run_id) == ["queued", "cancel_requested", "finished"]


async def test_a_waiting_run_is_cancelled_when_the_call_returns(world: World) -> None:
    run = await world.start(await world.grant())
    attempt = await world.claim(run.run_id)
    await _wait(attempt)

    cancelled = await _cancel(world, run.run_id)

    assert cancelled.state == run_pb2.RUN_STATE_CANCELLED
    assert await attempt.append() is None


async def test_a_running_run_goes_on_until_its_runner_ends_it(world: World) -> None:
    run = await world.start(await world.grant())
    attempt = await world.claim(run.run_id)

    asked = await _cancel(world, run.run_id)

    assert asked.state == run_pb2.RUN_STATE_RUNNING
    assert asked.HasField("cancel_request_time")
    assert await attempt.succeed()
    assert (await world.run(run.run_id)).state == run_pb2.RUN_STATE_SUCCEEDED


async def test_the_first_request_counts_and_repeats_change_nothing(world: World) -> None:
    run = await world.start(await world.grant())
    await world.claim(run.run_id)

    await asyncio.gather(*(_cancel(world, run.run_id, comment=str(n)) for n in range(10)))

    types = await _types(world, run.run_id)
    assert types.count("cancel_requested") == 1
    assert (await world.run(run.run_id)).last_seq == len(types)


async def test_a_final_run_is_returned_as_it_is(world: World) -> None:
    run = await world.start(await world.grant())
    assert await (await world.claim(run.run_id)).succeed()

    after = await _cancel(world, run.run_id)

    assert after.state == run_pb2.RUN_STATE_SUCCEEDED
    assert not after.HasField("cancel_request_time")


async def test_a_cancellation_that_races_a_success_writes_nothing_after_it(world: World) -> None:
    for _ in range(10):
        run = await world.start(await world.grant())
        attempt = await world.claim(run.run_id)

        await asyncio.gather(_cancel(world, run.run_id), attempt.succeed())

        types = await _types(world, run.run_id)
        assert types.count("finished") == 1
        assert types[-1] == "finished"


async def test_reasons_that_are_the_executors_own_can_not_be_given(world: World) -> None:
    run = await world.start(await world.grant())

    refusal = await refused(
        world.executor().CancelRun(
            pb.CancelRunRequest(run_id=run.run_id, reason=run_pb2.CANCEL_REASON_TIMEOUT)
        )
    )

    assert refusal.reason == "INVALID_REQUEST"


@pytest.mark.parametrize("tenant", ["acme", "other"])
async def test_a_run_that_is_not_there_can_not_be_cancelled(world: World, tenant: str) -> None:
    run = await world.start(await world.grant())
    run_id = new_id() if tenant == "acme" else run.run_id

    refusal = await refused(world.executor(tenant).CancelRun(pb.CancelRunRequest(run_id=run_id)))

    assert refusal.reason == "NOT_FOUND"
    assert (await world.run(run.run_id)).state == run_pb2.RUN_STATE_QUEUED


async def _cancel(world: World, run_id: str, comment: str = "") -> run_pb2.Run:
    request = pb.CancelRunRequest(run_id=run_id, comment=comment)
    return (await world.executor().CancelRun(request)).run


async def _wait(attempt: Attempt) -> None:
    async with attempt.database.raw_tenant(attempt.tenant_id) as tx:
        await attempt.append_in(tx, RunInterrupted())
        assert await runs.wait(tx, attempt.run_id, attempt.tenant_id, WaitingReason.INTERRUPT, [])


async def _types(world: World, run_id: str) -> list[str]:
    async with world.database.raw_tenant("acme") as tx:
        return [event.type for event in await events.read(tx, run_id, 0, 1000)]
