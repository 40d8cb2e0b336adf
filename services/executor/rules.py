"""What every request of the Executor must satisfy before its handler sees it."""

import math
from collections.abc import Iterator
from datetime import timedelta

from cogni.executor.v1 import executor_service_pb2 as executor
from cogni.executor.v1 import grant_service_pb2 as grants
from cogni.executor.v1 import run_pb2
from cogni.executor.v1 import runner_service_pb2 as runner
from cogni.executor.v1.grant_pb2 import ArgumentConstraint, ToolPermission
from services.executor.grants import GRAPH_PREFIX
from services.executor.graphs import GRAPH_ID, GRAPH_ID_LENGTH_MAX
from services.runtime.errors import Violation
from services.runtime.validation import (
    Rule,
    RuleTable,
    amount,
    custom,
    duration,
    each,
    enum_known,
    enum_set,
    integer,
    items,
    keys,
    nested,
    one_of_set,
    page,
    required,
    struct,
    text,
    timestamp,
    uuid,
)

NAME_LENGTH_MAX = 200
COMMENT_LENGTH_MAX = 1000
CURSOR_LENGTH_MAX = 1024
INPUT_BYTES_MAX = 1024 * 1024
CONTEXT_BYTES_MAX = 64 * 1024
LABELS_MAX = 64
GRAPHS_MAX = 100
TOOLS_MAX = 200
CONSTRAINTS_MAX = 50
CONNECTIONS_MAX = 100
WATCHED_RUNS_MAX = 100


def _id(field: str) -> tuple[Rule, ...]:
    return (required(field), uuid(field))


def _labels() -> tuple[Rule, ...]:
    return (
        items("labels", max_items=LABELS_MAX),
        keys("labels", text(max_length=63, min_length=1)),
        each("labels", text(max_length=255)),
    )


def _name(field: str, pattern: str | None = None) -> Rule:
    return text(field, max_length=NAME_LENGTH_MAX, pattern=pattern)


def _settable_reason(request: executor.CancelRunRequest) -> Iterator[Violation]:
    ours = (
        run_pb2.CANCEL_REASON_GRANT_REVOKED,
        run_pb2.CANCEL_REASON_GRANT_EXPIRED,
        run_pb2.CANCEL_REASON_TIMEOUT,
    )
    if request.reason in ours:
        name = run_pb2.CancelReason.Name(request.reason)
        yield Violation("reason", f"{name} is set by the Executor only")


def _news_without_cursor(
    request: executor.WatchRunsRequest | grants.WatchGrantsRequest,
) -> Iterator[Violation]:
    if request.cursor and request.from_now:
        yield Violation("from_now", "cannot be combined with a cursor")


def _distinct_tools(request: grants.CreateGrantRequest) -> Iterator[Violation]:
    seen: set[str] = set()
    for index, permission in enumerate(request.tools):
        if permission.tool in seen:
            yield Violation(f"tools[{index}].tool", f"{permission.tool!r} is named twice")
        seen.add(permission.tool)


def _distinct_paths(permission: ToolPermission) -> Iterator[Violation]:
    for index, constraint in enumerate(permission.arguments):
        if not constraint.path or any(not name for name in constraint.path.split(".")):
            yield Violation(f"arguments[{index}].path", "must be names joined by dots")


def _sound_rule(constraint: ArgumentConstraint) -> Iterator[Violation]:
    bounds = constraint.range
    for name in ("min", "max"):
        if bounds.HasField(name) and not math.isfinite(getattr(bounds, name)):
            yield Violation(f"range.{name}", "must be a finite number")
    both = bounds.HasField("min") and bounds.HasField("max")
    if both and not bounds.min <= bounds.max:
        yield Violation("range", "min must not be greater than max")
    if constraint.WhichOneof("rule") == "max_length" and constraint.max_length < 0:
        yield Violation("max_length", "must not be negative")
    if constraint.WhichOneof("rule") == "one_of" and not constraint.one_of.values:
        yield Violation("one_of", "must list at least one value")


_OPTIONS = nested(
    "options",
    integer("max_attempts", min=1, max=20),
    duration("timeout", min=timedelta(seconds=1), max=timedelta(hours=24)),
    integer("max_steps", min=1, max=1000),
    enum_known("durability"),
    amount("max_cost", positive=True),
)
_ORIGIN = nested(
    "origin",
    nested(
        "schedule",
        required("schedule_id"),
        _name("schedule_id"),
        timestamp("scheduled_time"),
        _name("slot_id"),
    ),
    nested("trigger", required("trigger_id"), _name("trigger_id"), _name("delivery_id")),
)
_CONSTRAINT: tuple[Rule, ...] = (
    required("path"),
    _name("path"),
    struct("equals", max_bytes=64 * 1024),
    struct("one_of", max_bytes=64 * 1024),
    text("glob", max_length=1000),
    custom(_sound_rule),
)
_TOOL: tuple[Rule, ...] = (
    required("tool"),
    _name("tool"),
    items("arguments", max_items=CONSTRAINTS_MAX),
    each("arguments", *_CONSTRAINT),
    integer("max_invocations_per_run", min=0),
    enum_known("effect"),
    nested("mcp_tool", text("digest", max_length=64, pattern=r"([0-9a-f]{64})?")),
    custom(_distinct_paths),
)

