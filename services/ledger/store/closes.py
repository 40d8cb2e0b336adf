"""Keeps what the Executor committed about runs, version by version."""

from __future__ import annotations

from typing import Any

from services.ledger.run_close import StoredClose
from services.ledger.store import RaceLostError, Transaction

_LATEST = """
SELECT run_id, version, unit_count, units_digest, close_time FROM run_closes
WHERE tenant_id = $1 AND run_id = $2 ORDER BY version DESC LIMIT 1
"""

_APPEND = """
INSERT INTO run_closes (tenant_id, run_id, version, unit_count, units_digest, close_time)
VALUES ($1, $2, $3, $4, $5, cogni_now())
ON CONFLICT DO NOTHING
RETURNING run_id, version, unit_count, units_digest, close_time
"""


async def latest(tx: Transaction, tenant_id: str, run_id: str) -> StoredClose | None:
    """Return the last version of a run's close."""
    row = await tx.fetchrow(_LATEST, tenant_id, run_id)
    return None if row is None else _close(row)


async def append(
    tx: Transaction,
    tenant_id: str,
    run_id: str,
    version: int,
    unit_count: int,
    units_digest: bytes,
) -> StoredClose:
    """Add a version; raises RaceLostError when another process added it first."""
    row = await tx.fetchrow(_APPEND, tenant_id, run_id, version, unit_count, units_digest)
    if row is None:
        raise RaceLostError
    return _close(row)


def _close(row: Any) -> StoredClose:
    run_id, version, unit_count, units_digest, close_time = row
    return StoredClose(str(run_id), version, unit_count, units_digest, close_time)
