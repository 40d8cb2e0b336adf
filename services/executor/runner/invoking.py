"""The transactions around one tool invocation: its decision, and a person's verdict on it."""

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from cogni.executor.v1.run_event_pb2 import ToolAllowed, ToolFinished, ToolInvoked
from cogni.executor.v1.run_event_pb2 import ToolDenied as ToolDeniedEvent
from cogni.type.v1.error_reason_pb2 import ErrorReason
from services.executor.audit import AuditKind, AuditRecord
from services.executor.events import Draft
from services.executor.grants import ALLOWED, Decision, ToolPermission, decide_invocation
from services.executor.graphs import ToolEffect
from services.executor.runner.journal import Holding, LeaseLostError
from services.executor.runner.rendering import struct_of
from services.executor.store import audit, budgets, events, grants
from services.executor.store import invocations as store
from services.executor.store.budgets import Limits
from services.executor.store.events import Connection
from services.executor.store.invocations import Known, Requested
from services.executor.store.journal import Write
from services.runtime.ids import new_id
from services.runtime.jsonvalues import Json


@dataclass(frozen=True)
class Admitted:
    """The tool may be invoked now."""

    audit_record_id: str
    #: The connections that the grant names; for a tool of an MCP server that server's alone.
    connection_ids: tuple[str, ...] = ()
    #: For a tool of an MCP server: the permission with the definition it is pinned to.
    pinned: ToolPermission | None = None
    #: Whether an earlier attempt had sent it, so that a crash makes it cost a second time.
    rework: bool = False


@dataclass(frozen=True)
class Denied:
    """The tool may not be invoked."""

    decision: Decision


@dataclass(frozen=True)
class Reused:
    """An earlier attempt has done it; this is what came of it."""

    invocation_id: str
    result: bytes = field(repr=False)


@dataclass(frozen=True)
class Asked:
    """Nobody knows whether an earlier attempt has done it: a person must say."""

    question: dict[str, Json]


Admission: TypeAlias = Admitted | Denied | Reused | Asked


@dataclass(frozen=True)
class Verdict:
    """What a person says about an invocation in doubt."""

    happened: bool
    output: Any = None


def verdict_of(answer: Any) -> Verdict:
    """Read the answer to a question of OUTCOME_UNKNOWN.

    {"outcome": "happened", "output": …} or {"outcome": "did_not_happen"}. Anything else counts
    as "happened": repeating an effect by mistake is the worse error.
    """
    if isinstance(answer, dict) and answer.get("outcome") == "did_not_happen":
        return Verdict(happened=False)
    output = answer.get("output") if isinstance(answer, dict) else None
    return Verdict(happened=True, output="done" if output is None else output)


async def admit(
    tx: Connection,
    holding: Holding,
    grant_id: str,
    requested: Requested,
    arguments: dict[str, Json],
    dealt_with: frozenset[str],
    *,
    limits: Limits,
    shown: dict[str, Json],
    answered: bool,
) -> Admission:
    """Decide about the invocation while the grant is held, and write the decision.

    `limits` bound what is spent; `shown` is what the event says of the arguments. `answered` says
    that the question it may raise has just been answered. Raises LeaseLostError.
    """
    # Two events in every case: what was asked for, and what was decided.
    place = await events.take_fenced(tx, holding.run_id, holding.epoch, 2)
    if place is None:
        raise LeaseLostError(holding.run_id)
    known = await store.get(tx, holding.run_id, requested.invocation_id)
    if known is None or known.decision == "DENIED":
        earlier = await store.left_behind(tx, requested, dealt_with | {requested.invocation_id})
    else:
        earlier = known
    settled = None if earlier is None else _settled(requested, earlier, answered=answered)
    if isinstance(settled, Asked):
        await store.doubt(tx, str(settled.question["invocation_id"]))
        drafts = [Draft(_invoked(requested, shown)), Draft(_in_doubt(requested))]
    elif isinstance(settled, Reused):
        await store.adopt(tx, settled.invocation_id, holding.attempt)
        drafts = [Draft(_invoked(requested, shown)), Draft(_reused(requested))]
    else:
        rework = earlier is not None and _is_lost(earlier, holding.attempt)
        settled, event = await _decide(
            tx, holding, grant_id, requested, arguments, limits=limits, rework=rework
        )
        drafts = [Draft(_invoked(requested, shown)), Draft(event)]
    newest = await events.insert(
        tx, holding.run_id, holding.tenant_id, holding.attempt, place, drafts
    )
    await events.notify(tx, [(holding.run_id, newest)])
    return settled


async def resolve(
    tx: Connection, holding: Holding, invocation_id: str, *, happened: bool, result: bytes | None
) -> None:
    """Write a person's verdict; a verdict that was written before stays. Raises LeaseLostError."""
    if await events.take_fenced(tx, holding.run_id, holding.epoch, 0) is None:
        raise LeaseLostError(holding.run_id)
    await store.resolve(tx, invocation_id, holding.attempt, happened=happened, result=result)


def audited(record: tuple[str, AuditRecord]) -> Write:
    """Return the audit record as a write of the journal."""
    return Write(audit.INSERT, audit.values_of(*record))


