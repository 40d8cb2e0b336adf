"""What runners look for while they carry runs: who must stop, and how long a run has waited."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from services.executor.runs import CancelReason
from services.executor.store.events import Connection
from services.executor.store.rows import json_of
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
_WAITED = """
SELECT coalesce(sum(longest), interval '0') FROM (
    SELECT max(answer_time) - min(create_time) AS longest FROM interrupts
    WHERE run_id = $1 AND answer_time IS NOT NULL GROUP BY create_time
) AS waits
"""
_ANSWERS = "SELECT interrupt_id, answer FROM interrupts WHERE run_id = $1 AND answer IS NOT NULL"
# Work that no checkpoint holds is done again, and so are its calls.
_LOST_CALLS = """
SELECT node, count(*) AS calls FROM usage_units
WHERE run_id = $1 AND attempt < $2 AND occur_time > coalesce(
    (SELECT max(create_time) FROM checkpoints WHERE run_id = $1), '-infinity')
GROUP BY node
"""
_ACCOUNT = "SELECT account_id FROM grants WHERE grant_id = $1"


@dataclass(frozen=True)
class Stop:
    """That a run must stop: somebody asked for it, or its grant has ended."""

    run_id: str
    cancel_reason: CancelReason | None
    comment: str
    grant_state: str


async def stops(tx: Connection, run_ids: Sequence[str]) -> list[Stop]:
    """Return those of the runs that must stop. Needs a jobs transaction."""
    rows = await tx.fetch(_STOPS, list(run_ids))
    return [
        Stop(
            str(row["run_id"]),
            CancelReason(row["cancel_reason"]) if row["cancel_reason"] else None,
            row["cancel_comment"] or "",
            row["grant_state"],
        )
        for row in rows
    ]


async def waited(tx: Connection, run_id: str) -> timedelta:
    """Return how long the run has waited for answers that came; questions asked together once."""
    time: timedelta = await tx.fetchval(_WAITED, run_id)
    return time


async def answers(tx: Connection, run_id: str) -> dict[str, Json]:
    """Return the answers that were given, by interrupt_id."""
    rows = await tx.fetch(_ANSWERS, run_id)
    return {row["interrupt_id"]: json_of(row["answer"]) for row in rows}


async def lost_calls(tx: Connection, run_id: str, attempt: int) -> dict[str, int]:
    """Count per node the calls of earlier attempts whose work is in no checkpoint."""
    rows = await tx.fetch(_LOST_CALLS, run_id, attempt)
    return {row["node"]: row["calls"] for row in rows}


async def account_of(tx: Connection, grant_id: str) -> str | None:
    """Return the account that pays for the grant's runs."""
    account_id: str | None = await tx.fetchval(_ACCOUNT, grant_id)
    return account_id
