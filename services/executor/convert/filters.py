"""Converts the filters of list and watch requests."""

from datetime import datetime

from google.protobuf.message import Message

from cogni.executor.v1 import executor_service_pb2, grant_service_pb2
from cogni.executor.v1.audit_record_pb2 import AUDIT_DECISION_ALLOWED
from services.executor.convert import enums
from services.executor.convert.times import time_of
from services.executor.store.audit import AuditFilter
from services.executor.store.changes import RunChangeFilter
from services.executor.store.grants import GrantFilter
from services.executor.store.run_lists import RunFilter


def run_filter(sent: executor_service_pb2.ListRunsRequest) -> RunFilter:
    """Return the filter of a validated request."""
    return RunFilter(
        states=tuple(enums.run_state_of(state) for state in sent.states),
        graph_id=sent.graph_id,
        grant_id=sent.grant_id,
        thread_id=sent.thread_id,
        schedule_id=sent.schedule_id,
        labels=dict(sent.labels),
        min_create_time=_time(sent, "min_create_time"),
        max_create_time=_time(sent, "max_create_time"),
    )


def run_change_filter(sent: executor_service_pb2.WatchRunsRequest) -> RunChangeFilter:
    """Return the filter of a validated request."""
    return RunChangeFilter(
        states=tuple(enums.run_state_of(state) for state in sent.states),
        graph_id=sent.graph_id,
        grant_id=sent.grant_id,
        run_ids=tuple(sent.run_ids),
    )


def grant_filter(sent: grant_service_pb2.ListGrantsRequest) -> GrantFilter:
    """Return the filter of a validated request."""
    return GrantFilter(
        states=tuple(enums.grant_state_of(state) for state in sent.states),
        owner=sent.owner,
        graph_id=sent.graph_id,
        labels=dict(sent.labels),
    )


def audit_filter(sent: executor_service_pb2.ListAuditRecordsRequest) -> AuditFilter:
    """Return the filter of a validated request."""
    return AuditFilter(
        run_id=sent.run_id,
        grant_id=sent.grant_id,
        invocation_id=sent.invocation_id,
        action=sent.action,
        kinds=tuple(enums.audit_kind_of(kind) for kind in sent.kinds),
        allowed=sent.decision == AUDIT_DECISION_ALLOWED if sent.decision else None,
        min_create_time=_time(sent, "min_create_time"),
        max_create_time=_time(sent, "max_create_time"),
    )


def _time(sent: Message, field: str) -> datetime | None:
    return time_of(getattr(sent, field)) if sent.HasField(field) else None
