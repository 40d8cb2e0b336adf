"""Keeps runs: creates them once per request, changes their state, reads one or many."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg

from services.executor.amounts import Amount
from services.executor.runs import (
    FINAL,
    Cancellation,
    Interrupt,
    Run,
    RunError,
    RunRequest,
    RunState,
    RunUsage,
    WaitingReason,
    sources_of,
)
from services.executor.store.events import Connection
from services.executor.store.rows import interrupt_of, run_of

_CLAIM_KEY = """
INSERT INTO run_keys (tenant_id, request_id, content_hash, run_id, create_time)
VALUES ($1, $2, $3, $4, cogni_now()) ON CONFLICT DO NOTHING RETURNING cogni_now() AS time
"""
# A repeat of a busy caller: one round trip, and the run may be gone while its key stays.
_EARLIER = """
SELECT run_keys.content_hash, run_keys.run_id AS used_run_id, runs.*,
    run_leases.next_seq - 1 AS last_seq
FROM run_keys
    LEFT JOIN runs ON runs.run_id = run_keys.run_id
    LEFT JOIN run_leases ON run_leases.run_id = run_keys.run_id
WHERE run_keys.tenant_id = $1 AND run_keys.request_id = $2
"""

# One statement, so that no run can be seen without its lease and its first event.
_CREATE = """
WITH run AS (
    INSERT INTO runs (run_id, tenant_id, graph_id, revision, thread_id, grant_id, owner, state,
        input, context, replayed_run_id, schedule_id, scheduled_time, slot_id, trigger_id,
        delivery_id, max_attempts, timeout, max_steps, durability, max_cost_asset,
        max_cost_value, labels, traceparent, create_time, update_time)
    VALUES ($1, $2, $3, $4, $5, $6, $7, 'QUEUED', $8, $9, $10, $11, $12, $13, $14, $15, $16, $17,
        $18, $19, $20, $21, $22, $23, $24, $24)
), lease AS (
    INSERT INTO run_leases (run_id, tenant_id, next_seq, ready_time, queued_cause)
    VALUES ($1, $2, 2, $24, 'STARTED')
)
INSERT INTO run_events (run_id, tenant_id, seq, attempt, type, payload)
VALUES ($1, $2, 1, 0, $25, $26)
"""
_GET = """
SELECT runs.*, run_leases.next_seq - 1 AS last_seq
FROM runs JOIN run_leases USING (run_id) WHERE run_id = $1
"""
_THREAD = """
SELECT run_id, owner, graph_id, state FROM runs WHERE thread_id = $1 ORDER BY run_id DESC LIMIT 1
"""
_INTERRUPTS = """
SELECT * FROM interrupts WHERE run_id = $1 AND answer_time IS NULL
ORDER BY create_time, interrupt_id
"""
_FINISH = """
UPDATE runs SET state = $2, output = $3, error_reason = $4, error_message = $5, error_node = $6,
    error_type = $7, waiting_reason = NULL, finish_time = cogni_now(), update_time = cogni_now()
WHERE run_id = $1 AND state = ANY ($8)
"""
_SEAL = """
UPDATE run_leases SET sealed = true, holder = NULL, expire_time = NULL, ready_time = NULL
WHERE run_id = $1
"""
_WAIT = """
UPDATE runs SET state = 'WAITING', waiting_reason = $2, update_time = cogni_now()
WHERE run_id = $1 AND state = ANY ($3)
"""
_RELEASE = "UPDATE run_leases SET holder = NULL, expire_time = NULL WHERE run_id = $1"
_ASK = """
INSERT INTO interrupts (run_id, interrupt_id, tenant_id, reason, node, payload, invocation_id,
    tool, create_time)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT (run_id, interrupt_id) DO NOTHING
"""
_QUEUE = """
UPDATE runs SET state = 'QUEUED', waiting_reason = NULL, update_time = cogni_now()
WHERE run_id = $1 AND state = ANY ($2)
"""
_MAKE_READY = """
UPDATE run_leases SET holder = NULL, expire_time = NULL, ready_time = cogni_now(),
    queued_cause = $2
