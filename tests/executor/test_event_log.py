"""A log is gapless, ends once, and takes nothing from an attempt that lost its lease."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from cogni.executor.v1.run_event_pb2 import CustomEvent, RunFinished
from services.executor.events import Draft
from services.executor.runs import Cancellation, CancelReason, RunState
from services.executor.store import events, runs
from services.executor.use_cases.stop_run import request_stop
from tests.executor.conftest import World


async def test_an_attempt_that_lost_its_lease_writes_nothing(world: World) -> None:
    run = await world.start(await world.grant())
    old = await world.claim(run.run_id)
    new = await world.claim(run.run_id)

    assert await old.append(CustomEvent(name="late")) is None
    assert not await old.succeed()

    assert await new.append(CustomEvent(name="mine")) == 4
    assert await new.succeed()


async def test_a_stalled_writer_that_holds_the_row_is_waited_for_and_leaves_no_gap(
    world: World,
) -> None:
    run = await world.start(await world.grant())
    attempt = await world.claim(run.run_id)

    async with world.database.raw_tenant("acme") as stalled:
        assert await attempt.append_in(stalled, CustomEvent(name="a")) == 3
        other = asyncio.create_task(attempt.append(CustomEvent(name="b")))
        await _until_somebody_waits(world)
    assert await other == 4

    assert await _seqs(world, run.run_id) == [1, 2, 3, 4]


async def test_a_rolled_back_append_leaves_no_gap(world: World) -> None:
    run = await world.start(await world.grant())
    attempt = await world.claim(run.run_id)

    async def fail() -> None:
        async with world.database.raw_tenant("acme") as tx:
            await attempt.append_in(tx, CustomEvent(), CustomEvent())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    await attempt.append(CustomEvent())

    assert await _seqs(world, run.run_id) == [1, 2, 3]


async def test_writers_of_both_kinds_interleave_without_gaps(world: World) -> None:
    run = await world.start(await world.grant())
    attempt = await world.claim(run.run_id)

    async def ask() -> None:
        async with world.database.raw_tenant("acme") as tx:
            await request_stop(tx, run.run_id, Cancellation(CancelReason.OPERATOR, "", "ops"))

    await asyncio.gather(*(attempt.append(CustomEvent()) for _ in range(20)), ask(), ask())

    seqs = await _seqs(world, run.run_id)
    assert seqs == list(range(1, 24))


async def test_nothing_follows_the_final_event(world: World) -> None:
    run = await world.start(await world.grant())
    attempt = await world.claim(run.run_id)
    assert await attempt.succeed()

    assert await attempt.append(CustomEvent()) is None
    async with world.database.raw_tenant("acme") as tx:
        assert await events.take_unsealed(tx, run.run_id, 1) is None
        assert not await events.lock(tx, run.run_id)


async def test_the_database_refuses_a_second_final_event(world: World) -> None:
    run = await world.start(await world.grant())
    attempt = await world.claim(run.run_id)

    with pytest.raises(asyncpg.UniqueViolationError):
        await attempt.append(RunFinished(), RunFinished())


async def test_the_database_lets_nobody_change_an_event(world: World) -> None:
    run = await world.start(await world.grant())

    for role in (world.database.raw_tenant("acme"), world.database.raw_jobs()):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with role as tx:
                await tx.execute("UPDATE run_events SET payload = '' WHERE run_id = $1", run.run_id)


async def test_a_transition_that_the_table_does_not_have_is_refused(world: World) -> None:
    run = await world.start(await world.grant())

    async with world.database.raw_tenant("acme") as tx:
        assert not await runs.finish(tx, run.run_id, RunState.SUCCEEDED, output_json="1")


def test_drafts_keep_their_kind() -> None:
    assert Draft(CustomEvent()).type == "custom"
    assert Draft(RunFinished()).type == "finished"


async def _seqs(world: World, run_id: str) -> list[int]:
    async with world.database.raw_tenant("acme") as tx:
        return [event.seq for event in await events.read(tx, run_id, 0, 1000)]


async def _until_somebody_waits(world: World) -> None:
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    async with asyncio.timeout(60):
        while True:
            async with world.database.raw_jobs() as tx:
                if await tx.fetchval(waiting):
                    return
