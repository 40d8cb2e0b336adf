"""Lets an attempt make a provider call only if it fits what its grant and run may spend."""

import asyncio

from services.executor.runner.journal import Holding, JournalUnavailableError, LeaseLostError
from services.executor.runner.stopping import RunStoppedError
from services.executor.runs import RunError, RunState
from services.executor.store import budgets, usage
from services.executor.store.budgets import Limits, Opening
from services.executor.store.usage import PendingCall
from services.runtime.database import Database
from services.runtime.errors import ServiceError

#: How often, and with which pauses, a call is tried to be opened while the database is away.
_TRIES_MAX = 30
_PAUSE_SECONDS = 1.0


class Purse:
    """What one attempt may spend. A call that does not fit ends the run before it is sent."""

    def __init__(self, database: Database, limits: Limits) -> None:
        self._database = database
        self._limits = limits

    @property
    def limited(self) -> bool:
        """Whether calls must be opened here."""
        return self._limits.binding

    async def open(self, holding: Holding, call: PendingCall) -> None:
        """Store the call as PENDING if its upper bound fits.

        Raises RunStoppedError when it does not fit or nobody knows what it can cost,
        LeaseLostError, and JournalUnavailableError when the database stays away.
        """
        opening = self._opening(holding, call)
        for _ in range(_TRIES_MAX):
            try:
                async with self._database.raw_jobs() as tx:
                    passed = await budgets.open_within(
                        tx, opening, self._limits, usage.open_call(call)
                    )
            except LookupError:
                raise LeaseLostError(holding.run_id) from None
            except (ServiceError, OSError):
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            if passed is not None:
                raise _exhausted(
                    f"The call to {call.model} can cost {opening.upper_cost.plain} "
                    f"{opening.upper_cost.asset}, which is more than is left of "
                    f"{passed.plain} {passed.asset}."
                )
            return
        raise JournalUnavailableError("a provider call could not be stored")

    def _opening(self, holding: Holding, call: PendingCall) -> Opening:
        cost = call.upper_cost
        if cost is None:
            # A limit that lets calls of unknown price through would bound nothing.
            raise _exhausted(
                f"Nobody knows what {call.model} costs, so no budget can be kept: use a model "
                "with a known price, or a grant without a budget."
            )
        if self._limits.assets != {cost.asset}:
            others = ", ".join(sorted(self._limits.assets - {cost.asset}))
            raise _exhausted(
                f"Models are priced in {cost.asset}; a budget in {others} cannot bound them."
            )
        return Opening(call.call_id, call.grant_id, call.run_id, holding.epoch, cost)


def _exhausted(message: str) -> RunStoppedError:
    return RunStoppedError(RunState.FAILED, RunError("BUDGET_EXHAUSTED", message))