WHERE run_id = $1
"""
_REQUEST_CANCEL = """
UPDATE runs SET cancel_request_time = cogni_now(), cancel_reason = $2, cancel_comment = $3,
    canceller = $4, update_time = cogni_now()
WHERE run_id = $1 AND cancel_request_time IS NULL
"""
# A run without an account has no units: its tools are counted by what was sent.
_USAGE = """
SELECT count(*) FILTER (WHERE kind = 'LLM_CALL') AS model_calls,
    greatest(count(*) FILTER (WHERE kind = 'TOOL_CALL'), (SELECT count(*) FROM invocations
        WHERE run_id = $1 AND sent_time IS NOT NULL)) AS tool_calls,
    count(*) FILTER (WHERE state = 'PENDING') AS pending_units,
    coalesce(bool_or(estimated), false) AS estimated,
    coalesce(sum((actual->>'input_tokens')::bigint), 0)::bigint AS input_tokens,
    coalesce(sum((actual->>'output_tokens')::bigint), 0)::bigint AS output_tokens
FROM usage_units WHERE run_id = $1 AND NOT corrected
"""
# What only the Ledger can price costs what it charged.
_COSTS = """
SELECT coalesce(cost_asset, charge_asset) AS asset,
    sum(coalesce(cost_value, charge_value)) AS value
