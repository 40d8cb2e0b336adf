"""How an attempt ends: each ending is one transaction behind the fence."""

import asyncio
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cogni.executor.v1.run_event_pb2 import (
    QueuedCause,
    RunFinished,
    RunInterrupted,
    RunQueued,
)
from cogni.executor.v1.run_pb2 import Interrupt as InterruptMessage
from cogni.executor.v1.run_pb2 import RunError as RunErrorMessage
from cogni.executor.v1.run_pb2 import RunState as RunStateValue
from cogni.executor.v1.run_pb2 import WaitingReason as WaitingReasonValue
from cogni.type.v1.error_reason_pb2 import ErrorReason
from services.executor.audit import AuditKind, AuditOutcome, AuditRecord
from services.executor.events import Draft
from services.executor.runner.journal import Holding, Journal, LeaseLostError
from services.executor.runner.rendering import value_of
from services.executor.runs import (
    Interrupt,
    Run,
    RunError,
    RunState,
    WaitingReason,
    ending_of,
)
from services.executor.store import audit, events, runs
from services.executor.store.events import Connection
from services.runtime.database import Database
from services.runtime.errors import ServiceError
from services.runtime.ids import new_id
from services.runtime.jsonvalues import Json

_log = logging.getLogger(__name__)

#: The lease is long gone after so many tries, and another runner has the run.
_TRIES_MAX = 30
_PAUSE_SECONDS = 1.0


@dataclass(frozen=True)
class Finished:
    """The run is over."""

    state: RunState
    output: Json = None
    error: RunError | None = None


@dataclass(frozen=True)
class Waiting:
    """The run stands still until somebody answers."""

    questions: Sequence["Asking"]


@dataclass(frozen=True)
class Asking:
    """One question that the run waits with."""

    interrupt_id: str
    node: str
    payload: Json
    reason: WaitingReason = WaitingReason.INTERRUPT
    invocation_id: str | None = None
    tool: str | None = None


@dataclass(frozen=True)
class HandedOver:
    """The process ends in good order, and another one goes on with the run."""


Ending = Finished | Waiting | HandedOver


class _NotPossibleError(Exception):
    """Raised to roll back an ending that the run's state does not allow any more."""


async def end(database: Database, journal: Journal, holding: Holding, ending: Ending) -> None:
    """Bring the run into the state it ends the attempt in, after all that the attempt wrote.

    Tries again while the database cannot be reached. Raises LeaseLostError when the run is
    somebody else's by then.
    """
    await journal.flush(holding)
    for attempt in range(1, _TRIES_MAX + 1):
        try:
            async with database.raw_tenant(holding.tenant_id) as tx:
                await _end(tx, holding, ending)
            return
        except _NotPossibleError:
            _log.warning("run %s can no longer end as %s", holding.run_id, type(ending).__name__)
            return
        except (ServiceError, OSError):
            if attempt == _TRIES_MAX:
                raise
            await asyncio.sleep(_PAUSE_SECONDS)


async def _end(tx: Connection, holding: Holding, ending: Ending) -> None:
    place = await events.take_fenced(tx, holding.run_id, holding.epoch, 1)
    if place is None:
        raise LeaseLostError(holding.run_id)
    run = await runs.get(tx, holding.run_id, lock=True)
    if run is not None and run.cancellation is not None and not isinstance(ending, Finished):
        # Whoever asked for the run to stop shall not find it waiting, or in the queue again.
        state, error = ending_of(run.cancellation.reason)
        ending = Finished(state, error=error)
    match ending:
        case Finished():
            draft = Draft(_finished(ending))
            done = await runs.finish(
                tx,
                holding.run_id,
                ending.state,
                output_json=json.dumps(ending.output)
                if ending.state is RunState.SUCCEEDED
                else None,
                error=ending.error,
            )
        case Waiting():
            asked = [_interrupt(each, place.time) for each in ending.questions]
            draft = Draft(RunInterrupted(interrupts=[_message(each) for each in asked]))
            reason = asked[0].reason
            done = await runs.wait(tx, holding.run_id, holding.tenant_id, reason, asked)
        case HandedOver():
            draft = Draft(RunQueued(cause=QueuedCause.QUEUED_CAUSE_HANDED_OVER))
            done = await runs.queue(tx, holding.run_id, "HANDED_OVER")
    if not done:
        raise _NotPossibleError
    newest = await events.insert(
        tx, holding.run_id, holding.tenant_id, holding.attempt, place, [draft]
    )
    if isinstance(ending, Finished) and run is not None:
        await audit.write(tx, holding.tenant_id, _outcome(run, holding, ending, newest))
    await events.notify(tx, [(holding.run_id, newest)])


def _outcome(run: Run, holding: Holding, ending: Finished, event_seq: int) -> AuditRecord:
    succeeded = ending.state is RunState.SUCCEEDED
    return AuditRecord(
        audit_record_id=new_id(),
        kind=AuditKind.OUTCOME,
        action="run.finish",
        actor=f"run:{holding.run_id}",
        run_id=holding.run_id,
        attempt=holding.attempt,
        grant_id=run.grant_id,
        outcome=AuditOutcome.SUCCEEDED if succeeded else AuditOutcome.FAILED,
        reason=ending.error.reason if ending.error else None,
        event_seq=event_seq,
        details={"state": ending.state},
        trace_id=run.trace_id or None,
    )


def _finished(ending: Finished) -> RunFinished:
    event = RunFinished(state=RunStateValue.Value(f"RUN_STATE_{ending.state}"))
    if ending.state is RunState.SUCCEEDED:
        event.output.CopyFrom(value_of(ending.output))
    if ending.error is not None:
        event.error.CopyFrom(
            RunErrorMessage(
                reason=ErrorReason.Value(f"ERROR_REASON_{ending.error.reason}"),
                message=ending.error.message,
                node=ending.error.node,
                type=ending.error.type,
            )
        )
    return event


def _interrupt(asked: Asking, now: datetime) -> Interrupt:
    return Interrupt(
        interrupt_id=asked.interrupt_id,
        reason=asked.reason,
        node=asked.node,
        payload=asked.payload,
        create_time=now,
        invocation_id=asked.invocation_id,
        tool=asked.tool,
    )


def _message(asked: Interrupt) -> InterruptMessage:
    message = InterruptMessage(
        interrupt_id=asked.interrupt_id,
        reason=WaitingReasonValue.Value(f"WAITING_REASON_{asked.reason}"),
        node=asked.node,
        payload=value_of(asked.payload),
        invocation_id=asked.invocation_id or "",
        tool=asked.tool or "",
    )
    message.create_time.FromDatetime(asked.create_time)
    return message
