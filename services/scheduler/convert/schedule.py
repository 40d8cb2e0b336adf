"""A schedule and its run template between protobuf and the domain."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from cogni.scheduler.v1 import schedule_pb2 as pb
from cogni.type.v1.amount_pb2 import Amount
from services.runtime.jsonvalues import from_struct, to_struct
from services.scheduler.convert.spec import spec_from_proto, spec_to_proto
from services.scheduler.convert.wire import (
    enum_member,
    enum_value,
    from_duration,
    to_duration,
    to_timestamp,
)
from services.scheduler.schedules import (
    CATCH_UP_COUNT_DEFAULT,
    CATCH_UP_WINDOW_DEFAULT,
    CatchUpMode,
    CatchUpPolicy,
    OverlapPolicy,
    RunLimits,
    RunTemplate,
    Schedule,
    ScheduleState,
    Settings,
    StateReason,
)

UPDATABLE = (
    "display_name",
    "description",
    "labels",
    "spec",
    "run",
    "run.graph_id",
    "run.grant_id",
    "run.input",
    "run.labels",
    "run.context",
    "run.revision",
    "run.limits",
    "overlap_policy",
    "catch_up",
    "remaining_actions",
    "pause_on_failure",
)


def settings_from_proto(message: pb.Schedule) -> Settings:
    """What a person decided, defaults filled in, of a message that the rules have passed."""
    return Settings(
        display_name=message.display_name,
        description=message.description,
        labels=dict(message.labels),
        spec=spec_from_proto(message.spec),
        run=run_from_proto(message.run),
        overlap_policy=overlap_from_proto(message.overlap_policy) or OverlapPolicy.SKIP,
        catch_up=_catch_up(message.catch_up),
        remaining_actions=(
            message.remaining_actions if message.HasField("remaining_actions") else None
        ),
        pause_on_failure=message.pause_on_failure,
    )


def updated_settings(old: Settings, message: pb.Schedule, paths: list[str]) -> Settings:
    """The settings with the named fields taken from the message."""
    changes: dict[str, Any] = {}
    run_changes: dict[str, Any] = {}
    run = old.run
    for path in paths:
        field, _, inner = path.partition(".")
        if inner:
            run_changes[inner] = getattr(run_from_proto(message.run), inner)
        elif field == "run":
            run = run_from_proto(message.run)
        elif field == "spec":
            changes["spec"] = spec_from_proto(message.spec)
        else:
            changes[field] = _field(message, field)
    return replace(old, run=replace(run, **run_changes), **changes)


def schedule_to_proto(schedule: Schedule) -> pb.Schedule:
    """The message of a schedule."""
    settings, counts = schedule.settings, schedule.counts
    return pb.Schedule(
        schedule_id=schedule.schedule_id,
        display_name=settings.display_name,
        description=settings.description,
        labels=settings.labels,
        spec=spec_to_proto(settings.spec),
        run=run_to_proto(settings.run),
        overlap_policy=overlap_to_proto(settings.overlap_policy),
        catch_up=pb.CatchUpPolicy(
            mode=enum_value(pb.CatchUpMode, "CATCH_UP_MODE", settings.catch_up.mode),
            window=to_duration(settings.catch_up.window),
            max_count=settings.catch_up.max_count,
        ),
        remaining_actions=settings.remaining_actions,
        pause_on_failure=settings.pause_on_failure,
        state=enum_value(pb.ScheduleState, "SCHEDULE_STATE", schedule.state),
        state_reason=_state_reason(schedule.state_reason),
        state_note=schedule.state_note,
        state_time=to_timestamp(schedule.state_time),
        next_slot_time=to_timestamp(schedule.next_slot_time),
        next_fire_time=to_timestamp(schedule.next_fire_time),
        last_slot_time=to_timestamp(schedule.last_slot_time),
        tzdata_version=schedule.tzdata_version,
        counts=pb.ScheduleCounts(
            started=counts.started,
            skipped=counts.skipped,
            missed=counts.missed,
            failed=counts.failed,
            buffered=counts.buffered,
        ),
        creator=schedule.creator,
        create_time=to_timestamp(schedule.create_time),
        update_time=to_timestamp(schedule.update_time),
        etag=schedule.etag,
    )


def run_from_proto(message: pb.RunTemplate) -> RunTemplate:
    """The run template."""
    return RunTemplate(
        graph_id=message.graph_id,
        grant_id=message.grant_id,
        input=from_struct(message.input),
        labels=dict(message.labels),
        context=from_struct(message.context),
        revision=message.revision,
        limits=_limits(message.limits),
    )


def run_to_proto(run: RunTemplate) -> pb.RunTemplate:
    """The message of a run template."""
    limits = run.limits
    cost = None
    if limits.max_cost_asset is not None:
        cost = Amount(asset=limits.max_cost_asset, value=limits.max_cost_value or "")
    return pb.RunTemplate(
        graph_id=run.graph_id,
        grant_id=run.grant_id,
        input=to_struct(run.input),
        labels=run.labels,
        context=to_struct(run.context) if run.context else None,
        revision=run.revision,
        limits=pb.RunLimits(
            max_attempts=limits.max_attempts,
            timeout=to_duration(limits.timeout),
            max_steps=limits.max_steps,
            max_cost=cost,
        ),
    )


def overlap_from_proto(number: int) -> OverlapPolicy | None:
    """The overlap policy of a number; None when it was not given."""
    return enum_member(pb.OverlapPolicy, "OVERLAP_POLICY", number, OverlapPolicy)


def overlap_to_proto(policy: OverlapPolicy) -> pb.OverlapPolicy.ValueType:
    """The number of an overlap policy."""
    number: pb.OverlapPolicy.ValueType = enum_value(pb.OverlapPolicy, "OVERLAP_POLICY", policy)
    return number


def catch_up_mode_from_proto(number: int) -> CatchUpMode | None:
    """The catch-up mode of a number; None when it was not given."""
    return enum_member(pb.CatchUpMode, "CATCH_UP_MODE", number, CatchUpMode)


def states_from_proto(numbers: Iterable[int]) -> tuple[ScheduleState, ...]:
    """The states that a list asks for."""
    members = (
        enum_member(pb.ScheduleState, "SCHEDULE_STATE", number, ScheduleState) for number in numbers
    )
    return tuple(member for member in members if member is not None)


def _field(message: pb.Schedule, field: str) -> object:
    match field:
        case "labels":
            return dict(message.labels)
        case "overlap_policy":
            return overlap_from_proto(message.overlap_policy) or OverlapPolicy.SKIP
        case "catch_up":
            return _catch_up(message.catch_up)
        case "remaining_actions":
            return message.remaining_actions if message.HasField("remaining_actions") else None
        case _:
            return getattr(message, field)


def _catch_up(message: pb.CatchUpPolicy) -> CatchUpPolicy:
    has_window = message.HasField("window")
    return CatchUpPolicy(
        mode=catch_up_mode_from_proto(message.mode) or CatchUpMode.COALESCE,
        window=from_duration(message.window) if has_window else CATCH_UP_WINDOW_DEFAULT,
        max_count=message.max_count or CATCH_UP_COUNT_DEFAULT,
    )


def _limits(message: pb.RunLimits) -> RunLimits:
    has_cost = message.HasField("max_cost")
    return RunLimits(
        max_attempts=message.max_attempts if message.HasField("max_attempts") else None,
        timeout=from_duration(message.timeout) if message.HasField("timeout") else None,
        max_steps=message.max_steps if message.HasField("max_steps") else None,
        max_cost_asset=message.max_cost.asset if has_cost else None,
        max_cost_value=message.max_cost.value if has_cost else None,
    )


def _state_reason(reason: StateReason) -> pb.StateReason.ValueType:
    # Creation is no event to the caller: the contract leaves the reason unspecified.
    known = None if reason is StateReason.CREATED else reason
    number: pb.StateReason.ValueType = enum_value(pb.StateReason, "STATE_REASON", known)
    return number
