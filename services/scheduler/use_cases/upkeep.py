"""What keeps slots moving when messages or processes were lost: redispatch and cancellation."""

from __future__ import annotations

from collections.abc import Callable

from services.runtime.database import Database
from services.runtime.errors import unavailable
from services.runtime.outbox import Entry
from services.scheduler.runs import Executor, ExecutorUnavailableError, RunRefusedError
from services.scheduler.slot_records import SlotState
from services.scheduler.store import slots
from services.scheduler.use_cases.dispatch import key_of, owe_starts

SWEEP_SLOTS = 500


class Sweeper:
    """Dispatches again what was not started in time."""

    def __init__(self, database: Database, kick: Callable[[], None]) -> None:
        self._database = database
        self._kick = kick

    async def redispatch(self, limit: int = SWEEP_SLOTS) -> int:
        """Send the word of overdue starts again; return of how many slots."""
        async with self._database.jobs() as tx:
            overdue = await slots.claim_unstarted(tx, limit)
            await owe_starts(tx, [(each.tenant_id, each.key) for each in overdue])
        if overdue:
            self._kick()
        return len(overdue)


class Canceller:
    """Carries owed cancellations of runs to the Executor, as a relay's handler."""

    def __init__(self, database: Database, executor: Executor) -> None:
        self._database = database
        self._executor = executor

    async def cancel(self, entries: list[Entry]) -> None:
        """Cancel the runs of the named slots; raises while one is about to start."""
        for entry in entries:
            await self._cancel_one(entry)

    async def _cancel_one(self, entry: Entry) -> None:
        key = key_of(entry.payload["schedule_id"], entry.payload["scheduled_for"])
        async with self._database.jobs() as tx:
            slot = await slots.get(tx, key)
        if slot is None or slot.run_finished:
            return
        if slot.run_id is None:
            if slot.state is SlotState.PENDING:
                raise unavailable("The slot's run is about to start; it is cancelled then.")
            return
        try:
            await self._executor.cancel_run(
                slot.tenant_id, slot.run_id, "A later slot of its schedule takes its place."
            )
        except ExecutorUnavailableError as error:
            raise unavailable(str(error)) from error
        except RunRefusedError:
            # The run ended by itself, or is gone: either way nothing is left to cancel.
            return
