"""A runner inside the test's own loop, over the real database, with graphs of the tests."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from cogni.executor.v1.run_event_pb2 import RunEvent
from cogni.graph.guarding import ToolDenied, guard_every_tool
from cogni.graph.invocation import Credential
from services.executor.amounts import Amount
from services.executor.runner.attempt import Workshop
from services.executor.runner.catalogue import Catalogue
from services.executor.runner.guard import Lease
from services.executor.runner.holds import Holds
from services.executor.runner.journal import Holding, Journal
from services.executor.runner.lease_keeper import KeeperTimes, LeaseKeeper
from services.executor.runner.loop import Loop, LoopSettings
from services.executor.runner.needs import Need
from services.executor.runs import Run
from services.executor.store.leases import LeaseTimes
from services.runtime.database import Database
from services.runtime.listen import Listener

CANARY = "canary-4711-secret-token"
DEADLINE_SECONDS = 60.0

TIMES = LeaseTimes(
    lease=timedelta(seconds=60),
    clock_skew=timedelta(seconds=1),
    patience=timedelta(seconds=60),
    company_suspicions_max=3,
)


@dataclass
class FakeConnections:
    """Leases one canary; Connections itself is exercised where the four services run."""

    leases: list[tuple[str, str]] = field(default_factory=list)

    async def lease(
        self,
        holding: Holding,
        connection_ids: Any,
        need: Need,
        tool: str,
        invocation_id: str,
    ) -> Lease:
        if not connection_ids:
            raise ToolDenied("no connection")
        self.leases.append((tool, invocation_id))
        fields = {"access_jwt": CANARY, "did": "did:plc:a"}
        return Lease(connection_ids[0], Credential("bluesky_session", fields), (CANARY,))


@dataclass
class FakeHolds:
    """An account that always has enough; test_run_hold.py and test_holds.py use the real Ledger."""

    placed: list[Amount] = field(default_factory=list)
    shrunk: list[Amount] = field(default_factory=list)

    async def place(
        self, holding: Holding, account_id: str, least: Amount, unsettled: Amount
    ) -> Decimal:
        self.placed.append(least)
        return least.value

    async def shrink(self, holding: Holding, unsettled: Amount) -> None:
        self.shrunk.append(unsettled)


@dataclass
class Running:
    """One runner under way."""

    loop: Loop
    fleet: Any
    connections: Any
    pumps: set[asyncio.Task[Any]]
    task: asyncio.Task[None]

    async def until(self, run_id: str, condition: Callable[[Run], bool]) -> Run:
        """The run, once the condition holds of it."""
        self.loop.wake()
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                run: Run = await self.fleet.run(run_id)
                if condition(run):
                    return run
                # What is waited for is a commit of the code under test.
                await asyncio.sleep(0.02)

    async def idle(self) -> None:
        """Return when no run is carried any more."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                if not self.loop.carried:
                    return
                await asyncio.sleep(0.02)

    async def finished(self, run_id: str) -> Run:
        return await self.until(run_id, lambda run: run.final)

    async def in_state(self, run_id: str, state: str) -> Run:
        return await self.until(run_id, lambda run: run.state == state)


def catalogue_names(source: str) -> list[str]:
    """The graphs that a module of this kind defines."""
    made = re.findall(r"^(\w+) = (?:_chain|_agent)\(", source, re.MULTILINE)
    others = ["looping", "ticketing", "confiding", "crowding", "counting"]
    return [*made, *others, "gated_before", "gated_after", "gated_within"]


def write_project(folder: Path) -> Path:
    """A langgraph.json that names the graphs of the tests."""
    source = Path(__file__).parent / "graphs.py"
    (folder / "graphs.py").write_text(source.read_text())
    graphs = catalogue_names(source.read_text())
    named = ", ".join(f'"{name}": "./graphs.py:{name}"' for name in graphs)
    file = folder / "langgraph.json"
    file.write_text(f'{{"dependencies": ["."], "graphs": {{{named}}}}}')
    return file


@asynccontextmanager
async def running(
    fleet: Any,
    catalogue: Catalogue,
    *,
    slots: int = 20,
    holder: str = "test",
    times: LeaseTimes = TIMES,
    drain_seconds: float = 0.0,
    connections: Any = None,
    holds: Holds | None = None,
) -> AsyncIterator[Running]:
    """Carry runs until the block ends, then drain in good order."""
    database: Database = fleet.database
    journal, connections = Journal(database), connections or FakeConnections()
    pumps: set[asyncio.Task[Any]] = set()
    paid = holds or FakeHolds()
    workshop = Workshop(database, journal, catalogue, connections, paid, pumps.add)
    listener = Listener(database.url, application_name="tests")
    background = [asyncio.create_task(journal.run()), asyncio.create_task(listener.run())]
    settings = LoopSettings(
        holder=holder,
        slots=slots,
        times=times,
        probation=timedelta(seconds=0.2),
        drain=timedelta(seconds=drain_seconds),
    )

    def keeper(lost: Callable[[str, int], None]) -> LeaseKeeper:
        keeper_times = KeeperTimes(times.lease, times.lease / 3, timedelta(seconds=60))
        return LeaseKeeper(
            lambda: Database.open(database.url, "executor"), holder, keeper_times, lost
        )

    with guard_every_tool():
        loop = Loop(workshop, settings, keeper, listener)
        task = asyncio.create_task(loop.run())
        try:
            yield Running(loop, fleet, connections, pumps, task)
        finally:
            loop.drain()
            await asyncio.wait_for(task, DEADLINE_SECONDS)
            for each in [*background, *pumps]:
                each.cancel()
            await asyncio.gather(*background, *pumps, return_exceptions=True)


def kinds(events: list[RunEvent]) -> list[str]:
    """The events' kinds, in order."""
    return [str(event.WhichOneof("event")) for event in events]


def brief(times: LeaseTimes = TIMES, **changes: Any) -> LeaseTimes:
    """The lease's times with some changed."""
    return replace(times, **changes)
