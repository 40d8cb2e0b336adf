"""Finds the usage the Ledger does not have yet and the runs to close, and notes its answers."""

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta

from services.executor.amounts import Amount
from services.executor.store.events import Connection
from services.executor.store.rows import Row, text_of
from services.executor.usage import Closing, RecordProblem, SettledUnit, UsageKind

# Taken for a while rather than locked: no lock may be held while the Ledger is asked. Two servers
# that deliver the same unit do no harm, since the Ledger charges it once. A correction waits until
# the Ledger has what it corrects.
_TAKE = """
WITH due AS (
    SELECT call_id FROM usage_units
    WHERE state = 'SETTLED' AND record_time IS NULL AND record_due_time <= cogni_now()
        AND record_problem IS DISTINCT FROM 'CONFLICT'
        AND (corrects_call_id IS NULL OR EXISTS (
            SELECT 1 FROM usage_units AS corrected_unit
            WHERE corrected_unit.call_id = usage_units.corrects_call_id
                AND corrected_unit.record_time IS NOT NULL))
    ORDER BY record_due_time LIMIT $1 FOR UPDATE SKIP LOCKED
)
UPDATE usage_units SET record_due_time = cogni_now() + $2
FROM due WHERE usage_units.call_id = due.call_id
RETURNING usage_units.*,
    (SELECT traceparent FROM runs WHERE runs.run_id = usage_units.run_id) AS traceparent
"""
_RECORDED = """
UPDATE usage_units SET record_time = cogni_now(), record_problem = NULL,
    charge_asset = told.asset, charge_value = told.value
FROM unnest($1::uuid[], $2::text[], $3::numeric[]) AS told (call_id, asset, value)
WHERE usage_units.call_id = told.call_id AND record_time IS NULL
"""
_PROBLEM = """
UPDATE usage_units SET record_problem = $2, record_due_time = cogni_now() + $3
WHERE call_id = ANY ($1::uuid[]) AND record_time IS NULL
"""
_AGAIN = """
UPDATE usage_units SET record_due_time = cogni_now() + $2
WHERE call_id = ANY ($1::uuid[]) AND record_time IS NULL
"""
_TO_CLOSE = """
SELECT runs.run_id, runs.tenant_id,
    array(SELECT call_id::text FROM usage_units WHERE usage_units.run_id = runs.run_id) AS call_ids
FROM runs
WHERE finish_time IS NOT NULL AND close_time IS NULL
    AND NOT EXISTS (
        SELECT 1 FROM usage_units
        WHERE usage_units.run_id = runs.run_id AND record_time IS NULL
    )
ORDER BY finish_time LIMIT $1
"""
# A unit that arrived since the run was read keeps it open: the next round closes it as it is. The
# lock comes first, in a statement of its own: a correction that is committed while this one waits
# for it must be counted.
_LOCK = "SELECT 1 FROM runs WHERE run_id = $1 FOR UPDATE"
_CLOSED = """
UPDATE runs SET close_time = cogni_now(), close_version = close_version + 1
WHERE run_id = $1 AND close_time IS NULL
    AND (SELECT count(*) FROM usage_units WHERE usage_units.run_id = runs.run_id) = $2
"""


async def take_due(tx: Connection, limit: int, lease: timedelta) -> list[SettledUnit]:
    """Return at most `limit` settled units that the Ledger does not have, for `lease` ours."""
    return [_unit(row) for row in await tx.fetch(_TAKE, limit, lease)]


async def note_recorded(tx: Connection, charges: Mapping[str, Amount | None]) -> None:
    """Note that the Ledger has the units, by call id, and what it charged; None: unpriced."""
    await tx.execute(
        _RECORDED,
        list(charges),
        [charge and charge.asset for charge in charges.values()],
        [charge and charge.value for charge in charges.values()],
    )


async def note_problem(
    tx: Connection, call_ids: Sequence[str], problem: RecordProblem, pause: timedelta
) -> None:
    """Note why the Ledger does not have the units, and when they are tried again, if ever."""
    await tx.execute(_PROBLEM, list(call_ids), problem, pause)


async def postpone(tx: Connection, call_ids: Sequence[str], pause: timedelta) -> None:
    """Let the units rest: the Ledger did not answer."""
    await tx.execute(_AGAIN, list(call_ids), pause)


async def to_close(tx: Connection, limit: int) -> list[Closing]:
    """Return at most `limit` final runs whose units the Ledger has, and which are not closed."""
    return [
        Closing(str(row["run_id"]), row["tenant_id"], tuple(row["call_ids"]))
        for row in await tx.fetch(_TO_CLOSE, limit)
    ]


async def note_closed(tx: Connection, closing: Closing) -> None:
    """Note that the Ledger has closed the run with exactly these units."""
    await tx.execute(_LOCK, closing.run_id)
    await tx.execute(_CLOSED, closing.run_id, len(closing.call_ids))


def _unit(row: Row) -> SettledUnit:
    actual: Mapping[str, int] = json.loads(row["actual"])
    return SettledUnit(
        call_id=str(row["call_id"]),
        tenant_id=row["tenant_id"],
        run_id=str(row["run_id"]),
        attempt=row["attempt"],
        account_id=row["account_id"],
        kind=UsageKind(row["kind"]),
        model=row["model"] or "",
        provider=row["provider"] or "",
        provider_response_id=row["provider_response_id"],
        tool=row["tool"] or "",
        invocation_id=text_of(row["invocation_id"]) or "",
        counts=actual,
        cost=Amount.of(row["cost_asset"], row["cost_value"]),
        rework=row["rework"],
        estimated=row["estimated"],
        corrects=text_of(row["corrects_call_id"]) or "",
        occur_time=row["occur_time"],
        traceparent=row["traceparent"],
    )
