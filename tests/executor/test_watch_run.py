"""A run's events can be watched live and again, from any point, byte for byte."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest

from cogni.executor.v1 import executor_service_pb2 as pb
from cogni.executor.v1.run_event_pb2 import CustomEvent
from cogni.executor.v1.run_pb2 import RUN_STATE_SUCCEEDED
from services.runtime.ids import new_id
from tests.executor.conftest import SCOPES, World
from tests.plugins.calls import refusal_of, refused

DEADLINE_SECONDS = 60


async def test_a_finished_log_reads_the_same_from_every_point(world: World) -> None:
    run_id = await _finished_run(world, events=300)
    stored = await _stored(world, run_id)
    assert [seq for seq, _ in stored] == list(range(1, len(stored) + 1))

    for after_seq in (0, 1, 2, 255, 256, 257, len(stored) - 1, len(stored)):
        seen = await _raw_events(world, run_id, after_seq)
        assert seen == [payload for seq, payload in stored if seq > after_seq]


async def test_a_live_watcher_gets_each_event_as_it_happens_and_the_stream_ends(
    world: World,
) -> None:
    run = await world.start(await world.grant())
    call = world.executor().WatchRun(pb.WatchRunRequest(run_id=run.run_id))
    seen: list[Any] = []

    async with asyncio.timeout(DEADLINE_SECONDS):
        await _until(call, seen, lambda event: event.HasField("queued"))
        attempt = await world.claim(run.run_id)
        await _until(call, seen, lambda event: event.HasField("attempt_started"))
        await attempt.chatter(3)
        await _until(call, seen, lambda event: event.custom.name == "event 2")
        assert await attempt.succeed()
        async for batch in call:
            seen += batch.events

    assert [event.seq for event in seen] == list(range(1, len(seen) + 1))
    assert seen[-1].HasField("finished")
    assert [event.HasField("finished") for event in seen].count(True) == 1


async def test_large_events_come_in_messages_that_a_client_can_take(world: World) -> None:
    run = await world.start(await world.grant())
    attempt = await world.claim(run.run_id)
    for size in (600_000, 600_000, 1_500_000, 10):
        await attempt.append(CustomEvent(name="x" * size))
    assert await attempt.succeed()

    call = world.executor().WatchRun(pb.WatchRunRequest(run_id=run.run_id))
    async with asyncio.timeout(DEADLINE_SECONDS):
        batches = [[event.seq for event in batch.events] async for batch in call]

    assert batches == [[1, 2, 3], [4], [5], [6, 7]]


async def test_many_watchers_of_one_run_all_see_all_of_it(world: World) -> None:
    run = await world.start(await world.grant())
    attempt = await world.claim(run.run_id)

    async def watch() -> list[int]:
        call = world.executor().WatchRun(pb.WatchRunRequest(run_id=run.run_id))
        return [event.seq async for batch in call for event in batch.events]

    async with asyncio.timeout(DEADLINE_SECONDS):
        watchers = [asyncio.create_task(watch()) for _ in range(15)]
        await attempt.chatter(50)
        assert await attempt.succeed()
        seen = await asyncio.gather(*watchers)

    assert all(seqs == list(range(1, 54)) for seqs in seen)


async def test_a_watcher_that_goes_away_changes_nothing_for_the_run(world: World) -> None:
    run = await world.start(await world.grant())
    attempt = await world.claim(run.run_id)
    call = world.executor().WatchRun(pb.WatchRunRequest(run_id=run.run_id))
    await call.read()

    call.cancel()
    await attempt.chatter(2)

    assert await attempt.succeed()
    assert (await world.run(run.run_id)).state == RUN_STATE_SUCCEEDED


async def test_a_sequence_beyond_the_end_is_out_of_range(world: World) -> None:
    run = await world.start(await world.grant())

    refusal = await refused(
        world.executor().WatchRun(pb.WatchRunRequest(run_id=run.run_id, after_seq=2))
    )

    assert refusal.code == grpc.StatusCode.OUT_OF_RANGE
    assert (refusal.reason, refusal.info.metadata["newest_seq"]) == ("SEQ_OUT_OF_RANGE", "1")


async def test_another_tenants_run_looks_like_one_that_is_not_there(world: World) -> None:
    run = await world.start(await world.grant())
    stranger = world.executor("other", "mallory")

    theirs = await refused(stranger.WatchRun(pb.WatchRunRequest(run_id=run.run_id)))
    unknown = await refused(stranger.WatchRun(pb.WatchRunRequest(run_id=new_id())))

    assert theirs.reason == unknown.reason == "NOT_FOUND"


async def test_streams_beyond_the_limit_are_refused(world: World) -> None:
    run = await world.start(await world.grant())
    stub = world.executor()
    calls = [stub.WatchRun(pb.WatchRunRequest(run_id=run.run_id)) for _ in range(20)]
    for call in calls:
        await call.read()

    refusal = await refused(stub.WatchRun(pb.WatchRunRequest(run_id=run.run_id)))

    assert refusal.reason == "LIMIT_EXCEEDED"
    for call in calls:
        call.cancel()


async def test_a_draining_server_ends_the_stream_with_a_point_to_resume_from(
    world: World,
) -> None:
    run = await world.start(await world.grant())
    attempt = await world.claim(run.run_id)
    await attempt.chatter(4)
    call = world.executor().WatchRun(pb.WatchRunRequest(run_id=run.run_id))
    batches = [await call.read()]

    async def read_on() -> None:
        async for batch in call:
            batches.append(batch)

    world.drain.begin()
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await read_on()

    assert refusal_of(ended.value).code == grpc.StatusCode.UNAVAILABLE
    assert batches[-1].resume
    assert batches[-1].last_seq == 6


async def _finished_run(world: World, events: int) -> str:
    run = await world.start(await world.grant())
    attempt = await world.claim(run.run_id)
    await attempt.chatter(events)
    assert await attempt.succeed()
    run_id: str = run.run_id
    return run_id


async def _stored(world: World, run_id: str) -> list[tuple[int, bytes]]:
    async with world.database.raw_tenant("acme") as tx:
        rows = await tx.fetch(
            "SELECT seq, payload FROM run_events WHERE run_id = $1 ORDER BY seq", run_id
        )
    return [(row["seq"], row["payload"]) for row in rows]


async def _raw_events(world: World, run_id: str, after_seq: int) -> list[bytes]:
    """The events as they are on the wire: field 1 of each message, undecoded."""
    token = world.identities.user_token("acme", "alice", SCOPES)
    watch = world.served.channel(token).unary_stream(
        "/cogni.executor.v1.ExecutorService/WatchRun",
        request_serializer=pb.WatchRunRequest.SerializeToString,
        response_deserializer=None,
    )
    request = pb.WatchRunRequest(run_id=run_id, after_seq=after_seq)
    async with asyncio.timeout(DEADLINE_SECONDS):
        return [event async for message in watch(request) for event in _field_one(message)]


def _field_one(message: bytes) -> list[bytes]:
    found, position = [], 0
    while position < len(message) and message[position] == 0x0A:
        length, shift, position = 0, 0, position + 1
        while True:
            byte = message[position]
            length |= (byte & 0x7F) << shift
            shift, position = shift + 7, position + 1
            if byte < 0x80:
                break
        found.append(message[position : position + length])
        position += length
    return found


async def _until(call: Any, seen: list[Any], happened: Any) -> None:
    while not any(happened(event) for event in seen):
        seen += (await call.read()).events
