"""What somebody died in the middle of is carried on with, and what must end is ended."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from google.protobuf.duration_pb2 import Duration

from cogni.executor.v1 import executor_service_pb2 as pb
from cogni.executor.v1 import run_pb2
from cogni.executor.v1.run_event_pb2 import CustomEvent
from cogni.executor.v1.runner_service_pb2 import MintRunTokenRequest
from cogni.type.v1.error_reason_pb2 import ErrorReason
from services.executor.store import grants
from services.executor.use_cases.backing import Backing
from services.executor.use_cases.reap import Reaper
from services.runtime.errors import unavailable
from tests.databases import Clock
from tests.executor.conftest import LEASE, World

A_MOMENT = timedelta(seconds=1)
# Far more than a slow machine takes between two statements of a test.
SKEW = timedelta(minutes=10)


@pytest.fixture
def reaper(quiet_world: World) -> Reaper:
    async def hint(run_ids: list[str]) -> None:
        for run_id in run_ids:
            quiet_world.hints.put_nowait(run_id)

    return Reaper(Backing(quiet_world.database, lambda: None), hint, SKEW)


async def test_a_run_whose_runner_died_is_hinted_again_and_stays_running(
    quiet_world: World, reaper: Reaper, clock: Clock
) -> None:
    run = await quiet_world.start(await quiet_world.grant())
    await quiet_world.claim(run.run_id)
    await reaper.reap()
    assert quiet_world.hints.empty()

    await clock.advance(quiet_world.database, LEASE + A_MOMENT)
    await reaper.reap()

    assert quiet_world.hints.get_nowait() == run.run_id
    assert (await quiet_world.run(run.run_id)).state == run_pb2.RUN_STATE_RUNNING


async def test_a_broker_that_is_down_does_not_end_the_reaper(
    quiet_world: World, clock: Clock
) -> None:
    """Ended, it would be started again after pauses of up to half a minute."""

    async def down(run_ids: list[str]) -> None:
        raise unavailable("The message broker cannot be reached; retry.")

    reaper = Reaper(Backing(quiet_world.database, lambda: None), down, SKEW)
    await quiet_world.start(await quiet_world.grant())
    await clock.advance(quiet_world.database, timedelta(minutes=1))

    await reaper.reap()


async def test_a_run_whose_wake_up_was_lost_is_hinted_again(
    quiet_world: World, reaper: Reaper, clock: Clock
) -> None:
    run = await quiet_world.start(await quiet_world.grant())

    await clock.advance(quiet_world.database, timedelta(minutes=1))
    await reaper.reap()

    assert quiet_world.hints.get_nowait() == run.run_id


async def test_a_cancelled_run_whose_runner_died_is_ended_when_its_lease_and_token_are_dead(
    quiet_world: World, reaper: Reaper, clock: Clock
) -> None:
    run = await quiet_world.start(await quiet_world.grant())
    attempt = await quiet_world.claim(run.run_id)
    await quiet_world.runner().MintRunToken(
        MintRunTokenRequest(run_id=run.run_id, epoch=attempt.epoch)
    )
    await quiet_world.executor().CancelRun(pb.CancelRunRequest(run_id=run.run_id))

    await clock.advance(quiet_world.database, LEASE + A_MOMENT)
    await reaper.reap()
    assert (await quiet_world.run(run.run_id)).state == run_pb2.RUN_STATE_RUNNING
    await clock.advance(quiet_world.database, SKEW)
    await reaper.reap()

    assert (await quiet_world.run(run.run_id)).state == run_pb2.RUN_STATE_CANCELLED
    assert await attempt.append(CustomEvent(name="late")) is None


async def test_a_run_that_takes_too_long_is_asked_to_stop(
    quiet_world: World, reaper: Reaper, clock: Clock
) -> None:
    options = run_pb2.RunOptions(timeout=Duration(seconds=3600))
    run = await quiet_world.start(await quiet_world.grant(), options=options)
    await quiet_world.claim(run.run_id)

    await clock.advance(quiet_world.database, timedelta(minutes=50))
    await reaper.reap()
    assert not (await quiet_world.run(run.run_id)).HasField("cancellation")
    await clock.advance(quiet_world.database, timedelta(minutes=11))
    await reaper.reap()
    asked = await quiet_world.run(run.run_id)
    await clock.advance(quiet_world.database, SKEW)
    await reaper.reap()

    assert asked.cancellation.reason == run_pb2.CANCEL_REASON_TIMEOUT
    failed = await quiet_world.run(run.run_id)
    assert failed.state == run_pb2.RUN_STATE_FAILED
    assert failed.error.reason == ErrorReason.ERROR_REASON_RUN_TIMEOUT


async def test_time_spent_waiting_does_not_count_towards_the_timeout(
    quiet_world: World, reaper: Reaper, clock: Clock
) -> None:
    options = run_pb2.RunOptions(timeout=Duration(seconds=3600))
    run = await quiet_world.start(await quiet_world.grant(), options=options)
    await quiet_world.claim(run.run_id)
    async with quiet_world.database.raw_tenant("acme") as tx:
        await tx.execute(
            "INSERT INTO interrupts (run_id, interrupt_id, tenant_id, reason, node, payload,"
            " create_time, answer, answer_time, answerer) SELECT $1, n::text, 'acme', 'INTERRUPT',"
            " '', '1', cogni_now(), '1', cogni_now() + interval '1 hour', 'a'"
            " FROM generate_series(1, 2) AS n",
            run.run_id,
        )

    await clock.advance(quiet_world.database, timedelta(hours=1, minutes=50))
    await reaper.reap()
    assert not (await quiet_world.run(run.run_id)).HasField("cancellation")
    await clock.advance(quiet_world.database, timedelta(minutes=11))
    await reaper.reap()

    assert (await quiet_world.run(run.run_id)).HasField("cancellation")


async def test_the_runs_of_a_server_that_died_while_it_revoked_are_stopped(
    quiet_world: World, reaper: Reaper
) -> None:
    grant_id = await quiet_world.grant()
    run = await quiet_world.start(grant_id)
    async with quiet_world.database.raw_tenant("acme") as tx:
        assert await grants.revoke(tx, grant_id, "", "alice")

    await reaper.reap()

    assert (await quiet_world.run(run.run_id)).state == run_pb2.RUN_STATE_DENIED


async def test_reapers_side_by_side_end_a_run_once(
    quiet_world: World, reaper: Reaper, clock: Clock
) -> None:
    run = await quiet_world.start(await quiet_world.grant())
    await quiet_world.claim(run.run_id)
    await quiet_world.executor().CancelRun(pb.CancelRunRequest(run_id=run.run_id))
    await clock.advance(quiet_world.database, LEASE + SKEW + A_MOMENT)

    await asyncio.gather(*(reaper.reap() for _ in range(4)))

    ended = await quiet_world.run(run.run_id)
    assert (ended.state, ended.last_seq) == (run_pb2.RUN_STATE_CANCELLED, 4)
