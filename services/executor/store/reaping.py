"""Finds the runs that nobody is carrying on with."""

from datetime import timedelta

from services.executor.store.events import Connection

# A lease that expired and was not claimed again: its runner is dead, or stopped.
_EXPIRED = """
SELECT run_leases.run_id, run_leases.tenant_id FROM run_leases
WHERE holder IS NOT NULL AND expire_time < cogni_now() ORDER BY expire_time LIMIT $1
"""
# Ready for so long that its wake-up must have been lost, or that no runner is up.
_FORGOTTEN = """
SELECT run_id, tenant_id FROM run_leases
WHERE ready_time < cogni_now() - $2::interval ORDER BY ready_time LIMIT $1
"""
# Asked to stop, and no runner left that could: neither in the queue, nor waiting, nor with a
# runner whose tokens may still work.
_STOPPABLE = """
SELECT runs.run_id, runs.tenant_id FROM runs JOIN run_leases USING (run_id)
WHERE runs.state IN ('QUEUED', 'RUNNING', 'WAITING') AND cancel_request_time IS NOT NULL
    AND (holder IS NULL OR (expire_time + $2::interval < cogni_now()
        AND coalesce(token_expire_time + $2::interval < cogni_now(), true)))
ORDER BY cancel_request_time LIMIT $1
"""
# Time spent waiting for answers does not count; questions that were asked together count once.
# The grace lets a living runner, which counts to the moment, come first.
_OVERDUE = """
SELECT run_id, tenant_id FROM runs
WHERE state = 'RUNNING' AND cancel_request_time IS NULL
    AND start_time + timeout + $2::interval < cogni_now()
    AND start_time + timeout + $2::interval + (
        SELECT coalesce(sum(waited), interval '0') FROM (
            SELECT max(answer_time) - create_time AS waited FROM interrupts
            WHERE interrupts.run_id = runs.run_id AND answer_time IS NOT NULL GROUP BY create_time
        ) AS waits
    ) < cogni_now()
ORDER BY start_time LIMIT $1
"""
# The fence of a run that is ended without its runner: whoever holds the old epoch can write
# nothing more, also if the statement that seals the run were to fail.
_TAKE_OVER = """
UPDATE run_leases SET epoch = epoch + 1, holder = NULL, expire_time = NULL
WHERE run_id = $1 AND NOT sealed AND (holder IS NULL OR (expire_time + $2::interval < cogni_now()
    AND coalesce(token_expire_time + $2::interval < cogni_now(), true)))
RETURNING run_id
"""

Found = list[tuple[str, str]]


async def expired(tx: Connection, limit: int) -> Found:
    """Return (run_id, tenant_id) of runs whose lease has expired."""
    return _found(await tx.fetch(_EXPIRED, limit))


async def forgotten(tx: Connection, limit: int, after: timedelta) -> Found:
    """Return (run_id, tenant_id) of runs that have been in the queue for longer than `after`."""
    return _found(await tx.fetch(_FORGOTTEN, limit, after))


async def stoppable(tx: Connection, limit: int, clock_skew: timedelta) -> Found:
    """Return (run_id, tenant_id) of runs to be stopped that no runner will stop."""
    return _found(await tx.fetch(_STOPPABLE, limit, clock_skew))


async def overdue(tx: Connection, limit: int, grace: timedelta) -> Found:
    """Return (run_id, tenant_id) of runs that take longer than their timeout and `grace`."""
    return _found(await tx.fetch(_OVERDUE, limit, grace))


async def take_over(tx: Connection, run_id: str, clock_skew: timedelta) -> bool:
    """Take the run from a runner whose lease and tokens are dead; False when one is not.

    Must be the transaction's first statement, and the run is then ended in it.
    """
    return await tx.fetchval(_TAKE_OVER, run_id, clock_skew) is not None


def _found(rows: list[dict[str, str]]) -> Found:
    return [(str(row["run_id"]), row["tenant_id"]) for row in rows]
