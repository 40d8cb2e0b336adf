"""The transactions around one tool invocation: its decision, and a person's verdict on it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from cogni.executor.v1.run_event_pb2 import ToolAllowed, ToolFinished, ToolInvoked
from cogni.executor.v1.run_event_pb2 import ToolDenied as ToolDeniedEvent
from cogni.type.v1.error_reason_pb2 import ErrorReason
from services.executor.audit import AuditKind, AuditOutcome, AuditRecord
from services.executor.events import Draft
from services.executor.grants import ALLOWED, Decision, ToolPermission, decide_invocation
from services.executor.graphs import ToolEffect
from services.executor.runner.doubt import question, verdict_on
from services.executor.runner.journal import Holding, LeaseLostError
from services.executor.runner.rendering import struct_of
from services.executor.store import audit, budgets, events, grants, interrupts
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
    """An earlier execution has done it; this is what came of it."""

    invocation_id: str
    result: bytes = field(repr=False)


@dataclass(frozen=True)
class Asked:
    """Nobody knows whether an earlier execution has done it: a person must say."""

    question: dict[str, Json]
    #: Somebody has said: it is asked again since LangGraph counts a task's questions.
    answered: bool = False


Admission: TypeAlias = Admitted | Denied | Reused | Asked


@dataclass(frozen=True)
class Dealt:
    """What the attempt has dealt with so far, as one request sees it."""

    #: In this execution of the task: nobody takes these for left behind.
    now: frozenset[str]
    #: By earlier tries of the same node, which are over.
    in_earlier_tries: frozenset[str]


async def admit(
    tx: Connection,
    holding: Holding,
    grant_id: str,
    requested: Requested,
    arguments: dict[str, Json],
    dealt: Dealt,
    *,
    limits: Limits,
    shown: dict[str, Json],
    heard: int,
    stored: Callable[[Any], bytes],
) -> Admission:
    """Decide about the invocation while the grant is held, and write the decision.

    `limits` bound what is spent; `shown` is what the event says of the arguments. `heard` counts
    the answers that this request has been given; `stored` keeps what a person says that the tool
    returned. Raises LeaseLostError.
    """
    # Two events in every case: what was asked for, and what was decided.
    place = await events.take_fenced(tx, holding.run_id, holding.epoch, 2)
    if place is None:
        raise LeaseLostError(holding.run_id)
    # An answer queues the run anew, so the first attempt has none.
    answers = [] if holding.attempt == 1 else await interrupts.verdicts(tx, holding.run_id)
    own = [each.payload for each in answers if each.asked_by == requested.invocation_id]
    earlier: Known | None = None
    settled: Admission | None
    if heard < len(own):
        settled = Asked(own[heard], answered=True)
    else:
        earlier = await _earlier(tx, requested, dealt)
        settled = None if earlier is None else _settled(requested, earlier)
        if isinstance(settled, Asked):
            assert earlier is not None
            verdict = verdict_on(earlier, answers)
            if verdict is None:
                await store.doubt(tx, earlier.invocation_id)
            else:
                result = stored(verdict.output) if verdict.happened else None
                await store.resolve(tx, earlier.invocation_id, holding.attempt, result=result)
                settled = None if result is None else Reused(earlier.invocation_id, result)
    if isinstance(settled, Asked):
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


def outcome(
    requested: Requested, admitted: Admitted, grant_id: str, came_of_it: AuditOutcome
) -> Write:
    """Return the audit record of what came of the invocation, as a write of the journal."""
    record = AuditRecord(
        audit_record_id=new_id(),
        kind=AuditKind.OUTCOME,
        action="tool.invoke",
        actor=f"run:{requested.run_id}",
        run_id=requested.run_id,
        attempt=requested.attempt,
        grant_id=grant_id,
        invocation_id=requested.invocation_id,
        cause_audit_record_id=admitted.audit_record_id,
        outcome=came_of_it,
        reason=None if came_of_it is AuditOutcome.SUCCEEDED else "TOOL_FAILED",
        details={"tool": requested.tool},
    )
    return Write(audit.INSERT, audit.values_of(requested.tenant_id, record))


async def _earlier(tx: Connection, requested: Requested, dealt: Dealt) -> Known | None:
    """Return what the request may be a repetition of."""
    known = await store.get(tx, requested.run_id, requested.invocation_id)
    if known is not None and known.decision != "DENIED":
        return known
    repeated = dealt.now | {requested.invocation_id}
    return await store.left_behind(tx, requested, repeated, dealt.in_earlier_tries)


def _settled(requested: Requested, earlier: Known) -> Reused | Asked | None:
    """What an earlier execution of the same invocation makes of this one; None: decide anew."""
    match earlier.state:
        case "FINISHED" if earlier.result is not None:
            return Reused(earlier.invocation_id, earlier.result)
        case "FINISHED" | "SENT" | "UNKNOWN" if requested.effect is ToolEffect.OUTWARD:
            return Asked(question(earlier, requested.invocation_id))
        case _:
            return None


def _is_lost(earlier: Known, attempt: int) -> bool:
    return earlier.sent_time is not None and earlier.attempt < attempt


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
        message="An earlier execution may have done it; a person is asked.",
    )


def _reused(requested: Requested) -> ToolFinished:
    return ToolFinished(invocation_id=requested.invocation_id, tool=requested.tool, reused=True)
