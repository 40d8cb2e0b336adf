"""The access log: what an entry says, and the hash chain that shows tampering."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

FIRST_HASH = bytes(32)
# json.dumps makes an encoder in each call, a third of what it takes.
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


class Action(StrEnum):
    """What was done or asked for; the contract's AccessAction."""

    CREATE_CONNECTION = "CREATE_CONNECTION"
    UPDATE_CONNECTION = "UPDATE_CONNECTION"
    DELETE_CONNECTION = "DELETE_CONNECTION"
    TEST_CONNECTION = "TEST_CONNECTION"
    LEASE_CREDENTIAL = "LEASE_CREDENTIAL"
    REVOKE_LEASES = "REVOKE_LEASES"
    REFRESH_CREDENTIAL = "REFRESH_CREDENTIAL"
    BEGIN_AUTHORIZATION = "BEGIN_AUTHORIZATION"
    COMPLETE_AUTHORIZATION = "COMPLETE_AUTHORIZATION"
    ROTATE_KEYS = "ROTATE_KEYS"
    CHANGE_STATE = "CHANGE_STATE"
    LIST_TOOLS = "LIST_TOOLS"
    LIST_INSTALLATIONS = "LIST_INSTALLATIONS"


class Decision(StrEnum):
    """What came of it; the contract's AccessDecision."""

    ALLOWED = "ALLOWED"
    DENIED = "DENIED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Entry:
    """What one record says; `details` never holds a secret."""

    action: Action
    decision: Decision
    actor: str
    on_behalf_of: str = ""
    connection_id: str = ""
    provider: str = ""
    run_id: str = ""
    epoch: int = 0
    grant_id: str = ""
    invocation_id: str = ""
    tool: str = ""
    lease_id: str = ""
    reason: str = ""
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Record:
    """An entry in its place of a tenant's log."""

    sequence: int
    record_time: datetime
    entry: Entry
    previous_hash: bytes
    hash: bytes


@dataclass(frozen=True, slots=True)
class RecordFilter:
    """Which records to read; empty fields stand for all."""

    connection_id: str = ""
    run_id: str = ""
    grant_id: str = ""
    action: str = ""
    decision: str = ""
    start_time: datetime | None = None
    end_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a tenant's log."""

    sequence: int = 0
    hash: bytes = FIRST_HASH


def record_hash(previous_hash: bytes, sequence: int, record_time: datetime, entry: Entry) -> bytes:
    """The hash of a record, as the contract defines it for auditors."""
    content = {
        "sequence": sequence,
        "record_time": record_time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "action": entry.action.value,
        "decision": entry.decision.value,
        "actor": entry.actor,
        "on_behalf_of": entry.on_behalf_of,
        "connection_id": entry.connection_id,
        "provider": entry.provider,
        "run_id": entry.run_id,
        "epoch": entry.epoch,
        "grant_id": entry.grant_id,
        "invocation_id": entry.invocation_id,
        "tool": entry.tool,
        "lease_id": entry.lease_id,
        "reason": entry.reason,
        "details": dict(entry.details),
    }
    return hashlib.sha256(previous_hash + canonical(content).encode()).digest()


def canonical(content: Mapping[str, object]) -> str:
    """The contract's canonical JSON: sorted keys, no spaces. give_leases writes the same in SQL."""
    return _encode(content)


def append(head: Head, record_time: datetime, entries: Iterable[Entry]) -> list[Record]:
    """The records that follow `head`, each chained to the one before."""
    records: list[Record] = []
    for entry in entries:
        sequence = head.sequence + 1
        hash = record_hash(head.hash, sequence, record_time, entry)
        records.append(Record(sequence, record_time, entry, head.hash, hash))
        head = Head(sequence, hash)
    return records


def first_break(records: Iterable[Record], head: Head | None = None) -> int | None:
    """The sequence at which records in order do not follow from `head`, or None.

    Without a head the log must begin at its first record.
    """
    head = head or Head()
    for record in records:
        expected = record_hash(head.hash, head.sequence + 1, record.record_time, record.entry)
        follows = record.sequence == head.sequence + 1 and record.previous_hash == head.hash
        if not follows or record.hash != expected:
            return head.sequence + 1
        head = Head(record.sequence, record.hash)
    return None
