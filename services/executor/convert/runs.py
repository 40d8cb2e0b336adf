"""Converts runs and what belongs to them into the contract's messages, and requests back."""

from datetime import timedelta

from google.protobuf.duration_pb2 import Duration

from cogni.executor.v1 import executor_service_pb2, run_pb2
from services.executor.convert import enums
from services.executor.convert.times import amount, amount_of, time_of, timestamp
from services.executor.runs import (
    Cancellation,
    Durability,
    Interrupt,
    Options,
    Origin,
    Run,
    RunChange,
    RunError,
    RunRequest,
    RunState,
    RunUsage,
    WaitingReason,
)
from services.runtime.jsonvalues import Json, from_struct, from_value, to_struct, to_value


def run_to_proto(run: Run, trace_url_template: str = "", *, whole: bool = True) -> run_pb2.Run:
    """Return the run as its reader sees it; without `whole`, as lists show it."""
    message = run_pb2.Run(
        run_id=run.run_id,
        tenant_id=run.tenant_id,
        graph_id=run.graph_id,
        revision=run.revision,
        thread_id=run.thread_id,
        grant_id=run.grant_id,
        owner=run.owner,
        state=enums.run_state(run.state),
        waiting_reason=enums.waiting_reason(run.waiting_reason),
        attempt=run.attempt,
        interrupts=[interrupt_to_proto(each) for each in run.interrupts],
        error=error_to_proto(run.error),
        replayed_run_id=run.replayed_run_id or "",
        origin=_origin_to_proto(run.origin),
        options=_options_to_proto(run.options),
        labels=run.labels,
        trace_id=run.trace_id,
        trace_url=_trace_url(trace_url_template, run.trace_id),
        create_time=timestamp(run.create_time),
        start_time=timestamp(run.start_time),
        finish_time=timestamp(run.finish_time),
        update_time=timestamp(run.update_time),
        last_seq=run.last_seq,
    )
    if run.cancellation:
        message.cancellation.CopyFrom(cancellation_to_proto(run.cancellation))
        message.cancel_request_time.FromDatetime(run.cancellation.time or run.update_time)
    if run.usage:
        message.usage.CopyFrom(_usage_to_proto(run.usage))
    if whole:
        message.input.CopyFrom(to_struct(run.input))
        message.context.CopyFrom(to_struct(run.context))
        if run.state is RunState.SUCCEEDED:
            message.output.CopyFrom(to_value(run.output))
    return message


def error_to_proto(error: RunError | None) -> run_pb2.RunError | None:
    """Return the contract's error; None stays unset."""
    if error is None:
        return None
    return run_pb2.RunError(
        reason=enums.error_reason(error.reason),
        message=error.message,
        node=error.node,
        type=error.type,
    )


def cancellation_to_proto(cancellation: Cancellation) -> run_pb2.Cancellation:
    """Return the contract's cancellation."""
    return run_pb2.Cancellation(
        reason=enums.cancel_reason(cancellation.reason),
        comment=cancellation.comment,
        requester=cancellation.requester,
    )


def interrupt_to_proto(interrupt: Interrupt) -> run_pb2.Interrupt:
    """Return the contract's interrupt."""
    return run_pb2.Interrupt(
        interrupt_id=interrupt.interrupt_id,
        reason=enums.waiting_reason(interrupt.reason),
        node=interrupt.node,
        payload=to_value(interrupt.payload),
        invocation_id=interrupt.invocation_id or "",
        tool=interrupt.tool or "",
        create_time=timestamp(interrupt.create_time),
        answer_time=timestamp(interrupt.answer_time),
    )


def change_to_proto(change: RunChange) -> run_pb2.RunChange:
    """Return the contract's change."""
    return run_pb2.RunChange(
        run_id=change.run_id,
        tenant_id=change.tenant_id,
        state=enums.run_state(change.state),
        waiting_reason=enums.waiting_reason(change.waiting_reason),
        attempt=change.attempt,
        graph_id=change.graph_id,
        grant_id=change.grant_id,
        thread_id=change.thread_id,
        origin=_origin_to_proto(change.origin),
        error=error_to_proto(change.error),
        change_time=timestamp(change.change_time),
    )


