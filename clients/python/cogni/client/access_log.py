"""Checks the access log of Connections: whether a record was changed, removed or inserted.

The hash of each record covers its content and the hash before it, by the rule of the contract
(AccessRecord.hash). Whoever can write to the database could make up a whole new log; a head that
was kept elsewhere shows that too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from cogni.connections.v1.access_record_pb2 import AccessAction, AccessDecision, AccessRecord

FIRST_HASH = bytes(32)


class TamperedError(Exception):
    """The log is not what was once written; `sequence` is the first place where it shows."""

    def __init__(self, sequence: int, why: str) -> None:
        super().__init__(f"record {sequence} {why}")
        self.sequence = sequence


@dataclass(frozen=True)
class Head:
    """The end of a log at one moment: a sequence, and that record's hash."""

    sequence: int = 0
    hash: bytes = FIRST_HASH

    def __str__(self) -> str:
        """As people keep it: SEQUENCE:HASH, in hex."""
        return f"{self.sequence}:{self.hash.hex()}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """A head that was kept. Raises ValueError."""
        sequence, _, digest = text.partition(":")
        head = cls(int(sequence), bytes.fromhex(digest))
        if head.sequence < 0 or len(head.hash) != len(FIRST_HASH):
            raise ValueError("a head is SEQUENCE:HASH with 64 hexadecimal digits")
        return head


def record_hash(record: AccessRecord) -> bytes:
    """What the record's hash must be, given the hash before it."""
    micros = record.record_time.seconds * 1_000_000 + record.record_time.nanos // 1000
    moment = datetime.fromtimestamp(micros // 1_000_000, UTC)
    content = {
        "sequence": record.sequence,
        "record_time": f"{moment:%Y-%m-%dT%H:%M:%S}.{micros % 1_000_000:06d}Z",
        "action": AccessAction.Name(record.action).removeprefix("ACCESS_ACTION_"),
        "decision": AccessDecision.Name(record.decision).removeprefix("ACCESS_DECISION_"),
        "actor": record.actor,
        "on_behalf_of": record.on_behalf_of,
        "connection_id": record.connection_id,
        "provider": record.provider,
        "run_id": record.run_id,
        "epoch": record.epoch,
        "grant_id": record.grant_id,
        "invocation_id": record.invocation_id,
        "tool": record.tool,
        "lease_id": record.lease_id,
        "reason": record.reason,
        "details": dict(record.details),
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(record.previous_hash + canonical.encode()).digest()


def verify_records(records: Iterable[AccessRecord], *, kept: Head | None = None) -> Head:
    """The end of a whole log, oldest record first, once all of it has been checked.

    `kept` is a head from before, which must be on the way. Raises TamperedError.
    """
    head = Head()
    on_the_way = kept is None or kept == head
    for record in records:
        if record.sequence != head.sequence + 1:
            raise TamperedError(head.sequence + 1, "is missing")
        if record.previous_hash != head.hash:
            raise TamperedError(record.sequence, "does not follow from the one before")
        if record.hash != record_hash(record):
            raise TamperedError(record.sequence, "was changed after it was written")
        head = Head(record.sequence, record.hash)
        if kept is not None and kept.sequence == head.sequence:
            if kept.hash != head.hash:
                raise TamperedError(kept.sequence, "is not the one whose hash was kept")
            on_the_way = True
    if not on_the_way and kept is not None:
        raise TamperedError(head.sequence + 1, f"is missing, and so are all up to {kept.sequence}")
    return head
