"""A Scheduler over a real database and a gRPC Executor, moved by hand: no clock ticks by itself."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from google.protobuf.json_format import ParseDict

from cogni.scheduler.v1 import schedule_pb2
from cogni.scheduler.v1 import scheduler_service_pb2 as pb
from services.runtime.caller import Caller, CallerKind
from services.runtime.database import Database
from services.runtime.ids import new_id
from services.runtime.outbox import Entry
from services.runtime.relay import Relay
from services.scheduler.adapters.executor import ExecutorClient
from services.scheduler.convert.schedule import settings_from_proto
from services.scheduler.schedules import Schedule
from services.scheduler.slot_records import SlotRecord
from services.scheduler.store import schedules as schedule_store
from services.scheduler.store import slots as slot_store
from services.scheduler.use_cases import dispatch
from services.scheduler.use_cases.backfilling import Backfills, BackfillStepper
from services.scheduler.use_cases.firing import Clock as SchedulerClock
from services.scheduler.use_cases.following import followers
from services.scheduler.use_cases.schedules import Schedules
from services.scheduler.use_cases.starting import Starter
from services.scheduler.use_cases.triggering import ManualTriggers
from services.scheduler.use_cases.upkeep import Canceller, Sweeper
from tests.scheduler.fake_executor import FakeExecutor

SCOPES = ("schedules:read", "schedules:write")
ALICE = Caller(CallerKind.USER, "alice", "acme", frozenset(SCOPES))
EVERY_MINUTE: dict[str, Any] = {"cron": {"expressions": ["* * * * *"]}}
# Wide enough apart that a machine that stalls for minutes makes no second slot due.
HOURLY: dict[str, Any] = {"cron": {"expressions": ["0 * * * *"]}}
ONE_SHOT: dict[str, Any] = {"interval": {"every": "86400s"}}


@dataclass
class World:
    """Everything of the Scheduler, one step at a time."""

    db: Database
    executor: FakeExecutor
    client: ExecutorClient
    move_clock: Any

    def __post_init__(self) -> None:
        self.schedules = Schedules(self.db, self.client)
        self.manual = ManualTriggers(self.db, lambda: None)
        self.clock = SchedulerClock(self.db, lambda: None)
        self.starter = Starter(self.db, self.client, lambda: None)
        self.sweeper = Sweeper(self.db, lambda: None)
        self.backfills = Backfills(self.db)
        self.stepper = BackfillStepper(self.db, self.client, lambda: None)
        self.messages: list[tuple[str, str]] = []
        canceller = Canceller(self.db, self.client)
        self.relay = Relay(
            self.db,
            {dispatch.START_TOPIC: self._receive, dispatch.CANCEL_TOPIC: canceller.cancel},
        )
        self.followers = followers(self.db, self.client, lambda: None)

    async def _receive(self, entries: list[Entry]) -> None:
        for entry in entries:
            self.messages.append((entry.payload["schedule_id"], entry.payload["scheduled_for"]))

    async def create(
        self, spec: dict[str, Any] | None = None, *, grant_id: str = "", **fields: Any
    ) -> Schedule:
        """Create a schedule of alice's from the contract's JSON."""
        message = {
            "display_name": "test",
            "spec": spec or HOURLY,
            "run": {
                "graph_id": "digest",
                "grant_id": grant_id or self.executor.grant(),
                "input": {"n": 1},
            },
            **fields,
        }
        settings = settings_from_proto(ParseDict(message, schedule_pb2.Schedule()))
        return await self.schedules.create(ALICE, new_id(), settings, paused=False)

    async def get(self, schedule: Schedule) -> Schedule:
        """The schedule as it is now."""
        return await self.schedules.get(ALICE, schedule.schedule_id)

    async def now(self) -> datetime:
        """The database's time."""
        async with self.db.jobs() as tx:
            return await schedule_store.now(tx)

    async def pass_time(self, by: timedelta) -> None:
        """Let the database's time pass."""
        await self.move_clock.advance(self.db, by)

    async def reach(self, schedule: Schedule) -> datetime:
        """Let time pass until the schedule is due, and return the nominal time of its slot."""
        due = (await self.get(schedule)).next_fire_time
        assert due is not None
        await self.pass_time(due - await self.now() + timedelta(milliseconds=5))
        slot_time = (await self.get(schedule)).next_slot_time
        assert slot_time is not None
        return slot_time

    async def fire(self, schedule: Schedule) -> SlotRecord:
        """Reach the next slot, fire it, and return it."""
        await self.reach(schedule)
        assert await self.clock.fire_due() >= 1
        return (await self.slots(schedule))[-1]

    async def deliver(self) -> int:
        """Relay what is owed and work on every message; return how many there were."""
        while await self.relay.send_due():
            pass
        messages, self.messages = self.messages, []
        for message in messages:
            await self.starter.start(dispatch.key_of(*message))
        return len(messages)

    async def slots(self, schedule: Schedule) -> list[SlotRecord]:
        """The slots of a schedule, oldest first."""
        async with self.db.tenant("acme") as tx:
            found = await slot_store.list_page(tx, schedule.schedule_id, limit=5000)
        return found[::-1]

    async def states(self, schedule: Schedule) -> list[str]:
        """The states of its slots, oldest first."""
        return [slot.state.value for slot in await self.slots(schedule)]

    async def hear(self, stream: str = "runs") -> None:
        """Follow a stream until everything said so far is heard."""
        follower = self.followers[stream]
        cursor = await follower._take()
        assert cursor is not None
        log = getattr(self.executor, f"_{stream[:-1]}_changes")
        if int(cursor or 0) >= len(log):
            return
        watch = getattr(self.client, f"watch_{stream}")
        async for batch in watch(cursor):
            assert await follower._handle(batch)
            if int(batch.cursor) >= len(log):
                return


def create_request(world: World, **changes: Any) -> pb.CreateScheduleRequest:
    """A request that is right, under a new request_id; keyword arguments replace its fields."""
    schedule = {
        "display_name": "nightly",
        "spec": {"cron": {"expressions": ["0 9 * * MON-FRI"]}, "time_zone": "Europe/Berlin"},
        "run": {"graph_id": "digest", "grant_id": world.executor.grant(), "input": {"a": [1, 2.5]}},
        **changes,
    }
    message = {"request_id": new_id(), "schedule": schedule}
    return ParseDict(message, pb.CreateScheduleRequest())
