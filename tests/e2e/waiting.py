"""Waits for what other processes do: each wait has a deadline and says what it waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from cogni.client import AsyncClient, NotFound, Unavailable
from cogni.executor.v1.run_event_pb2 import RunEvent
from cogni.ledger.v1.ledger_service_pb2 import GetRunStatementRequest
from cogni.ledger.v1.statement_pb2 import RunCloseState, RunStatement
from cogni.ledger.v1.usage_pb2 import Charge
from cogni.scheduler.v1.scheduler_service_pb2 import ListSlotsRequest

#: Generous, because the machine does other things as well.
WAIT_SECONDS_MAX = 90.0
POLL_SECONDS = 0.1

Found = TypeVar("Found")


async def until(what: str, look: Callable[[], Awaitable[Found | None]]) -> Found:
    """Returns what `look` finds, once it finds something."""
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while True:
        found = await look()
        if found:
            return found
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        await asyncio.sleep(POLL_SECONDS)


async def whole_log(client: AsyncClient, run_id: str) -> list[RunEvent]:
    """The run's events to its end."""
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        return [event async for event in client.watch_run(run_id)]


async def run_of_slot(client: AsyncClient, schedule_id: str) -> str:
    """The run of the schedule's only slot, once it has been started; the Scheduler may be away."""

    async def look() -> str:
        request = ListSlotsRequest(schedule_id=schedule_id)
        try:
            slots = (await client.scheduler.ListSlots(request)).slots
        except Unavailable:
            return ""
        return next((slot.run_id for slot in slots), "")

    return await until("the slot's run", look)


async def bill(client: AsyncClient, run_id: str, units: int) -> RunStatement:
    """The run's statement once the Ledger has at least so many units and the run is closed."""

    async def look() -> RunStatement | None:
        try:
            request = GetRunStatementRequest(run_id=run_id)
            found = (await client.ledger.GetRunStatement(request)).statement
        except (NotFound, Unavailable):
            return None
        complete = found.close.state == RunCloseState.RUN_CLOSE_STATE_COMPLETE
        return found if found.unit_count >= units and complete else None

    return await until("the run's closed statement", look)


def model_charges(statement: RunStatement) -> list[Charge]:
    return [charge for charge in statement.charges if charge.unit.HasField("llm_call")]


def tool_charges(statement: RunStatement) -> list[Charge]:
    """The charges of tool calls."""
    return [charge for charge in statement.charges if charge.unit.HasField("tool_call")]
