"""Stops runs: at once where no attempt is under way, by asking its runner where one is."""

import asyncio

from cogni.executor.v1.run_event_pb2 import CancelRequested, RunFinished
from services.executor.audit import AuditKind, AuditOutcome, AuditRecord
from services.executor.convert.enums import run_state
from services.executor.convert.runs import cancellation_to_proto, error_to_proto
from services.executor.events import Draft
from services.executor.runs import Cancellation, CancelReason, Run, RunState, ending_of
from services.executor.store import audit, events, grants, runs
from services.executor.use_cases.backing import Backing
from services.runtime.caller import Caller
from services.runtime.errors import not_found
from services.runtime.ids import new_id

_PAGE_RUNS = 200
# Leaves most of the pool to the calls that are served meanwhile.
_STOPPED_AT_ONCE = 3


async def cancel_run(
    on: Backing, caller: Caller, run_id: str, reason: CancelReason, comment: str
) -> Run:
    """Stop the run for the caller; a final run stays as it is. Raises ServiceError NOT_FOUND."""
    cancellation = Cancellation(reason, comment, caller.owner)
    async with on.database.raw_tenant(caller.tenant_id) as tx:
        await request_stop(tx, run_id, cancellation)
        run = await runs.get(tx, run_id)
        if run is None:
            raise not_found("run", run_id)
        return await runs.details(tx, run)


async def stop_runs_under(
    on: Backing, tenant_id: str, grant_id: str, cancellation: Cancellation
) -> int:
    """Stop every run under the grant and return how many there were.

    Each in a transaction of its own, so that none waits for the locks of another.
    """
    stopped, last_id = 0, "00000000-0000-0000-0000-000000000000"
    gate = asyncio.Semaphore(_STOPPED_AT_ONCE)

    async def stop(run_id: str) -> None:
        async with gate, on.database.raw_tenant(tenant_id) as tx:
            await request_stop(tx, run_id, cancellation)

    while True:
        async with on.database.raw_tenant(tenant_id) as tx:
            page = await grants.active_runs(tx, grant_id, last_id, _PAGE_RUNS)
        if not page:
            return stopped
        await asyncio.gather(*(stop(run_id) for run_id in page))
        stopped, last_id = stopped + len(page), page[-1]


async def request_stop(tx: events.Connection, run_id: str, cancellation: Cancellation) -> None:
    """End a queued or waiting run, or ask the runner of a running one to; does nothing to others.

    The first request counts, also for how the run ends.
    """
    if not await events.lock(tx, run_id):
        return
    run = await runs.get(tx, run_id, lock=True)
    assert run is not None, "its lease is locked"
    first = await runs.request_cancel(tx, run_id, cancellation)
    requested = cancellation if first else run.cancellation
    assert requested is not None, "somebody asked before"
    drafts = [_request_draft(requested)] if first else []
    cause = await _record_request(tx, run, requested) if first else None
    if run.state is RunState.RUNNING:
        await _append(tx, run, drafts)
        await events.notify_runner(tx, [run_id])
    else:
        await end(tx, run, requested, drafts, cause)


async def end(
    tx: events.Connection,
    run: Run,
    cancellation: Cancellation,
    before: list[Draft],
    cause: str | None,
) -> None:
    """Append what came `before` and the final event, and seal the run. Its lease is locked.

    `cause` is the audit record of the request, where it is known.
    """
    state, error = ending_of(cancellation.reason)
    finished = RunFinished(state=run_state(state), error=error_to_proto(error))
    newest = await _append(tx, run, [*before, Draft(finished)])
    done = await runs.finish(tx, run.run_id, state, error=error)
    assert done, f"{run.state} may be followed by {state}"
    outcome = AuditRecord(
        audit_record_id=new_id(),
        kind=AuditKind.OUTCOME,
        action="run.finish",
        actor=cancellation.requester,
        run_id=run.run_id,
        attempt=run.attempt,
        grant_id=run.grant_id,
        cause_audit_record_id=cause,
        reason=error.reason,
        outcome=AuditOutcome.FAILED,
        event_seq=newest,
        trace_id=run.trace_id or None,
    )
    await audit.write(tx, run.tenant_id, outcome)


async def _append(tx: events.Connection, run: Run, drafts: list[Draft]) -> int:
    if not drafts:
        return run.last_seq
    place = await events.take_unsealed(tx, run.run_id, len(drafts))
    assert place is not None, "its lease is locked and was not sealed"
    newest = await events.insert(tx, run.run_id, run.tenant_id, run.attempt, place, drafts)
    await events.notify(tx, [(run.run_id, newest)])
    return newest


def _request_draft(cancellation: Cancellation) -> Draft:
    return Draft(CancelRequested(cancellation=cancellation_to_proto(cancellation)))


async def _record_request(tx: events.Connection, run: Run, cancellation: Cancellation) -> str:
    record = AuditRecord(
        audit_record_id=new_id(),
        kind=AuditKind.EVENT,
        action="run.cancel",
        actor=cancellation.requester,
        run_id=run.run_id,
        attempt=run.attempt,
        grant_id=run.grant_id,
        details={"reason": cancellation.reason, "comment": cancellation.comment},
        trace_id=run.trace_id or None,
    )
    await audit.write(tx, run.tenant_id, record)
    return record.audit_record_id
