"""An audit record: one link from what triggered an act, over its decision, to its outcome."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from services.runtime.jsonvalues import Json


class AuditKind(StrEnum):
    """Which link of the chain a record is."""

    EVENT = "EVENT"
    DECISION = "DECISION"
    OUTCOME = "OUTCOME"


class AuditOutcome(StrEnum):
    """What came of an act."""

    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """Written once, never changed. `allowed` is set for decisions only."""

    audit_record_id: str
    kind: AuditKind
    action: str
    actor: str
    run_id: str | None = None
    attempt: int = 0
    grant_id: str | None = None
    invocation_id: str | None = None
    cause_audit_record_id: str | None = None
    allowed: bool | None = None
    reason: str | None = None
    outcome: AuditOutcome | None = None
    event_seq: int = 0
    details: dict[str, Json] = field(default_factory=dict)
    trace_id: str | None = None
    tenant_id: str = ""
    create_time: datetime | None = None
