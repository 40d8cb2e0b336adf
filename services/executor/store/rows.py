"""Turns rows into the domain's objects."""

import json
from collections.abc import Mapping
from typing import Any

from services.executor.amounts import Amount
from services.executor.runs import (
    Cancellation,
    CancelReason,
    Durability,
    Interrupt,
    Options,
    Origin,
    Run,
    RunError,
    RunState,
    WaitingReason,
)
from services.runtime.jsonvalues import Json

Row = Mapping[str, Any]


def json_of(value: Any) -> Any:
    """Return a json column's value: asyncpg gives text, SQLAlchemy gives what it means."""
    return json.loads(value) if isinstance(value, str) else value


def text_of(value: Any) -> str | None:
    """Return an id column as text, None when it is null."""
    return None if value is None else str(value)


def run_of(row: Row, *, whole: bool) -> Run:
    """Return the run of a row of `runs` joined with `last_seq`; `whole` adds the big columns."""
    big: dict[str, Json] = {}
    if whole:
        big = {name: json_of(row[name]) for name in ("input", "context")}
        big["output"] = _output(row["output"])
    reason = row["waiting_reason"]
    return Run(
        run_id=str(row["run_id"]),
        tenant_id=row["tenant_id"],
        graph_id=row["graph_id"],
        revision=row["revision"],
        thread_id=str(row["thread_id"]),
        grant_id=str(row["grant_id"]),
        owner=row["owner"],
        state=RunState(row["state"]),
        attempt=row["attempt"],
        options=_options(row),
        origin=origin_of(row),
        labels=json_of(row["labels"]),
        create_time=row["create_time"],
        update_time=row["update_time"],
        waiting_reason=None if reason is None else WaitingReason(reason),
        error=error_of(row),
        cancellation=_cancellation(row),
        replayed_run_id=text_of(row["replayed_run_id"]),
        traceparent=row["traceparent"],
        start_time=row["start_time"],
        finish_time=row["finish_time"],
        events_expire_time=row["events_expire_time"],
        last_seq=row["last_seq"],
        **big,  # type: ignore[arg-type]
    )


def _output(value: Any) -> Any:
    # A JSON output may itself be a text, so its type does not tell whether it is still encoded.
    return None if value is None else json.loads(value)


def _options(row: Row) -> Options:
    return Options(
        max_attempts=row["max_attempts"],
        timeout=row["timeout"],
        max_steps=row["max_steps"],
        durability=Durability(row["durability"]),
        max_cost=Amount.of(row["max_cost_asset"], row["max_cost_value"]),
    )


def origin_of(row: Row) -> Origin:
    """Return what started the run of a row of `runs` or `run_changes`."""
    return Origin(
        schedule_id=row["schedule_id"],
        scheduled_time=row["scheduled_time"],
        slot_id=row["slot_id"],
        trigger_id=row["trigger_id"],
        delivery_id=row["delivery_id"],
    )


def error_of(row: Row) -> RunError | None:
    """Return why the run of a row of `runs` did not succeed."""
    if row["error_reason"] is None:
        return None
    return RunError(
        reason=row["error_reason"],
        message=row["error_message"] or "",
        node=row.get("error_node") or "",
        type=row.get("error_type") or "",
    )


def _cancellation(row: Row) -> Cancellation | None:
    if row["cancel_request_time"] is None:
        return None
    return Cancellation(
        reason=CancelReason(row["cancel_reason"]),
        comment=row["cancel_comment"] or "",
        requester=row["canceller"] or "",
        time=row["cancel_request_time"],
    )


def interrupt_of(row: Row) -> Interrupt:
    """Return the interrupt of a row of `interrupts`."""
    return Interrupt(
        interrupt_id=row["interrupt_id"],
        reason=WaitingReason(row["reason"]),
        node=row["node"],
        payload=json.loads(row["payload"]),
        create_time=row["create_time"],
        invocation_id=text_of(row["invocation_id"]),
        tool=row["tool"],
        answer_time=row["answer_time"],
    )
