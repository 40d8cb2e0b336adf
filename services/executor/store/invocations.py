"""Invocations of tools: what was decided about each, whether it was sent, and what came of it."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from services.executor.grants import Decision
from services.executor.graphs import ToolEffect
from services.executor.store.events import Connection
from services.executor.store.journal import Write
from services.executor.store.rows import Row

_GET = "SELECT * FROM invocations WHERE invocation_id = $1 AND run_id = $2"
# An invocation of an earlier attempt, or of an earlier try of the node, that this execution of the
# same task has not repeated under the same id: the model may have asked anew, under another id, for
# the same act.
_LEFT_BEHIND = """
SELECT * FROM invocations
WHERE run_id = $1 AND task_id = $2 AND tool = $3 AND effect = 'OUTWARD'
    AND (attempt < $4 OR invocation_id = ANY ($6::uuid[]))
    AND state IN ('SENT', 'UNKNOWN', 'FINISHED')
    AND invocation_id <> ALL ($5::uuid[])
ORDER BY create_time, invocation_id LIMIT 1
"""
_ALLOWED_BEFORE = """
SELECT count(*) FROM invocations
WHERE run_id = $1 AND tool = $2 AND decision = 'ALLOWED' AND invocation_id <> $3
"""
_DECIDE = """
INSERT INTO invocations (invocation_id, tenant_id, run_id, attempt, task_id, tool_call_id, tool,
    node, effect, arguments_digest, connection_id, decision, reason, message, state,
    decision_audit_record_id, create_time)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, 'REQUESTED', $15,
    cogni_now())
ON CONFLICT (invocation_id) DO UPDATE SET attempt = excluded.attempt,
    arguments_digest = excluded.arguments_digest, connection_id = excluded.connection_id,
    decision = excluded.decision, reason = excluded.reason, message = excluded.message,
    decision_audit_record_id = excluded.decision_audit_record_id,
    state = 'REQUESTED', result = NULL, error_type = NULL, error_message = NULL,
    finish_time = NULL
"""
# One statement, so that each execution that is sent has exactly one unit, however often this is
# written. The unit is settled at once: what an invocation costs does not depend on what comes of
# it, so whatever happens next, nobody has to come back to it.
_SEND = """
WITH sent AS (
    UPDATE invocations SET state = 'SENT', sent_time = cogni_now(), connection_id = $3
    WHERE invocation_id = $1 AND attempt = $2 AND state = 'REQUESTED'
    RETURNING invocation_id, tenant_id, run_id, attempt, node, tool, sent_time
)
INSERT INTO usage_units (call_id, tenant_id, run_id, attempt, grant_id, account_id, kind, node,
    invocation_id, tool, state, estimate, actual, rework, occur_time, settle_time)
SELECT $4::uuid, tenant_id, run_id, attempt, $5::uuid, $6::text, 'TOOL_CALL', node,
    invocation_id, tool, 'SETTLED', '{}', '{}', $7::boolean, sent_time, sent_time
FROM sent WHERE $4::uuid IS NOT NULL
"""
# Allowed by the grant, and then found to be another tool than the granted one.
_DENY = """
UPDATE invocations SET decision = 'DENIED', reason = $3, message = $4
WHERE invocation_id = $1 AND attempt = $2 AND state = 'REQUESTED'
"""
_FINISH = """
UPDATE invocations SET state = $3::text, result = $4, error_type = $5, error_message = $6,
    finish_time = CASE WHEN $3::text <> 'UNKNOWN' THEN cogni_now() END
WHERE invocation_id = $1 AND attempt = $2 AND state IN ('REQUESTED', 'SENT')
"""
# A result that could not be kept is asked for too.
_DOUBT = """
UPDATE invocations SET asked = true, state = 'UNKNOWN', finish_time = NULL
WHERE invocation_id = $1
    AND (state IN ('SENT', 'UNKNOWN') OR (state = 'FINISHED' AND result IS NULL))