RULES: RuleTable = {
    executor.StartRunRequest: (
        *_id("request_id"),
        required("graph_id"),
        text("graph_id", max_length=GRAPH_ID_LENGTH_MAX, pattern=GRAPH_ID),
        *_id("grant_id"),
        struct("input", max_bytes=INPUT_BYTES_MAX),
        uuid("thread_id"),
        _name("revision"),
        _OPTIONS,
        *_labels(),
        _ORIGIN,
        struct("context", max_bytes=CONTEXT_BYTES_MAX),
    ),
    executor.GetRunRequest: _id("run_id"),
    executor.ListRunsRequest: (
        *page(),
        enum_known("states"),
        _name("graph_id"),
        uuid("grant_id"),
        uuid("thread_id"),
        _name("schedule_id"),
        *_labels(),
        timestamp("min_create_time", stored=False),
        timestamp("max_create_time", stored=False),
    ),
    executor.WatchRunRequest: (*_id("run_id"), integer("after_seq", min=0)),
    executor.WatchRunsRequest: (
        text("cursor", max_length=CURSOR_LENGTH_MAX),
        enum_known("states"),
        _name("graph_id"),
        uuid("grant_id"),
        items("run_ids", max_items=WATCHED_RUNS_MAX),
        each("run_ids", uuid()),
        custom(_news_without_cursor),
    ),
    executor.CancelRunRequest: (
        *_id("run_id"),
        enum_known("reason"),
        text("comment", max_length=COMMENT_LENGTH_MAX),
        custom(_settable_reason),
    ),
    executor.ResumeRunRequest: (
        *_id("request_id"),
        *_id("run_id"),
        required("interrupt_id"),
        _name("interrupt_id"),
        one_of_set("answer"),
        struct("value", max_bytes=INPUT_BYTES_MAX),
        nested("verdict", enum_set("finding"), struct("output", max_bytes=INPUT_BYTES_MAX)),
    ),
    executor.ReplayRunRequest: (
        *_id("request_id"),
        *_id("run_id"),
        _name("checkpoint_id"),
        uuid("grant_id"),
        _name("revision"),
        enum_known("mode"),
        *_labels(),
    ),
    executor.DeleteRunRequest: _id("run_id"),
    executor.GetRunStateRequest: (*_id("run_id"), _name("checkpoint_id"), _name("namespace")),
    executor.ListCheckpointsRequest: (*_id("run_id"), *page()),
    executor.ListGraphsRequest: page(),
    executor.GetGraphRequest: (required("graph_id"), _name("graph_id"), _name("revision")),
    executor.ListAuditRecordsRequest: (
        *page(),
        uuid("run_id"),
        uuid("grant_id"),
        uuid("invocation_id"),
        enum_known("kinds"),
        _name("action"),
        enum_known("decision"),
        timestamp("min_create_time", stored=False),
        timestamp("max_create_time", stored=False),
    ),
    grants.CreateGrantRequest: (
        *_id("request_id"),
        _name("display_name"),
        items("graphs", min_items=1, max_items=GRAPHS_MAX),
        each("graphs", _name("", f"{GRAPH_PREFIX}{GRAPH_ID}")),
        items("tools", max_items=TOOLS_MAX),
        each("tools", *_TOOL),
        items("connection_ids", max_items=CONNECTIONS_MAX),
        each("connection_ids", text(max_length=NAME_LENGTH_MAX, min_length=1)),
        _name("account_id"),
        amount("budget", positive=True),
        timestamp("expire_time"),
        *_labels(),
        custom(_distinct_tools),
    ),
    grants.GetGrantRequest: _id("grant_id"),
    grants.ListGrantsRequest: (
        *page(),
        enum_known("states"),
        _name("owner"),
        _name("graph_id"),
        *_labels(),
    ),
    grants.RevokeGrantRequest: (*_id("grant_id"), text("comment", max_length=COMMENT_LENGTH_MAX)),
    grants.WatchGrantsRequest: (
        text("cursor", max_length=CURSOR_LENGTH_MAX),
        custom(_news_without_cursor),
    ),
    runner.MintRunTokenRequest: (*_id("run_id"), required("epoch"), integer("epoch", min=1)),
}
