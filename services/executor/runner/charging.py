"""What each execution of a tool puts on the run's bill."""

from cogni.executor.v1.run_event_pb2 import UsageRecorded
from services.executor.events import Draft
from services.executor.store.invocations import Requested, ToolUnit
from services.runtime.ids import new_id


def unit_of(grant_id: str, account_id: str | None, *, rework: bool) -> ToolUnit | None:
    """A unit of its own for each execution, also of one invocation; None when nobody pays.

    A run without an account may use tools: what costs nothing needs nobody to pay. What tools
    cost, the Ledger alone knows.
    """
    if account_id is None:
        return None
    return ToolUnit(new_id(), grant_id, account_id, rework)


def told(requested: Requested, unit: ToolUnit | None) -> list[Draft]:
    """The event that names the unit, if there is one."""
    if unit is None:
        return []
    event = UsageRecorded(
        call_id=unit.call_id,
        node=requested.node,
        tool=requested.tool,
        invocation_id=requested.invocation_id,
        rework=unit.rework,
    )
    return [Draft(event)]
