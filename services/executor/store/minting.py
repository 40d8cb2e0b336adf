"""Proves an attempt for its run token, and keeps the run from being claimed before it is dead."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from services.executor.store.events import Connection

# The expiry is kept in the lease, in whole seconds as in the token, and never goes back: an
# earlier token of the same attempt may outlive a later one.
_PROVE = """
UPDATE run_leases SET token_expire_time = greatest(token_expire_time,
    date_trunc('second', least(expire_time, cogni_now() + $4)))
WHERE run_id = $1 AND epoch = $2 AND tenant_id = $3 AND holder IS NOT NULL
    AND expire_time > cogni_now() AND NOT sealed
RETURNING date_trunc('second', least(expire_time, cogni_now() + $4)) AS expire_time,
    cogni_now() AS now
"""
_GRANT_OF = "SELECT grant_id FROM runs WHERE run_id = $1"


@dataclass(frozen=True)
class Proof:
    """That an attempt holds its lease: until when its token may work, and the time now."""

    grant_id: str
    expire_time: datetime
    now: datetime


async def prove(
    tx: Connection, tenant_id: str, run_id: str, epoch: int, longest: timedelta
) -> Proof | None:
    """Return the proof that `epoch` is the run's current lease, None when it is not."""
    row = await tx.fetchrow(_PROVE, run_id, epoch, tenant_id, longest)
    if row is None:
        return None
    grant_id = await tx.fetchval(_GRANT_OF, run_id)
    return Proof(str(grant_id), row["expire_time"], row["now"])