def _settled(requested: Requested, earlier: Known, *, answered: bool) -> Admission | None:
    """What an earlier execution of the same invocation makes of this one; None: decide anew."""
    if earlier.asked and not answered:
        # Asked again even when it was answered, since LangGraph counts a task's questions.
        return Asked(_question(earlier))
    match earlier.state:
        case "FINISHED" if earlier.result is not None:
            return Reused(earlier.invocation_id, earlier.result)
        case "FINISHED" | "SENT" | "UNKNOWN" if requested.effect is ToolEffect.OUTWARD:
            return Asked(_question(earlier))
        case _:
            return None


def _is_lost(earlier: Known, attempt: int) -> bool:
    # The attempt that takes a person's verdict over makes the invocation its own.
    return earlier.sent and (earlier.attempt < attempt or earlier.asked)


async def _decide(
    tx: Connection,
    holding: Holding,
    grant_id: str,
    requested: Requested,
    arguments: dict[str, Json],
    *,
    limits: Limits,
    rework: bool,
) -> tuple[Admitted | Denied, Any]:
    held = await grants.hold(tx, grant_id)
    connection_ids: tuple[str, ...] = ()
    pinned: ToolPermission | None = None
    if held is None:
        decision = Decision(False, "GRANT_REVOKED", "The grant is not there any more.")
    else:
        grant, now = held
        connection_ids = grant.connection_ids
        permission = grant.permission(requested.tool)
        if permission is not None and permission.mcp_tool is not None:
            pinned, connection_ids = permission, (permission.mcp_tool.connection_id,)
        decision = decide_invocation(
            grant,
            requested.tool,
            arguments,
            # Which of the grant's connections is the provider's, Connections says; none can be.
            connection_id=None if grant.connection_ids else requested.provider,
            mcp_provider=requested.mcp_provider,
            invocations_before=await store.allowed_before(tx, requested),
            now=now,
        )
    if decision.allowed and limits.binding:
        decision = await _within(tx, limits, holding, grant_id, requested)
    record = _decision_record(holding, grant_id, requested, decision)
    await audit.write(tx, holding.tenant_id, record)
    await store.decide(tx, requested, decision, record.audit_record_id)
    if decision.allowed:
        return Admitted(record.audit_record_id, connection_ids, pinned, rework), ToolAllowed(
            invocation_id=requested.invocation_id,
            tool=requested.tool,
            audit_record_id=record.audit_record_id,
        )
    return Denied(decision), ToolDeniedEvent(
        invocation_id=requested.invocation_id,
        tool=requested.tool,
        reason=ErrorReason.Value(f"ERROR_REASON_{decision.reason}"),
        message=decision.message,
        audit_record_id=record.audit_record_id,
    )


async def _within(
    tx: Connection, limits: Limits, holding: Holding, grant_id: str, requested: Requested
) -> Decision:
    """Deny a tool that costs more than is left; one that is free may always be used."""
    passed = await budgets.tool_passes(tx, grant_id, holding.run_id, requested.tool, limits)
    if passed is None:
        return ALLOWED
    price, limit = passed
    return Decision(
        False,
        "BUDGET_EXHAUSTED",
        f"The tool {requested.tool!r} costs {price.plain} {price.asset}, which is more than is "
        f"left of {limit.plain} {limit.asset}.",
    )


def _decision_record(
    holding: Holding, grant_id: str, requested: Requested, decision: Decision
) -> AuditRecord:
    return AuditRecord(
        audit_record_id=new_id(),
        kind=AuditKind.DECISION,
        action="tool.invoke",
        actor=f"run:{holding.run_id}",
        run_id=holding.run_id,
        attempt=holding.attempt,
        grant_id=grant_id,
        invocation_id=requested.invocation_id,
        allowed=decision.allowed,
        reason=decision.reason,
        details={"tool": requested.tool, "node": requested.node, "message": decision.message},
    )


def _question(earlier: Known) -> dict[str, Json]:
    return {
        "reason": "OUTCOME_UNKNOWN",
        "invocation_id": earlier.invocation_id,
        "tool": earlier.tool,
        "question": (
            f"The runner died while {earlier.tool!r} was at work, and nobody knows whether it "
            'happened. Look, and answer {"outcome": "happened", "output": …} or '
            '{"outcome": "did_not_happen"}.'
        ),
    }


def _invoked(requested: Requested, arguments: dict[str, Json]) -> ToolInvoked:
    return ToolInvoked(
        invocation_id=requested.invocation_id,
        tool=requested.tool,
        arguments=struct_of(arguments),
        node=requested.node,
        tool_call_id=requested.tool_call_id or "",
    )


def _in_doubt(requested: Requested) -> ToolDeniedEvent:
    return ToolDeniedEvent(
        invocation_id=requested.invocation_id,
        tool=requested.tool,
        reason=ErrorReason.ERROR_REASON_OUTCOME_UNKNOWN,
        message="An earlier attempt may have done it; a person is asked.",
    )


def _reused(requested: Requested) -> ToolFinished:
    return ToolFinished(invocation_id=requested.invocation_id, tool=requested.tool, reused=True)
