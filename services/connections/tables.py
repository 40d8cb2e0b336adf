"""The tables of Connections as queries name them; migrations make them."""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    Uuid,
)
from sqlalchemy.dialects.postgresql import JSONB

from services.runtime.cursor import cursor_columns

metadata = MetaData()


def _id(name: str, *, primary_key: bool = False) -> Column[str]:
    return Column(name, Uuid(as_uuid=False), primary_key=primary_key)


def _text(name: str, *, primary_key: bool = False) -> Column[str]:
    return Column(name, Text, primary_key=primary_key)


def _time(name: str) -> Column[object]:
    return Column(name, DateTime(timezone=True))


def _envelope() -> list[Column[object]]:
    return [
        Column("key_id", Text),
        Column("wrapped_key", LargeBinary),
        Column("nonce", LargeBinary),
        Column("ciphertext", LargeBinary),
        Column("commitment", LargeBinary),
    ]


connections = Table(
    "connections",
    metadata,
    _text("tenant_id", primary_key=True),
    _id("connection_id", primary_key=True),
    _text("provider"),
    _text("auth_kind"),
    _text("display_name"),
    Column("labels", JSONB),
    Column("settings", JSONB),
    _text("owner"),
    _text("account_id"),
    _text("account_name"),
    Column("scopes", ARRAY(Text)),
    _text("state"),
    _text("state_reason"),
    _text("state_message"),
    _time("state_change_time"),
    _time("expire_time"),
    _time("last_refresh_time"),
    _time("last_lease_time"),
    _time("create_time"),
    _time("update_time"),
    Column("revision", BigInteger),
    _id("authorization_id"),
)

connection_keys = Table(
    "connection_keys",
    metadata,
    _text("tenant_id", primary_key=True),
    _id("request_id", primary_key=True),
    Column("request_hash", LargeBinary),
    _id("connection_id"),
)

consents = Table(
    "consents",
    metadata,
    _text("tenant_id", primary_key=True),
    _id("connection_id", primary_key=True),
    _text("subject", primary_key=True),
    _time("create_time"),
)

credentials = Table(
    "credentials",
    metadata,
    _text("tenant_id", primary_key=True),
    _id("connection_id", primary_key=True),
    _text("kind", primary_key=True),
    _text("provider"),
    Column("generation", BigInteger),
    *_envelope(),
    _time("expire_time"),
    _time("renew_time"),
    _time("update_time"),
)

refreshes = Table(
    "refreshes",
    metadata,
    _text("tenant_id", primary_key=True),
    _id("connection_id", primary_key=True),
    Column("generation", BigInteger),
    _id("claim_id"),
    _time("claim_expire_time"),
    Column("attempts", Integer),
    Column("maybe_done", Boolean),
    _time("not_before"),
    _text("reason"),
)

leases = Table(
    "leases",
    metadata,
    _text("tenant_id", primary_key=True),
    _id("lease_id", primary_key=True),
    _id("connection_id"),
    _text("run_id"),
    Column("epoch", BigInteger),
    _text("grant_id"),
    _text("invocation_id"),
    _text("tool"),
    _time("create_time"),
    _time("expire_time"),
    _time("revoke_time"),
)

revoked_grants = Table(
    "revoked_grants",
    metadata,
    _text("tenant_id", primary_key=True),
    _text("grant_id", primary_key=True),
    _time("revoke_time"),
    _time("keep_until"),
)

revoked_runs = Table(
    "revoked_runs",
    metadata,
    _text("tenant_id", primary_key=True),
    _text("run_id", primary_key=True),
    Column("up_to_epoch", BigInteger),
    _time("revoke_time"),
    _time("keep_until"),
)

access_heads = Table(
    "access_heads",
    metadata,
    _text("tenant_id", primary_key=True),
    Column("sequence", BigInteger),
    Column("hash", LargeBinary),
)

access_records = Table(
    "access_records",
    metadata,
    _text("tenant_id", primary_key=True),
    Column("sequence", BigInteger, primary_key=True),
    _time("record_time"),
    _text("action"),
    _text("decision"),
    _text("actor"),
    _text("on_behalf_of"),
    _text("connection_id"),
    _text("provider"),
    _text("run_id"),
    Column("epoch", BigInteger),
    _text("grant_id"),
    _text("invocation_id"),
    _text("tool"),
    _text("lease_id"),
    _text("reason"),
    Column("details", JSONB),
    Column("previous_hash", LargeBinary),
    Column("hash", LargeBinary),
)

authorizations = Table(
    "authorizations",
    metadata,
    _text("tenant_id", primary_key=True),
    _id("authorization_id", primary_key=True),
    _id("request_id"),
    Column("request_hash", LargeBinary),
    _text("subject"),
    _text("provider"),
    _id("connection_id"),
    Column("state_hash", LargeBinary),
    _text("issuer"),
    _text("redirect_uri"),
    _text("return_uri"),
    Column("scopes", ARRAY(Text)),
    Column("plan", JSONB),
    *_envelope(),
    _time("create_time"),
    _time("expire_time"),
    _time("use_time"),
)

connection_changes = Table(
    "connection_changes",
    metadata,
    *cursor_columns(),
    _text("tenant_id"),
    _id("connection_id"),
    _text("provider"),
    Column("deleted", Boolean),
    _time("change_time"),
)

undelivered_events = Table(
    "undelivered_events",
    metadata,
    _text("tenant_id", primary_key=True),
    _text("event_id", primary_key=True),
    Column("payload", JSONB),
    Column("attempts", Integer),
    _text("last_error"),
    _time("enqueue_time"),
    _time("give_up_time"),
)

key_rotations = Table(
    "key_rotations",
    metadata,
    _id("rotation_id", primary_key=True),
    _id("request_id"),
    _text("key_id"),
    _text("state"),
    _text("begun_in_tenant"),
    Column("total_rows", BigInteger),
    Column("rotated_rows", BigInteger),
    Column("failed_rows", BigInteger),
    _text("after_tenant_id"),
    _id("after_connection_id"),
    _text("after_kind"),
    _time("create_time"),
    _time("update_time"),
    _time("finish_time"),
)
