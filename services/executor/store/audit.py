"""Writes audit records and lists them."""

import json
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.executor.audit import AuditKind, AuditOutcome, AuditRecord
from services.executor.store.events import Connection
from services.executor.store.rows import Row, text_of
from services.executor.tables import audit_records as table

#: Writes one record.
INSERT = """
INSERT INTO audit_records (audit_record_id, tenant_id, kind, action, actor, run_id, attempt,
    grant_id, invocation_id, cause_audit_record_id, decision, reason, outcome, event_seq, details,
    create_time, trace_id)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, cogni_now(), $16)
"""


@dataclass(frozen=True)
class AuditFilter:
    """Which records to list; what is unset does not bind."""

    run_id: str = ""
    grant_id: str = ""
    invocation_id: str = ""
    action: str = ""
    kinds: tuple[AuditKind, ...] = ()
    allowed: bool | None = None
    min_create_time: datetime | None = None
    max_create_time: datetime | None = None


async def write(tx: Connection, tenant_id: str, *records: AuditRecord) -> None:
    """Write the records, for good."""
    await tx.executemany(INSERT, [values_of(tenant_id, record) for record in records])


async def page(
    tx: AsyncConnection, wanted: AuditFilter, before_id: str | None, limit: int
) -> list[AuditRecord]:
    """Return at most `limit` records older than `before_id`, newest first."""
    statement = select(table).order_by(table.c.audit_record_id.desc()).limit(limit)
    if before_id is not None:
        statement = statement.where(table.c.audit_record_id < before_id)
    for column in ("run_id", "grant_id", "invocation_id", "action"):
        if value := getattr(wanted, column):
            statement = statement.where(table.c[column] == value)
    if wanted.kinds:
        statement = statement.where(table.c.kind.in_([str(kind) for kind in wanted.kinds]))
    if wanted.allowed is not None:
        statement = statement.where(table.c.decision == _decision(wanted.allowed))
    if wanted.min_create_time:
        statement = statement.where(table.c.create_time >= wanted.min_create_time)
    if wanted.max_create_time:
        statement = statement.where(table.c.create_time < wanted.max_create_time)
    rows = (await tx.execute(statement)).mappings()
    return [_record(dict(row)) for row in rows]


def values_of(tenant_id: str, record: AuditRecord) -> tuple[object, ...]:
    """Return the arguments of INSERT, for whoever writes the record with other things."""
    return (
        record.audit_record_id,
        tenant_id,
        record.kind,
        record.action,
        record.actor,
        record.run_id,
        record.attempt,
        record.grant_id,
        record.invocation_id,
        record.cause_audit_record_id,
        _decision(record.allowed),
        record.reason,
        record.outcome,
        record.event_seq,
        json.dumps(record.details),
        record.trace_id,
    )


def _decision(allowed: bool | None) -> str | None:
    return None if allowed is None else "ALLOWED" if allowed else "DENIED"


def _record(row: Row) -> AuditRecord:
    return AuditRecord(
        audit_record_id=row["audit_record_id"],
        kind=AuditKind(row["kind"]),
        action=row["action"],
        actor=row["actor"],
        run_id=text_of(row["run_id"]),
        attempt=row["attempt"],
        grant_id=text_of(row["grant_id"]),
        invocation_id=text_of(row["invocation_id"]),
        cause_audit_record_id=text_of(row["cause_audit_record_id"]),
        allowed=None if row["decision"] is None else row["decision"] == "ALLOWED",
        reason=row["reason"],
        outcome=None if row["outcome"] is None else AuditOutcome(row["outcome"]),
        event_seq=row["event_seq"],
        details=row["details"],
        trace_id=row["trace_id"],
        tenant_id=row["tenant_id"],
        create_time=row["create_time"],
    )