FROM usage_units
WHERE run_id = $1 AND coalesce(cost_asset, charge_asset) IS NOT NULL AND NOT corrected
GROUP BY 1 ORDER BY 1
"""


class ThreadBusyError(Exception):
    """Raised when the thread of a new run has a run that is not final."""


@dataclass(frozen=True)
class KeyUse:
    """What a request_id was used for before."""

    content_hash: bytes
    run_id: str
    run: Run | None


@dataclass(frozen=True)
class ThreadHead:
    """The newest run of a thread."""

    run_id: str
    owner: str
    graph_id: str
    state: RunState


async def claim_key(
    tx: Connection, tenant_id: str, request_id: str, content_hash: bytes, run_id: str
) -> datetime | None:
    """Bind the request_id to the run for ever; returns the time, None when it was bound before.

    Waits for a concurrent transaction that is binding it.
    """
    time: datetime | None = await tx.fetchval(
        _CLAIM_KEY, tenant_id, request_id, content_hash, run_id
    )
    return time


async def key_use(tx: Connection, tenant_id: str, request_id: str) -> KeyUse | None:
    """Return what the request_id was used for, None when it was not; `run` may be gone."""
    row = await tx.fetchrow(_EARLIER, tenant_id, request_id)
    if row is None:
        return None
    run = None if row["state"] is None else run_of(row, whole=True)
    return KeyUse(row["content_hash"], str(row["used_run_id"]), run)


async def create(
    tx: Connection,
    run: Run,
    request: RunRequest,
    first_event: tuple[str, bytes],
) -> None:
    """Write a QUEUED run, its lease, ready to be claimed, and its first event.

    Raises ThreadBusyError when another run of the thread is not final.
    """
    origin, options = request.origin, request.options
    try:
        await tx.execute(
            _CREATE,
            run.run_id,
            run.tenant_id,
            run.graph_id,
            run.revision,
            run.thread_id,
            run.grant_id,
            run.owner,
            json.dumps(request.input),
            json.dumps(request.context),
            run.replayed_run_id,
            origin.schedule_id,
            origin.scheduled_time,
            origin.slot_id,
            origin.trigger_id,
            origin.delivery_id,
            options.max_attempts,
            options.timeout,
            options.max_steps,
            options.durability,
            options.max_cost.asset if options.max_cost else None,
            options.max_cost.value if options.max_cost else None,
            json.dumps(request.labels),
            run.traceparent,
            run.create_time,
            *first_event,
        )
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name == "runs_one_active_per_thread":
            raise ThreadBusyError from error
        raise


async def get(tx: Connection, run_id: str, *, lock: bool = False) -> Run | None:
    """Return the run, None when the tenant has none such.

    `lock` keeps its state as it is until the transaction ends; take the run's place in the event
    log first, since that is the order in which everybody locks.
    """
    row = await tx.fetchrow(_GET + (" FOR UPDATE OF runs" if lock else ""), run_id)
    return None if row is None else run_of(row, whole=True)


async def details(tx: Connection, run: Run) -> Run:
    """Return the run with its open interrupts and its usage so far."""
    interrupts = tuple(map(interrupt_of, await tx.fetch(_INTERRUPTS, run.run_id)))
    counts = await tx.fetchrow(_USAGE, run.run_id)
    costs = await tx.fetch(_COSTS, run.run_id)
    return run.with_details(interrupts, _usage(counts, costs))


async def thread_head(tx: Connection, thread_id: str) -> ThreadHead | None:
    """Return the newest run of a thread, None when the tenant has no such thread."""
    row = await tx.fetchrow(_THREAD, thread_id)
    if row is None:
        return None
    return ThreadHead(str(row["run_id"]), row["owner"], row["graph_id"], RunState(row["state"]))


async def finish(
    tx: Connection,
    run_id: str,
    state: RunState,
    *,
    output_json: str | None = None,
    error: RunError | None = None,
) -> bool:
    """Bring the run into a final state and seal its log; False when it may not come there.

    The caller has appended the final event in the same transaction, and rolls back on False.
    `output_json` is for SUCCEEDED alone, `error` for the others.
    """
    assert state in FINAL, "other states have statements of their own"
    error = error or RunError("", "")
    changed = await tx.execute(
        _FINISH,
        run_id,
        state,
        output_json,
        error.reason or None,
        error.message or None,
        error.node or None,
        error.type or None,
        sources_of(state),
    )
    await tx.execute(_SEAL, run_id)
    return _count(changed) == 1


async def wait(
    tx: Connection,
    run_id: str,
    tenant_id: str,
    reason: WaitingReason,
    interrupts: Sequence[Interrupt],
) -> bool:
    """Let the run wait for answers and give its lease back; False when it may not wait.

    The caller has appended the event in the same transaction, and rolls back on False.
    """
    changed = await tx.execute(_WAIT, run_id, reason, sources_of(RunState.WAITING))
    await tx.execute(_RELEASE, run_id)
    await tx.executemany(
        _ASK,
        [
            (
                run_id,
                each.interrupt_id,
                tenant_id,
                each.reason,
                each.node,
                json.dumps(each.payload),
                each.invocation_id,
                each.tool,
                each.create_time,
            )
            for each in interrupts
        ],
    )
    return _count(changed) == 1


async def queue(tx: Connection, run_id: str, cause: str) -> bool:
    """Put the run back into the queue ("RESUMED" or "HANDED_OVER"); False when it may not go.

    The caller has appended the event in the same transaction, and rolls back on False.
    """
    changed = await tx.execute(_QUEUE, run_id, sources_of(RunState.QUEUED))
    await tx.execute(_MAKE_READY, run_id, cause)
    return _count(changed) == 1


async def request_cancel(tx: Connection, run_id: str, cancellation: Cancellation) -> bool:
    """Note who asked for the run to be cancelled; False when somebody had before."""
    changed = await tx.execute(
        _REQUEST_CANCEL,
        run_id,
        cancellation.reason,
        cancellation.comment,
        cancellation.requester,
    )
    return _count(changed) == 1


def _usage(counts: Any, costs: Sequence[Any]) -> RunUsage:
    return RunUsage(
        **dict(counts), costs=tuple(Amount(row["asset"], row["value"]) for row in costs)
    )


def _count(command_tag: str) -> int:
    return int(command_tag.rsplit(" ", 1)[-1])
