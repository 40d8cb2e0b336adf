"""kill -9 of whatever has to do with firing: every slot of every second has exactly one run."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bench.embedded import Embedded, embedded
from cogni.client import AsyncClient, CogniError
from cogni.executor.v1.executor_service_pb2 import ListRunsRequest
from cogni.executor.v1.grant_service_pb2 import CreateGrantRequest
from cogni.executor.v1.run_pb2 import Run, RunState
from cogni.scheduler.v1.schedule_pb2 import (
    CatchUpMode,
    CatchUpPolicy,
    OverlapPolicy,
    RunTemplate,
    Schedule,
)
from cogni.scheduler.v1.scheduler_service_pb2 import (
    CreateScheduleRequest,
    ListSlotsRequest,
    PauseScheduleRequest,
)
from cogni.scheduler.v1.slot_pb2 import Slot, SlotState
from cogni.scheduler.v1.spec_pb2 import IntervalRecurrence, ScheduleSpec

LONG = bool(os.environ.get("LONG"))
SEED = int(os.environ.get("SEED") or random.SystemRandom().randrange(2**32))
SCHEDULES = 20 if LONG else 4
CHAOS_SECONDS = 600 if LONG else 40
PAUSE_SECONDS = (1.0, 3.0)
SETTLE_SECONDS_MAX = 300
PAGE_SIZE = 1000
EXAMPLES = Path(__file__).parents[2] / "examples" / "langgraph.json"
CLOCK = "services.scheduler clock"
VICTIMS = (CLOCK, "services.scheduler.worker", "-m services.scheduler", "-m services.executor")
# The stack gives up on a process that crashes more than five times a minute.
KILLS_MAX, KILLS_WINDOW_SECONDS = 4, 65.0


@pytest.fixture(scope="module")
def stack() -> Iterator[Embedded]:
    sys.stdout.write(f"seed {SEED}\n")
    with embedded(EXAMPLES) as stack:
        yield stack


@pytest.fixture
async def client(stack: Embedded) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(stack.settings("chaos")) as client:
        yield client


async def test_every_slot_has_exactly_one_run_whatever_is_killed(
    stack: Embedded, client: AsyncClient
) -> None:
    granted = await client.grants.CreateGrant(
        CreateGrantRequest(request_id=str(uuid.uuid4()), graphs=["graph:execute:noop"])
    )
    grant_id = granted.grant.grant_id
    schedule_ids = [await _every_second(client, grant_id) for _ in range(SCHEDULES)]

    await _kill_at_random(stack, random.Random(SEED))
    for schedule_id in schedule_ids:
        await _paused(client, schedule_id)
    slots = {each: await _settled(client, each) for each in schedule_ids}
    runs = await _finished_runs(client, grant_id)

    for found in slots.values():
        times = [slot.scheduled_time.ToDatetime(UTC) for slot in found]
        expected = [times[0] + timedelta(seconds=n) for n in range(len(times))]
        assert times == expected, "a second is missing or there twice"
        assert {SlotState.Name(slot.state) for slot in found} == {"SLOT_STATE_STARTED"}
        assert len(found) >= CHAOS_SECONDS - 1
    started = [slot.run_id for found in slots.values() for slot in found]
    assert len(started) == len(set(started))
    assert sorted(run.run_id for run in runs) == sorted(started)
    assert {RunState.Name(run.state) for run in runs} == {"RUN_STATE_SUCCEEDED"}
    sys.stdout.write(f"{len(started)} slots, {len(runs)} runs\n")


async def _every_second(client: AsyncClient, grant_id: str) -> str:
    every = IntervalRecurrence()
    every.every.FromTimedelta(timedelta(seconds=1))
    created = await client.scheduler.CreateSchedule(
        CreateScheduleRequest(
            request_id=str(uuid.uuid4()),
            schedule=Schedule(
                display_name="Every second",
                spec=ScheduleSpec(interval=every),
                run=RunTemplate(graph_id="noop", grant_id=grant_id),
                overlap_policy=OverlapPolicy.OVERLAP_POLICY_ALLOW_ALL,
                catch_up=CatchUpPolicy(mode=CatchUpMode.CATCH_UP_MODE_ALL, max_count=1000),
            ),
        )
    )
    return created.schedule.schedule_id


async def _kill_at_random(stack: Embedded, dice: random.Random) -> None:
    kills: dict[str, deque[float]] = {victim: deque() for victim in VICTIMS}
    deadline = time.monotonic() + CHAOS_SECONDS
    while time.monotonic() < deadline:
        await asyncio.sleep(dice.uniform(*PAUSE_SECONDS))
        victim = dice.choice(VICTIMS)
        now = time.monotonic()
        while kills[victim] and now - kills[victim][0] > KILLS_WINDOW_SECONDS:
            kills[victim].popleft()
        if len(kills[victim]) == KILLS_MAX:
            continue
        pids = stack.pids(victim)
        if victim == "-m services.scheduler":
            # The clock is started by the same words and one more.
            pids = [pid for pid in pids if pid not in stack.pids(CLOCK)]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if pids:
            kills[victim].append(now)
            sys.stdout.write(f"killed {victim}\n")


async def _paused(client: AsyncClient, schedule_id: str) -> None:
    """Pauses the schedule once its clock has caught up: what is owed is owed by then."""
    reached = datetime.now(UTC)
    deadline = time.monotonic() + SETTLE_SECONDS_MAX
    while True:
        with contextlib.suppress(CogniError):
            slots = await _slots(client, schedule_id)
            if slots and slots[-1].scheduled_time.ToDatetime(UTC) >= reached:
                break
        assert time.monotonic() < deadline, "the clock did not catch up"
        await asyncio.sleep(0.5)
    while True:
        try:
            await client.scheduler.PauseSchedule(PauseScheduleRequest(schedule_id=schedule_id))
            return
        except CogniError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.5)


async def _slots(client: AsyncClient, schedule_id: str) -> list[Slot]:
    """Every slot of the schedule, oldest first."""
    request = ListSlotsRequest(schedule_id=schedule_id, page_size=PAGE_SIZE)
    found: list[Slot] = []
    while True:
        page = await client.scheduler.ListSlots(request)
        found += page.slots
        if not page.next_page_token:
            return sorted(found, key=lambda slot: slot.scheduled_time.ToNanoseconds())
        request.page_token = page.next_page_token


async def _settled(client: AsyncClient, schedule_id: str) -> list[Slot]:
    """The schedule's slots once none waits to be started."""
    deadline = time.monotonic() + SETTLE_SECONDS_MAX
    while True:
        found = await _slots(client, schedule_id)
        if all(slot.state != SlotState.SLOT_STATE_PENDING for slot in found):
            return found
        assert time.monotonic() < deadline, "slots still wait"
        await asyncio.sleep(0.5)


async def _finished_runs(client: AsyncClient, grant_id: str) -> list[Run]:
    """Every run under the grant, once all have ended."""
    deadline = time.monotonic() + SETTLE_SECONDS_MAX
    while True:
        request = ListRunsRequest(grant_id=grant_id, page_size=PAGE_SIZE)
        found: list[Run] = []
        while True:
            page = await client.executor.ListRuns(request)
            found += page.runs
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        if all(run.HasField("finish_time") for run in found):
            return found
        assert time.monotonic() < deadline, "runs still go on"
        await asyncio.sleep(0.5)