"""
_ADOPT = "UPDATE invocations SET attempt = $2 WHERE invocation_id = $1"
_RESOLVE = """
UPDATE invocations SET state = $2, result = $3, attempt = $4, finish_time = cogni_now()
WHERE invocation_id = $1 AND state = 'UNKNOWN'
"""


@dataclass(frozen=True)
class Requested:
    """An invocation that somebody asks for."""

    invocation_id: str
    tenant_id: str
    run_id: str
    attempt: int
    task_id: str
    tool_call_id: str | None
    tool: str
    node: str
    effect: ToolEffect
    #: Whose credential the tool needs, or prefers; None when it needs none.
    provider: str | None
    arguments_digest: bytes
    #: LangGraph's own tries of the node within the attempt, counted from 1.
    node_attempt: int = 1
    #: The MCP server's that the tool belongs to; None for a tool of the graph's own.
    mcp_provider: str | None = None


@dataclass(frozen=True)
class Known:
    """An invocation as an earlier execution left it."""

    invocation_id: str
    attempt: int
    tool: str
    node: str
    state: str
    decision: str
    #: When it was sent last, also when it has been decided anew since; None when it never was.
    sent_time: datetime | None
    result: bytes | None
    #: What the tool raised when nobody knows what it did before; None when it raised nothing.
    error_type: str | None = None


@dataclass(frozen=True)
class ToolUnit:
    """The usage unit of one execution of a tool: who pays, and whether a lost one is repeated."""

    call_id: str
    grant_id: str
    account_id: str
    rework: bool


async def get(tx: Connection, run_id: str, invocation_id: str) -> Known | None:
    """Return what is known of the invocation, None when it was never asked for."""
    row = await tx.fetchrow(_GET, invocation_id, run_id)
    return None if row is None else _known(row)


async def left_behind(
    tx: Connection, requested: Requested, repeated: Collection[str], tried: Collection[str]
) -> Known | None:
    """Return an outward invocation of the same tool that an earlier execution of this task made.

    `repeated` are those that this execution has dealt with; `tried` are those that earlier tries
    of the node made in this attempt. None when there is none.
    """
    row = await tx.fetchrow(
        _LEFT_BEHIND,
        requested.run_id,
        requested.task_id,
        requested.tool,
        requested.attempt,
        list(repeated),
        list(tried),
    )
    return None if row is None else _known(row)


async def allowed_before(tx: Connection, requested: Requested) -> int:
    """Count the run's other invocations of the tool that were allowed."""
    count: int = await tx.fetchval(
        _ALLOWED_BEFORE, requested.run_id, requested.tool, requested.invocation_id
    )
    return count


async def decide(
    tx: Connection, requested: Requested, decision: Decision, audit_record_id: str
) -> None:
    """Write what was decided; an invocation that is asked for again is decided anew."""
    await tx.execute(
        _DECIDE,
        requested.invocation_id,
        requested.tenant_id,
        requested.run_id,
        requested.attempt,
        requested.task_id,
        requested.tool_call_id,
        requested.tool,
        requested.node,
        requested.effect,
        requested.arguments_digest,
        None,
        "ALLOWED" if decision.allowed else "DENIED",
        decision.reason,
        decision.message or None,
        audit_record_id,
    )


def send(
    invocation_id: str, attempt: int, connection_id: str | None, unit: ToolUnit | None
) -> Write:
    """Write that the tool runs from now on: from here to its outcome nobody knows what it did.

    With the unit that is charged for it; None when nobody pays.
    """
    paid = (unit.call_id, unit.grant_id, unit.account_id, unit.rework) if unit else (None,) * 4
    return Write(_SEND, (invocation_id, attempt, connection_id, *paid))


def deny(invocation_id: str, attempt: int, decision: Decision) -> Write:
    """Write that an invocation which was allowed is denied after all, before it was sent."""
    return Write(_DENY, (invocation_id, attempt, decision.reason, decision.message))


def finish(invocation_id: str, attempt: int, result: bytes | None) -> Write:
    """Write that the tool returned; `result` is what a repeated execution gets instead."""
    return Write(_FINISH, (invocation_id, attempt, "FINISHED", result, None, None))


def fail(
    invocation_id: str, attempt: int, error_type: str, message: str, *, in_doubt: bool
) -> Write:
    """Write that the tool raised; the texts hold no credential.

    `in_doubt` says that nobody knows what it had done by then.
    """
    state = "UNKNOWN" if in_doubt else "FAILED"
    return Write(_FINISH, (invocation_id, attempt, state, None, error_type, message))


async def doubt(tx: Connection, invocation_id: str) -> None:
    """Note that a person is asked what became of the invocation."""
    await tx.execute(_DOUBT, invocation_id)


async def adopt(tx: Connection, invocation_id: str, attempt: int) -> None:
    """Note that this attempt takes over the invocation's outcome."""
    await tx.execute(_ADOPT, invocation_id, attempt)


async def resolve(
    tx: Connection, invocation_id: str, attempt: int, *, result: bytes | None
) -> None:
    """Write a person's verdict on an invocation in doubt; a second verdict changes nothing.

    `result` is what it returned; None when it did not happen.
    """
    state = "FAILED" if result is None else "FINISHED"
    await tx.execute(_RESOLVE, invocation_id, state, result, attempt)


def _known(row: Row) -> Known:
    return Known(
        invocation_id=str(row["invocation_id"]),
        attempt=row["attempt"],
        tool=row["tool"],
        node=row["node"],
        state=row["state"],
        decision=row["decision"],
        sent_time=row["sent_time"],
        result=row["result"],
        error_type=row["error_type"],
    )
