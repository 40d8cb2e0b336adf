"""Slots are listed in pages and watched, and whoever watches can resume."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import grpc

from cogni.scheduler.v1 import scheduler_service_pb2 as pb
from cogni.scheduler.v1 import slot_pb2
from tests.databases import all_is_final
from tests.plugins.calls import refused
from tests.scheduler.world import ONE_SHOT


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
