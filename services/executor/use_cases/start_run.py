"""Starts a run: once per request, if its grant allows it."""

from dataclasses import dataclass
from datetime import datetime

from cogni.executor.v1.run_event_pb2 import QUEUED_CAUSE_STARTED, RunQueued
from services.executor.audit import AuditKind, AuditRecord
from services.executor.events import Draft, sealed_events
from services.executor.grants import Decision, Grant, decide_start, refusal
from services.executor.graphs import Graph, GraphState
from services.executor.runs import FINAL, Run, RunRequest, RunState
from services.executor.store import audit, events, grants, graphs, owed, runs
from services.executor.use_cases.backing import Backing, current_traceparent, trace_id_of
from services.runtime.caller import Caller
from services.runtime.errors import (
    ServiceError,
    denied,
    failed_precondition,
    not_found,
    reused_request_id,
)
from services.runtime.ids import new_id


class _DeniedError(Exception):
    """Raised to undo everything but the record of the denial."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(decision.reason)
        self.decision = decision


@dataclass(frozen=True)
class _Start:
    """One call, with the identities that it will use if it is the first."""

    caller: Caller
    request_id: str
    request: RunRequest
    run_id: str
    traceparent: str | None


async def start_run(on: Backing, caller: Caller, request_id: str, request: RunRequest) -> Run:
    """Create a QUEUED run and owe its wake-up, or return the run of an earlier same call.

    Run, first event, audit records and wake-up commit together. Raises ServiceError.
    """
    start = _Start(caller, request_id, request, new_id(), current_traceparent())
    try:
        async with on.database.raw_tenant(caller.tenant_id) as tx:
            run = await _start_once(tx, start)
    except _DeniedError as error:
        await _record_denial(on, start, error.decision)
        raise refusal(error.decision, request.grant_id, request.graph_id) from None
    on.kick()
    return run


async def _start_once(tx: events.Connection, start: _Start) -> Run:
    tenant_id = start.caller.tenant_id
    content_hash = start.request.content_hash(start.caller.owner)
    time = await runs.claim_key(tx, tenant_id, start.request_id, content_hash, start.run_id)
    if time is None:
        return await _earlier_run(tx, start, content_hash)
    grant = await _allowing_grant(tx, start)
    graph = await _runnable_graph(tx, start.request)
    thread_id = await _usable_thread(tx, start)
    run = _new_run(start, graph, thread_id, time)
    try:
        await _write(tx, start, run)
    except runs.ThreadBusyError:
        raise _thread_busy(thread_id) from None
    await _record(tx, start, grant)
    await owed.owe(tx, owed.WAKE_UP, tenant_id, {"run_id": run.run_id})
    return run


async def _earlier_run(tx: events.Connection, start: _Start, content_hash: bytes) -> Run:
    use = await runs.key_use(tx, start.caller.tenant_id, start.request_id)
    assert use is not None, "its key made the claim fail"
    if use.content_hash != content_hash:
        raise reused_request_id(start.request_id)
    if use.run is None:
        raise not_found("run", use.run_id)
    return await runs.details(tx, use.run) if use.run.attempt else use.run


async def _allowing_grant(tx: events.Connection, start: _Start) -> Grant:
    held = await grants.hold(tx, start.request.grant_id)
    if held is None:
        raise not_found("grant", start.request.grant_id)
    grant, now = held
    decision = decide_start(grant, start.request.graph_id, start.caller.owner, now)
    if not decision.allowed:
        raise _DeniedError(decision)
    return grant


async def _runnable_graph(tx: events.Connection, request: RunRequest) -> Graph:
    graph = await graphs.get(tx, request.graph_id, request.revision)
    if graph is None and request.revision and await graphs.get(tx, request.graph_id, None):
        raise failed_precondition(
            "REVISION_NOT_AVAILABLE",
            f"No runner has revision {request.revision!r} of the graph {request.graph_id!r}; "
            "leave the revision empty to run the newest.",
        )
    if graph is None:
        raise not_found("graph", request.graph_id)
    if graph.state is GraphState.BROKEN:
        raise failed_precondition(
            "GRAPH_BROKEN",
            f"The runners could not load the graph {request.graph_id!r}; GetGraph says why.",
        )
    return graph


async def _usable_thread(tx: events.Connection, start: _Start) -> str:
    thread_id = start.request.thread_id
    if thread_id is None:
        return new_id()
    head = await runs.thread_head(tx, thread_id)
    if head is None:
        raise not_found("thread", thread_id)
    if head.owner != start.caller.owner or head.graph_id != start.request.graph_id:
        raise denied(
            "THREAD_NOT_OWNED",
            f"The thread {thread_id!r} belongs to another subject or graph; leave thread_id empty "
            "for a new thread.",
        )
    if head.state not in FINAL:
        raise _thread_busy(thread_id, head.run_id)
    return thread_id


def _thread_busy(thread_id: str, run_id: str = "") -> ServiceError:
    return failed_precondition(
        "THREAD_BUSY",
        f"Another run of the thread {thread_id!r} has not finished; wait for it, cancel it, or "
        "use another thread.",
        metadata={"run_id": run_id} if run_id else None,
    )


def _new_run(start: _Start, graph: Graph, thread_id: str, time: datetime) -> Run:
    request = start.request
    return Run(
        run_id=start.run_id,
        tenant_id=start.caller.tenant_id,
        graph_id=request.graph_id,
        revision=graph.revision,
        thread_id=thread_id,
        grant_id=request.grant_id,
        owner=start.caller.owner,
        state=RunState.QUEUED,
        attempt=0,
        options=request.options,
        origin=request.origin,
        labels=request.labels,
        create_time=time,
        update_time=time,
        input=request.input,
        context=request.context,
        replayed_run_id=request.replayed_run_id,
        traceparent=start.traceparent,
        last_seq=1,
    )


async def _write(tx: events.Connection, start: _Start, run: Run) -> None:
    queued = Draft(RunQueued(cause=QUEUED_CAUSE_STARTED))
    (first,) = sealed_events(1, 0, run.create_time, [queued])
    await runs.create(tx, run, start.request, (first.type, first.payload))


async def _record(tx: events.Connection, start: _Start, grant: Grant) -> None:
    event = _event_record(start, start.run_id)
    decision = AuditRecord(
        audit_record_id=new_id(),
        kind=AuditKind.DECISION,
        action="run.start",
        actor=start.caller.subject,
        run_id=start.run_id,
        grant_id=grant.grant_id,
        cause_audit_record_id=event.audit_record_id,
        allowed=True,
        event_seq=1,
        trace_id=event.trace_id,
    )
    await audit.write(tx, start.caller.tenant_id, event, decision)


async def _record_denial(on: Backing, start: _Start, decision: Decision) -> None:
    # A denied start makes no run, so its records name none.
    event = _event_record(start, None)
    denial = AuditRecord(
        audit_record_id=new_id(),
        kind=AuditKind.DECISION,
        action="run.start",
        actor=start.caller.subject,
        grant_id=start.request.grant_id,
        cause_audit_record_id=event.audit_record_id,
        allowed=False,
        reason=decision.reason,
        trace_id=event.trace_id,
    )
    async with on.database.raw_tenant(start.caller.tenant_id) as tx:
        await audit.write(tx, start.caller.tenant_id, event, denial)


def _event_record(start: _Start, run_id: str | None) -> AuditRecord:
    origin = start.request.origin
    details = {
        "graph_id": start.request.graph_id,
        "request_id": start.request_id,
        "owner": start.caller.owner,
        "schedule_id": origin.schedule_id,
        "scheduled_time": origin.scheduled_time.isoformat() if origin.scheduled_time else None,
        "trigger_id": origin.trigger_id,
        "delivery_id": origin.delivery_id,
        "replayed_run_id": start.request.replayed_run_id,
    }
    return AuditRecord(
        audit_record_id=new_id(),
        kind=AuditKind.EVENT,
        action="run.start",
        actor=start.caller.subject,
        run_id=run_id,
        grant_id=start.request.grant_id,
        details={name: value for name, value in details.items() if value is not None},
        trace_id=trace_id_of(start.traceparent),
    )