def run_request(sent: executor_service_pb2.StartRunRequest) -> RunRequest:
    """Return what a validated StartRunRequest asks for."""
    return RunRequest(
        graph_id=sent.graph_id,
        grant_id=sent.grant_id,
        input=from_struct(sent.input),
        context=from_struct(sent.context),
        thread_id=sent.thread_id or None,
        revision=sent.revision or None,
        options=_options(sent.options),
        labels=dict(sent.labels),
        origin=_origin(sent.origin),
    )


def answer_of(sent: executor_service_pb2.ResumeRunRequest) -> tuple[Json, WaitingReason]:
    """Return the answer of a validated request, and the kind of question it fits.

    A verdict becomes the object that the runner's guard understands.
    """
    if sent.WhichOneof("answer") == "value":
        return from_value(sent.value), WaitingReason.INTERRUPT
    happened = sent.verdict.finding == executor_service_pb2.INVOCATION_FINDING_HAPPENED
    verdict: dict[str, Json] = {
        "outcome": "happened" if happened else "did_not_happen",
        "output": from_value(sent.verdict.output) if sent.verdict.HasField("output") else None,
    }
    return verdict, WaitingReason.OUTCOME_UNKNOWN


def _options(sent: run_pb2.RunOptions) -> Options:
    default = Options()
    return Options(
        max_attempts=sent.max_attempts if sent.HasField("max_attempts") else default.max_attempts,
        timeout=sent.timeout.ToTimedelta() if sent.HasField("timeout") else default.timeout,
        max_steps=sent.max_steps if sent.HasField("max_steps") else default.max_steps,
        durability=enums.durability_of(sent.durability),
        max_cost=amount_of(sent.max_cost) if sent.HasField("max_cost") else None,
    )


def _options_to_proto(options: Options) -> run_pb2.RunOptions:
    return run_pb2.RunOptions(
        max_attempts=options.max_attempts,
        timeout=_duration(options.timeout),
        max_steps=options.max_steps,
        durability=enums.durability(Durability(options.durability)),
        max_cost=amount(options.max_cost),
    )


def _duration(span: timedelta) -> Duration:
    converted = Duration()
    converted.FromTimedelta(span)
    return converted


def _origin(sent: run_pb2.RunOrigin) -> Origin:
    match sent.WhichOneof("cause"):
        case "schedule":
            time = time_of(sent.schedule.scheduled_time)
            return Origin(
                schedule_id=sent.schedule.schedule_id,
                scheduled_time=time if sent.schedule.HasField("scheduled_time") else None,
                slot_id=sent.schedule.slot_id or None,
            )
        case "trigger":
            return Origin(
                trigger_id=sent.trigger.trigger_id, delivery_id=sent.trigger.delivery_id or None
            )
        case _:
            return Origin()


def _origin_to_proto(origin: Origin) -> run_pb2.RunOrigin | None:
    if origin.schedule_id is not None:
        return run_pb2.RunOrigin(
            schedule=run_pb2.ScheduleOrigin(
                schedule_id=origin.schedule_id,
                scheduled_time=timestamp(origin.scheduled_time),
                slot_id=origin.slot_id or "",
            )
        )
    if origin.trigger_id is not None:
        return run_pb2.RunOrigin(
            trigger=run_pb2.TriggerOrigin(
                trigger_id=origin.trigger_id, delivery_id=origin.delivery_id or ""
            )
        )
    return None


def _usage_to_proto(usage: RunUsage) -> run_pb2.RunUsage:
    return run_pb2.RunUsage(
        model_calls=usage.model_calls,
        tool_calls=usage.tool_calls,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        costs=[cost for each in usage.costs if (cost := amount(each))],
        pending_units=usage.pending_units,
        estimated=usage.estimated,
    )


def _trace_url(template: str, trace_id: str) -> str:
    return template.replace("{trace_id}", trace_id) if template and trace_id else ""
