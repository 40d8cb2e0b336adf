"""Takes the answer to a question of a waiting run, and lets the run go on after the last one."""

from dataclasses import dataclass

from cogni.executor.v1.run_event_pb2 import QUEUED_CAUSE_RESUMED, RunQueued, RunResumed
from services.executor.audit import AuditKind, AuditRecord
from services.executor.events import Draft
from services.executor.grants import refusal, refusal_to_act
from services.executor.runs import Run, RunState, WaitingReason
from services.executor.store import audit, events, grants, interrupts, owed, runs
from services.executor.store.interrupts import Asked
from services.executor.use_cases.backing import Backing, current_traceparent, trace_id_of
from services.runtime.caller import Caller
from services.runtime.errors import (
    ServiceError,
    Violation,
    failed_precondition,
    invalid,
    not_found,
)
from services.runtime.ids import new_id
from services.runtime.jsonvalues import Json, canonical_json, to_value


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer and which kind of question it fits."""

    value: Json
    fits: WaitingReason


async def resume_run(
    on: Backing, caller: Caller, run_id: str, interrupt_id: str, answer: Answer
) -> Run:
    """Answer the question. Raises ServiceError.

    The first answer counts: repeating it changes nothing, and another one is refused.
    """
    async with on.database.raw_tenant(caller.tenant_id) as tx:
        active = await events.lock(tx, run_id)
        run = await runs.get(tx, run_id, lock=active)
        if run is None:
            raise not_found("run", run_id)
        asked = await interrupts.get(tx, run_id, interrupt_id)
        if asked is None:
            raise not_found("interrupt", interrupt_id)
        if not _is_repeat(asked, answer):
            await _answer(tx, caller, run, asked, answer)
            run = await runs.get(tx, run_id) or run
        run = await runs.details(tx, run)
    on.kick()
    return run


def _is_repeat(asked: Asked, answer: Answer) -> bool:
    if not asked.answered:
        return False
    if canonical_json(asked.answer) == canonical_json(answer.value):
        return True
    raise failed_precondition(
        "INTERRUPT_ANSWERED",
        f"The question {asked.interrupt.interrupt_id!r} was answered before with another answer, "
        "which counts.",
    )


async def _answer(
    tx: events.Connection, caller: Caller, run: Run, asked: Asked, answer: Answer
) -> None:
    await _check(tx, run, asked, answer)
    interrupt_id = asked.interrupt.interrupt_id
    await interrupts.answer(tx, run.run_id, interrupt_id, answer.value, caller.owner)
    resumed = RunResumed(
        interrupt_id=interrupt_id, answer=to_value(answer.value), answerer=caller.owner
    )
    drafts = [Draft(resumed)]
    last = await interrupts.open_count(tx, run.run_id) == 0
    if last:
        drafts.append(Draft(RunQueued(cause=QUEUED_CAUSE_RESUMED)))
    newest = await _append(tx, run, drafts)
    if last:
        queued = await runs.queue(tx, run.run_id, "RESUMED")
        assert queued, "a WAITING run may be queued"
        await owed.owe(tx, owed.WAKE_UP, run.tenant_id, {"run_id": run.run_id})
    record = AuditRecord(
        audit_record_id=new_id(),
        kind=AuditKind.EVENT,
        action="run.resume",
        actor=caller.subject,
        run_id=run.run_id,
        attempt=run.attempt,
        grant_id=run.grant_id,
        invocation_id=asked.interrupt.invocation_id,
        event_seq=newest,
        details={"interrupt_id": interrupt_id, "answerer": caller.owner},
        trace_id=trace_id_of(current_traceparent()),
    )
    await audit.write(tx, run.tenant_id, record)


async def _check(tx: events.Connection, run: Run, asked: Asked, answer: Answer) -> None:
    if run.state is not RunState.WAITING:
        raise failed_precondition(
            "RUN_NOT_WAITING",
            f"The run is {run.state} and waits for no answer.",
            metadata={"state": run.state},
        )
    if answer.fits is not asked.interrupt.reason:
        raise _wrong_kind(asked.interrupt.reason)
    held = await grants.hold(tx, run.grant_id)
    assert held is not None, "runs reference grants, which are never deleted"
    decision = refusal_to_act(*held)
    if not decision.allowed:
        raise refusal(decision, run.grant_id, run.graph_id)


def _wrong_kind(reason: WaitingReason) -> ServiceError:
    if reason is WaitingReason.OUTCOME_UNKNOWN:
        return invalid(Violation("verdict", "is required: say whether the invocation happened"))
    return invalid(Violation("value", "is required: the graph asked a question"))


async def _append(tx: events.Connection, run: Run, drafts: list[Draft]) -> int:
    place = await events.take_unsealed(tx, run.run_id, len(drafts))
    assert place is not None, "its lease is locked and was not sealed"
    newest = await events.insert(tx, run.run_id, run.tenant_id, run.attempt, place, drafts)
    await events.notify(tx, [(run.run_id, newest)])
    return newest
