"""Reads and claims the permanent keys that make every request happen once."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from uuid import UUID

from services.ledger.store import Transaction
from services.ledger.units import Key
from services.runtime.errors import ErrorKind, ServiceError

# LATERAL with LIMIT is looked up key by key whatever the planner believes about the table. As a
# join its cached plan may scan all keys ever used, until the statistics catch up.
_FIND = """
SELECT k.tenant_id, k.source_system, k.source_reference, k.payload_hash, k.sequence, k.subject_id,
       k.refusal
FROM unnest($1::text[], $2::text[], $3::text[]) AS w (tenant_id, source_system, source_reference)
CROSS JOIN LATERAL (
    SELECT * FROM keys
    WHERE tenant_id = w.tenant_id AND source_system = w.source_system
      AND source_reference = w.source_reference
    LIMIT 1
) AS k
"""

# Hashes may collide: then two corrections that have nothing to do with each other take turns.
_LOCK_CORRECTED = """
SELECT pg_advisory_xact_lock(hash) FROM (
    SELECT DISTINCT hashtextextended(name, 0) AS hash FROM unnest($1::text[]) AS n (name)
    ORDER BY hash
) AS sorted
"""

_CLAIM = """
INSERT INTO keys (tenant_id, source_system, source_reference, payload_hash, subject_id)
VALUES ($1, $2, $3, $4, $5)
ON CONFLICT DO NOTHING
RETURNING true
"""


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key that was used before: for what content, and what came of it."""

    payload_hash: bytes
    sequence: int | None
    subject_id: str | None
    refusal: str | None

    def refused(self) -> ServiceError | None:
        """Return the refusal the key met, to be met again."""
        return None if self.refusal is None else unpack_refusal(self.refusal)


async def find(tx: Transaction, keys: Collection[Key]) -> dict[Key, StoredKey]:
    """Return those of `keys` that were used before."""
    if not keys:
        return {}
    tenants, systems, references = zip(*keys, strict=True)
    rows = await tx.fetch(_FIND, tenants, systems, references)
    return {Key(*row[:3]): StoredKey(row[3], row[4], _text(row[5]), row[6]) for row in rows}


async def lock_corrected(tx: Transaction, keys: Collection[Key]) -> None:
    """Let corrections of the same entries take turns. Before any other lock."""
    if keys:
        await tx.execute(_LOCK_CORRECTED, [" ".join(key) for key in keys])


async def claim(
    tx: Transaction, key: Key, payload_hash: bytes, subject_id: str
) -> StoredKey | None:
    """Take a key for a subject that this transaction creates, or return whose it is already.

    Waits for a transaction that is taking the same key.
    """
    if await tx.fetchval(_CLAIM, *key, payload_hash, subject_id):
        return None
    return (await find(tx, [key]))[key]


def pack_refusal(error: ServiceError) -> str:
    """Return a refusal as text to store with its key."""
    return json.dumps([error.kind.value, error.reason, error.message, dict(error.metadata)])


def unpack_refusal(text: str) -> ServiceError:
    """Return the refusal that `pack_refusal` stored."""
    kind, reason, message, metadata = json.loads(text)
    return ServiceError(ErrorKind(kind), reason, message, metadata=metadata)


def _text(value: UUID | None) -> str | None:
    return None if value is None else str(value)
