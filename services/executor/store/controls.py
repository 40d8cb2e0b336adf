"""What runners look for: who must stop, and what an attempt must know before it begins."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from services.executor.amounts import Amount
from services.executor.grants import ToolPermission
from services.executor.permissions import permissions_from_json
from services.executor.runs import CancelReason
from services.executor.store.budgets import Limits
from services.executor.store.events import Connection
from services.executor.store.rows import Row, json_of
from services.runtime.jsonvalues import Json

_STOPS = """
SELECT run_id, cancel_reason, cancel_comment,
    CASE WHEN grants.state = 'ACTIVE' AND grants.expire_time <= cogni_now() THEN 'EXPIRED'
         ELSE grants.state END AS grant_state
FROM runs JOIN grants USING (grant_id)
WHERE run_id = ANY ($1::uuid[])
    AND (cancel_request_time IS NOT NULL OR grants.state <> 'ACTIVE'
        OR grants.expire_time <= cogni_now())
"""
# Everything an attempt must know before it begins, in one round trip.
_BRIEFING = """
SELECT cancel_reason, cancel_comment, grants.account_id, grants.budget_asset,
    grants.budget_value, max_cost_asset, max_cost_value,
    CASE WHEN grants.tools::text LIKE '%"mcp_tool"%' THEN grants.tools END AS pinned_tools,
    CASE WHEN grants.state = 'ACTIVE' AND grants.expire_time <= cogni_now() THEN 'EXPIRED'
         ELSE grants.state END AS grant_state,
    (SELECT coalesce(sum(longest), interval '0') FROM (
        SELECT max(answer_time) - min(create_time) AS longest FROM interrupts
        WHERE run_id = $1 AND answer_time IS NOT NULL GROUP BY create_time) AS waits) AS waited,
    (SELECT json_object_agg(interrupt_id, answer) FROM interrupts
        WHERE run_id = $1 AND answer IS NOT NULL) AS answers,
    CASE WHEN $2 > 1 THEN (SELECT json_object_agg(node, calls) FROM (
        SELECT node, count(*) AS calls FROM usage_units
        WHERE run_id = $1 AND attempt < $2 AND kind = 'LLM_CALL' AND corrects_call_id IS NULL
            AND occur_time > coalesce(
            (SELECT max(create_time) FROM checkpoints WHERE run_id = $1), '-infinity')
        GROUP BY node) AS lost) END AS lost_calls
FROM runs JOIN grants USING (grant_id) WHERE run_id = $1
"""


@dataclass(frozen=True)
class Stop:
    """That a run must stop: somebody asked for it, or its grant has ended."""

    run_id: str
    cancel_reason: CancelReason | None
    comment: str
    grant_state: str


@dataclass(frozen=True)
class Briefing:
    """What an attempt must know before it begins.

    `waited` is how long the run has waited for answers that came, questions asked together once;
    `lost_calls` counts per node the model calls of earlier attempts whose work is in no
    checkpoint: it is done again, and so are they.
    """

    stop: Stop | None
    account_id: str | None
    limits: Limits
    waited: timedelta
    answers: dict[str, Json]
    lost_calls: dict[str, int]
    #: The grant's permissions for tools of MCP servers.
    pinned_tools: tuple[ToolPermission, ...] = ()


async def stops(tx: Connection, run_ids: Sequence[str]) -> list[Stop]:
    """Return those of the runs that must stop. Needs a jobs transaction."""
    rows = await tx.fetch(_STOPS, list(run_ids))
    found = [_stop(str(row["run_id"]), row) for row in rows]
    return [stop for stop in found if stop is not None]


async def briefing(tx: Connection, run_id: str, attempt: int) -> Briefing:
    """Return what the run's attempt must know before it begins."""
    row = await tx.fetchrow(_BRIEFING, run_id, attempt)
    assert row is not None, "runs are not deleted while they are carried"
    return Briefing(
        stop=_stop(run_id, row),
        account_id=row["account_id"],
        limits=Limits(
            Amount.of(row["budget_asset"], row["budget_value"]),
            Amount.of(row["max_cost_asset"], row["max_cost_value"]),
        ),
        waited=row["waited"],
        answers=json_of(row["answers"]) or {},
        lost_calls=json_of(row["lost_calls"]) or {},
        pinned_tools=tuple(
            each
            for each in permissions_from_json(json_of(row["pinned_tools"]) or [])
            if each.mcp_tool is not None
        ),
    )


def _stop(run_id: str, row: Row) -> Stop | None:
    if row["cancel_reason"] is None and row["grant_state"] == "ACTIVE":
        return None
    return Stop(
        run_id,
        CancelReason(row["cancel_reason"]) if row["cancel_reason"] else None,
        row["cancel_comment"] or "",
        row["grant_state"],
    )
