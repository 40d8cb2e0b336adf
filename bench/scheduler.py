"""Scheduler: how late slots start under steady load, and how fast slots are computed."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

from cronsim import CronSim

from bench.echo import echo_rate, echo_server
from bench.embedded import embedded
from bench.executor import create_grant
from bench.report import Report
from cogni.client import AsyncClient, ClientSettings
from cogni.scheduler.v1.schedule_pb2 import OverlapPolicy, RunTemplate, Schedule
from cogni.scheduler.v1.scheduler_service_pb2 import (
    CreateScheduleRequest,
    ListSlotsRequest,
    PreviewScheduleRequest,
)
from cogni.scheduler.v1.slot_pb2 import SlotState
from cogni.scheduler.v1.spec_pb2 import CronRecurrence, IntervalRecurrence, ScheduleSpec
from services.scheduler.slots import Slots
from services.scheduler.specs import CronRecurrence as CronSpec
from services.scheduler.specs import Spec
from services.scheduler.wall import ONCE_A_DAY

AREA = "scheduler"
# 17 slots a second is the 1,000 due a minute that the lateness aim is stated for.
SCHEDULES = 51
EVERY_SECONDS = 3
PREVIEWED = 1000
CRON = "*/5 8-18 * * 1-5"
ZONE = "Europe/Berlin"
AIM_P50_MS, AIM_P99_MS, AIM_PREVIEW_MS = 25.0, 100.0, 20.0


def measure(report: Report, long: bool) -> None:
    repeats, seconds = (5, 120) if long else (3, 25)
    _engine(report, repeats)
    with echo_server() as address:
        serial = [asyncio.run(echo_rate(address, 500, 1)) for _ in range(repeats)]
    with embedded() as stack:
        asyncio.run(_preview(report, stack.settings(), serial, repeats))
        asyncio.run(_lateness(report, stack.settings(), seconds))


def _engine(report: Report, repeats: int) -> None:
    """Our slots of one cron expression beside cronsim's, which knows one DST policy."""
    start = datetime(2026, 1, 1, tzinfo=UTC)

    def ours() -> object:
        slots = Slots(Spec(CronSpec((CRON,)), ONCE_A_DAY, ZONE))
        return list(islice(slots.between(start, start + timedelta(days=365)), PREVIEWED))

    def peers() -> object:
        return list(islice(CronSim(CRON, start.astimezone(ZoneInfo(ZONE))), PREVIEWED))

    report.add(
        AREA,
        f"{PREVIEWED} slots of a cron expression",
        "slots/s",
        [PREVIEWED / _seconds(ours) for _ in range(repeats)],
        peer="cronsim",
        peer_values=[PREVIEWED / _seconds(peers) for _ in range(repeats)],
    )


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


async def _preview(
    report: Report, settings: ClientSettings, serial: list[float], repeats: int
) -> None:
    spec = ScheduleSpec(cron=CronRecurrence(expressions=[CRON]), time_zone=ZONE)
    request = PreviewScheduleRequest(spec=spec, max_slots=PREVIEWED)
    async with AsyncClient(settings) as client:
        await client.scheduler.PreviewSchedule(request)
        taken = []
        for _ in range(repeats * 5):
            started = time.perf_counter()
            await client.scheduler.PreviewSchedule(request)
            taken.append((time.perf_counter() - started) * 1000)
    name = f"PreviewSchedule of {PREVIEWED} slots"
    report.add(AREA, name, "ms", taken, peer="aim", peer_values=[AIM_PREVIEW_MS])
    report.add(
        AREA, name, "ms", taken, peer="echo, one caller", peer_values=[1000 / r for r in serial]
    )


async def _lateness(report: Report, settings: ClientSettings, seconds: int) -> None:
    async with AsyncClient(settings) as client:
        grant_id = await create_grant(client)
        schedule_ids = [await _schedule(client, grant_id) for _ in range(SCHEDULES)]
        began = datetime.now(UTC) + timedelta(seconds=2 * EVERY_SECONDS)
        await asyncio.sleep(seconds + 2 * EVERY_SECONDS)
        until = datetime.now(UTC)
        await asyncio.sleep(EVERY_SECONDS)
        late = [ms for each in schedule_ids for ms in await _late_ms(client, each, began, until)]
    late.sort()
    for name, share, aim in (("p50", 0.50, AIM_P50_MS), ("p99", 0.99, AIM_P99_MS)):
        report.add(
            AREA,
            f"due slot to accepted run, {SCHEDULES * 60 // EVERY_SECONDS} a minute, {name}",
            "ms",
            [late[int(share * (len(late) - 1))]],
            peer="aim",
            peer_values=[aim],
        )
    expected = SCHEDULES * (until - began).total_seconds() / EVERY_SECONDS
    report.add(
        AREA,
        "slots started of those due",
        "slots",
        [float(len(late))],
        peer="due",
        peer_values=[expected],
    )


async def _schedule(client: AsyncClient, grant_id: str) -> str:
    interval = IntervalRecurrence()
    interval.every.FromSeconds(EVERY_SECONDS)
    schedule = Schedule(
        display_name="bench",
        spec=ScheduleSpec(interval=interval),
        run=RunTemplate(graph_id="noop", grant_id=grant_id),
        overlap_policy=OverlapPolicy.OVERLAP_POLICY_ALLOW_ALL,
    )
    request = CreateScheduleRequest(request_id=str(uuid.uuid4()), schedule=schedule)
    return (await client.scheduler.CreateSchedule(request)).schedule.schedule_id


async def _late_ms(
    client: AsyncClient, schedule_id: str, began: datetime, until: datetime
) -> Sequence[float]:
    """How long after its time each slot's run was accepted, for the slots between two moments."""
    request = ListSlotsRequest(schedule_id=schedule_id, page_size=1000)
    slots = (await client.scheduler.ListSlots(request)).slots
    return [
        (slot.start_time.ToDatetime(UTC) - slot.fire_time.ToDatetime(UTC)).total_seconds() * 1000
        for slot in slots
        if slot.state == SlotState.SLOT_STATE_STARTED
        and began <= slot.fire_time.ToDatetime(UTC) < until
    ]
