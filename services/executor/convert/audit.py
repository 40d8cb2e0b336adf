"""Converts audit records into the contract's messages."""

from cogni.executor.v1 import audit_record_pb2
from services.executor.audit import AuditRecord
from services.executor.convert import enums
from services.executor.convert.times import timestamp
from services.runtime.jsonvalues import to_struct

_DECISIONS = {
    None: audit_record_pb2.AUDIT_DECISION_UNSPECIFIED,
    True: audit_record_pb2.AUDIT_DECISION_ALLOWED,
    False: audit_record_pb2.AUDIT_DECISION_DENIED,
}


def record_to_proto(record: AuditRecord) -> audit_record_pb2.AuditRecord:
    """Return the record as its reader sees it."""
    return audit_record_pb2.AuditRecord(
        audit_record_id=record.audit_record_id,
        tenant_id=record.tenant_id,
        kind=enums.audit_kind(record.kind),
        action=record.action,
        actor=record.actor,
        run_id=record.run_id or "",
        attempt=record.attempt,
        grant_id=record.grant_id or "",
        invocation_id=record.invocation_id or "",
        cause_audit_record_id=record.cause_audit_record_id or "",
        decision=_DECISIONS[record.allowed],
        reason=enums.error_reason(record.reason),
        outcome=enums.audit_outcome(record.outcome),
        event_seq=record.event_seq,
        details=to_struct(record.details),
        create_time=timestamp(record.create_time),
        trace_id=record.trace_id or "",
    )
