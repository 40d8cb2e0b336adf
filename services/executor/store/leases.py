"""Leases of runs: claims them in fair order, keeps them, and finds those whose holder died."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from services.executor.runs import Run
from services.executor.store.events import Connection
from services.executor.store.rows import run_of

# Tenants take turns: each of a tenant's queued runs stands behind the runs it has running. The
# recursion hops from tenant to tenant along the index, so a tenant's long queue costs nothing.
_CLAIM_READY = """
WITH RECURSIVE tenants AS (
    (SELECT tenant_id FROM run_leases WHERE ready_time IS NOT NULL ORDER BY tenant_id LIMIT 1)
    UNION ALL
    SELECT (SELECT tenant_id FROM run_leases
            WHERE ready_time IS NOT NULL AND tenant_id > tenants.tenant_id
            ORDER BY tenant_id LIMIT 1)
    FROM tenants WHERE tenants.tenant_id IS NOT NULL
), busy AS (
    SELECT tenant_id, count(*) AS runs FROM run_leases WHERE holder IS NOT NULL GROUP BY tenant_id
), candidates AS (
    SELECT queued.run_id, queued.ready_time, coalesce(busy.runs, 0)
        + row_number() OVER (PARTITION BY tenants.tenant_id ORDER BY queued.ready_time) AS turn
    FROM tenants LEFT JOIN busy USING (tenant_id), LATERAL (
        SELECT run_id, ready_time FROM run_leases
        WHERE run_leases.tenant_id = tenants.tenant_id AND ready_time IS NOT NULL
            AND coalesce(token_expire_time + $4 < cogni_now(), true)
        ORDER BY ready_time LIMIT $1 * 4
    ) AS queued
    WHERE tenants.tenant_id IS NOT NULL
), picked AS (
    SELECT run_leases.run_id FROM run_leases JOIN candidates USING (run_id)
    WHERE run_leases.ready_time IS NOT NULL
        AND coalesce(run_leases.token_expire_time + $4 < cogni_now(), true)
    ORDER BY candidates.turn, candidates.ready_time LIMIT $1
    FOR UPDATE OF run_leases SKIP LOCKED
)
UPDATE run_leases SET epoch = epoch + 1, holder = $2, expire_time = cogni_now() + $3,
    ready_time = NULL, token_expire_time = NULL, alone = false
FROM picked WHERE run_leases.run_id = picked.run_id
RETURNING run_leases.run_id, run_leases.epoch, run_leases.queued_cause AS cause, suspicions, deaths
"""
# The old attempt's token must be dead before a new attempt exists, hence the skew ($3).
_CLAIM_EXPIRED = """
WITH picked AS (
    SELECT run_id, alone AS died_alone FROM run_leases
    WHERE holder IS NOT NULL AND expire_time + $3 < cogni_now()
        AND coalesce(token_expire_time + $3 < cogni_now(), true)
        AND ($4 OR (expire_time + $5 < cogni_now() AND suspicions < $6))
    ORDER BY expire_time LIMIT 1 FOR UPDATE SKIP LOCKED
)
UPDATE run_leases SET epoch = epoch + 1, holder = $1, expire_time = cogni_now() + $2,
    token_expire_time = NULL, alone = $4, suspicions = suspicions + 1,
    deaths = deaths + died_alone::integer
FROM picked WHERE run_leases.run_id = picked.run_id
RETURNING run_leases.run_id, epoch, 'LEASE_EXPIRED' AS cause, suspicions, deaths
"""
_BEGIN = """
UPDATE runs SET state = 'RUNNING', attempt = attempt + 1, waiting_reason = NULL,
    start_time = coalesce(start_time, cogni_now()), update_time = cogni_now()
WHERE run_id = ANY ($1::uuid[]) AND state IN ('QUEUED', 'RUNNING')
"""
_RUNS = """
SELECT runs.*, run_leases.next_seq - 1 AS last_seq FROM runs JOIN run_leases USING (run_id)
WHERE run_id = ANY ($1::uuid[])
"""
_RENEW = """
UPDATE run_leases SET expire_time = cogni_now() + $2
FROM unnest($3::uuid[], $4::bigint[]) AS held (run_id, epoch)
WHERE run_leases.run_id = held.run_id AND run_leases.epoch = held.epoch
    AND run_leases.holder = $1
RETURNING run_leases.run_id
"""
_ABSOLVE = "UPDATE run_leases SET alone = false WHERE run_id = $1 AND epoch = $2"


@dataclass(frozen=True)
class Claim:
    """An attempt that this process may carry out for as long as it holds the lease.

    `cause` is why there is an attempt: STARTED, RESUMED, HANDED_OVER or LEASE_EXPIRED. `deaths`
    counts the processes that died while they carried this run alone.
    """

    run: Run
    epoch: int
    cause: str
    suspicions: int = 0
    deaths: int = 0

    @property
    def suspect(self) -> bool:
        """Whether the process that carried the run before died."""
        return self.cause == "LEASE_EXPIRED"


@dataclass(frozen=True)
class LeaseTimes:
    """How long a lease lasts, and how far apart the clocks of two services may be."""

    lease: timedelta
    clock_skew: timedelta
    #: How long a suspect waits for a process of its own before any process may take it.
    patience: timedelta
    #: After how many suspicions it may run nowhere but alone.
    company_suspicions_max: int


async def claim_ready(tx: Connection, holder: str, count: int, times: LeaseTimes) -> list[Claim]:
    """Begin an attempt of at most `count` queued runs, tenants taking turns.

    Needs a jobs transaction. The caller appends each attempt's first event in it.
    """
    rows = await tx.fetch(_CLAIM_READY, count, holder, times.lease, times.clock_skew)
    return await _begun(tx, rows)


async def claim_expired(
    tx: Connection, holder: str, times: LeaseTimes, *, alone: bool
) -> Claim | None:
    """Begin an attempt of one run whose holder died; None when there is none to be had.

    `alone` says that this process carries nothing else. Otherwise only runs are given that have
    waited for such a process for longer than `patience`, and are not often suspected.
    """
    rows = await tx.fetch(
        _CLAIM_EXPIRED,
        holder,
        times.lease,
        times.clock_skew,
        alone,
        times.patience,
        times.company_suspicions_max,
    )
    begun = await _begun(tx, rows)
    return begun[0] if begun else None


async def renew(
    tx: Connection, holder: str, lease: timedelta, held: Mapping[str, int]
) -> frozenset[str]:
    """Prolong the leases of `held` (run_id: epoch); returns the runs that are still held."""
    rows = await tx.fetch(_RENEW, holder, lease, list(held), list(held.values()))
    return frozenset(str(row["run_id"]) for row in rows)


async def absolve(tx: Connection, run_id: str, epoch: int) -> None:
    """Note that the run no longer runs alone: the process's death is not laid to it any more."""
    await tx.execute(_ABSOLVE, run_id, epoch)


async def _begun(tx: Connection, rows: list[Any]) -> list[Claim]:
    leases = {str(row["run_id"]): row for row in rows}
    if not leases:
        return []
    await tx.execute(_BEGIN, list(leases))
    runs = [run_of(row, whole=True) for row in await tx.fetch(_RUNS, list(leases))]
    return [
        Claim(
            run,
            lease["epoch"],
            lease["cause"],
            lease["suspicions"],
            lease["deaths"],
        )
        for run in runs
        for lease in (leases[run.run_id],)
    ]
