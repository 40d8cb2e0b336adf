"""The tables that lists and streams select from, as the migrations make them.

The other statements are written by hand in `store/`; the migrations say what the tables mean.
"""

from sqlalchemy import (
    ARRAY,
    JSON,
    UUID,
    BigInteger,
    Column,
    DateTime,
    Integer,
    Interval,
    LargeBinary,
    MetaData,
    Numeric,
    Table,
    Text,
)
from sqlalchemy.dialects.postgresql import JSONB

from services.runtime.cursor import cursor_columns

metadata = MetaData()


def _id(name: str, *, key: bool = False) -> Column[str]:
    return Column(name, UUID(as_uuid=False), primary_key=key)


def _text(*names: str) -> list[Column[str]]:
    return [Column(name, Text) for name in names]


def _time(*names: str) -> list[Column[object]]:
    return [Column(name, DateTime(timezone=True)) for name in names]


runs = Table(
    "runs",
    metadata,
    _id("run_id", key=True),
    *_text("tenant_id", "graph_id", "revision"),
    _id("thread_id"),
    _id("grant_id"),
    *_text("owner", "state", "waiting_reason"),
    Column("attempt", Integer),
    *[Column(name, JSON) for name in ("input", "context", "output")],
    *_text("error_reason", "error_message", "error_node", "error_type"),
    _id("replayed_run_id"),
    *_text("schedule_id", "slot_id", "trigger_id", "delivery_id"),
    *_time("scheduled_time"),
    Column("max_attempts", Integer),
    Column("timeout", Interval),
    Column("max_steps", Integer),
    *_text("durability", "max_cost_asset"),
    Column("max_cost_value", Numeric),
    Column("labels", JSONB),
    *_text("traceparent"),
    *_time("create_time", "start_time", "finish_time", "update_time", "cancel_request_time"),
    *_text("cancel_reason", "cancel_comment", "canceller"),
    *_time("events_expire_time", "close_time"),
    Column("close_version", Integer),
)

run_changes = Table(
    "run_changes",
    metadata,
    *cursor_columns(),
    *_text("tenant_id"),
    _id("run_id"),
    *_text("graph_id"),
    _id("grant_id"),
    _id("thread_id"),
    *_text("state", "waiting_reason"),
    Column("attempt", Integer),
    *_text("error_reason", "error_message"),
    *_text("schedule_id", "slot_id", "trigger_id", "delivery_id"),
    *_time("scheduled_time", "change_time"),
)

run_leases = Table(
    "run_leases",
    metadata,
    _id("run_id", key=True),
    *_text("tenant_id", "queued_cause", "holder"),
    *[Column(name, BigInteger) for name in ("epoch", "next_seq")],
    *_time("ready_time", "expire_time", "token_expire_time"),
)

grants = Table(
    "grants",
    metadata,
    _id("grant_id", key=True),
    *_text("tenant_id"),
    _id("request_id"),
    Column("content_hash", LargeBinary),
    *_text("owner", "display_name", "state"),
    Column("graph_ids", ARRAY(Text)),
    Column("tools", JSON),
    Column("connection_ids", ARRAY(Text)),
    *_text("account_id", "budget_asset"),
    Column("budget_value", Numeric),
    *_time("expire_time", "create_time", "revoke_time"),
    Column("labels", JSONB),
    *_text("revoke_comment", "revoker"),
)

grant_changes = Table(
    "grant_changes",
    metadata,
    *cursor_columns(),
    *_text("tenant_id"),
    _id("grant_id"),
    *_text("owner", "state"),
    *_time("expire_time", "change_time"),
)

graphs = Table(
    "graphs",
    metadata,
    *[Column(name, Text, primary_key=True) for name in ("tenant_id", "graph_id", "revision")],
    *_text("state", "description", "error"),
    *[Column(name, JSON) for name in ("input_schema", "output_schema", "context_schema", "tools")],
    Column("nodes", ARRAY(Text)),
    *_time("publish_time", "seen_time"),
)

audit_records = Table(
    "audit_records",
    metadata,
    _id("audit_record_id", key=True),
    *_text("tenant_id", "kind", "action", "actor"),
    _id("run_id"),
    Column("attempt", Integer),
    _id("grant_id"),
    _id("invocation_id"),
    _id("cause_audit_record_id"),
    *_text("decision", "reason", "outcome"),
    Column("event_seq", BigInteger),
    Column("details", JSON),
    *_time("create_time"),
    *_text("trace_id"),
)
