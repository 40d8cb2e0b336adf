"""Finds and keeps the gaps between committed and recorded units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from services.ledger.run_close import Gap, GapKind
from services.ledger.store import Transaction

#: Units of a run that nobody closed are a gap after this long; until then it is still running.
UNCLOSED_AFTER = "1 day"

_BEHIND = """
SELECT h.tenant_id FROM log_heads AS h LEFT JOIN gap_checks AS c USING (tenant_id)
WHERE h.tree_size > coalesce(c.sequence, 0) LIMIT $1
"""

_CHECKED = "SELECT sequence FROM gap_checks WHERE tenant_id = $1 FOR UPDATE SKIP LOCKED"

_START = "INSERT INTO gap_checks (tenant_id, sequence) VALUES ($1, 0) ON CONFLICT DO NOTHING"

_ADVANCE = "UPDATE gap_checks SET sequence = $2 WHERE tenant_id = $1"

# LATERAL looks each run up by its index whatever the planner believes about the table. As joins, a
# plan from when the log was small scans all of it once per run: then no sweep ended in its time.
_COMPARE = """
WITH touched AS MATERIALIZED (
    SELECT DISTINCT run_id FROM entries
    WHERE tenant_id = $1 AND sequence > $2 AND sequence <= $3 AND kind = 2 AND run_id IS NOT NULL
)
SELECT t.run_id, counted.units, counted.digest, latest.unit_count, latest.units_digest
FROM touched AS t
CROSS JOIN LATERAL (
    SELECT count(*) AS units,
           sha256(convert_to(string_agg(
               e.source_system || ' ' || e.source_reference || E'\\n', ''
               ORDER BY e.source_system || ' ' || e.source_reference || E'\\n'), 'UTF8')) AS digest
    FROM entries AS e
    WHERE e.tenant_id = $1 AND e.run_id = t.run_id AND e.kind = 2
) AS counted
LEFT JOIN LATERAL (
    SELECT unit_count, units_digest FROM run_closes
    WHERE tenant_id = $1 AND run_id = t.run_id
    ORDER BY version DESC LIMIT 1
) AS latest ON true
"""

# A gap keeps the time it was first seen, but a run that is still at work is not yet unclosed.
_PUT = """
INSERT INTO gaps (tenant_id, run_id, kind, committed_unit_count, recorded_unit_count, detect_time)
SELECT $1, gap.*, cogni_now()
FROM unnest($2::uuid[], $3::smallint[], $4::bigint[], $5::bigint[]) AS gap
ON CONFLICT (tenant_id, run_id) DO UPDATE
SET committed_unit_count = excluded.committed_unit_count,
    recorded_unit_count = excluded.recorded_unit_count, kind = excluded.kind,
    detect_time = CASE WHEN gaps.kind = excluded.kind AND gaps.kind <> 4
                       THEN gaps.detect_time ELSE excluded.detect_time END
"""

_CLEAR = "DELETE FROM gaps WHERE tenant_id = $1 AND run_id = ANY($2::uuid[])"

_VISIBLE = f"(kind <> 4 OR detect_time < cogni_now() - interval '{UNCLOSED_AFTER}')"

_LIST = f"""
SELECT * FROM gaps
WHERE tenant_id = $1 AND {_VISIBLE} AND ($2 = 0 OR kind = $2)
  AND ($3::timestamptz IS NULL OR (detect_time, run_id) < ($3, $4::uuid))
ORDER BY detect_time DESC, run_id DESC LIMIT $5
"""

_TOTALS = f"SELECT kind, count(*) FROM gaps WHERE {_VISIBLE} GROUP BY kind"


@dataclass(frozen=True, slots=True)
class Comparison:
    """A run's recorded units, beside what was committed of them, None for nothing yet."""

    run_id: str
    units: int
    digest: bytes
    unit_count: int | None
    units_digest: bytes | None


@dataclass(frozen=True, slots=True)
class Found:
    """A run with a gap, as it stands now."""

    run_id: str
    kind: GapKind
    committed: int
    recorded: int


async def behind(tx: Transaction, limit: int) -> list[str]:
    """Return up to `limit` tenants whose logs grew since their runs were compared."""
    return [row[0] for row in await tx.fetch(_BEHIND, limit)]


async def checked(tx: Transaction, tenant_id: str) -> int | None:
    """Take the tenant's turn and return where it stands; None when another process has it."""
    await tx.execute(_START, tenant_id)
    sequence: int | None = await tx.fetchval(_CHECKED, tenant_id)
    return sequence


async def advance(tx: Transaction, tenant_id: str, sequence: int) -> None:
    """Remember that runs were compared up to an entry."""
    await tx.execute(_ADVANCE, tenant_id, sequence)


async def compare(tx: Transaction, tenant_id: str, after: int, last: int) -> list[Comparison]:
    """Return the runs that have units between two entries, counted as a whole."""
    rows = await tx.fetch(_COMPARE, tenant_id, after, last)
    return [Comparison(str(row[0]), *row[1:]) for row in rows]


async def put(tx: Transaction, tenant_id: str, found: Sequence[Found]) -> None:
    """Keep gaps, or change those that are kept. Names each run once."""
    # In one statement: every run at work has a gap, and a sweep may meet thousands.
    await tx.execute(
        _PUT,
        tenant_id,
        [gap.run_id for gap in found],
        [int(gap.kind) for gap in found],
        [gap.committed for gap in found],
        [gap.recorded for gap in found],
    )


async def clear(tx: Transaction, tenant_id: str, run_ids: Sequence[str]) -> None:
    """Forget the gaps of runs that are complete."""
    await tx.execute(_CLEAR, tenant_id, run_ids)


async def list_page(
    tx: Transaction,
    tenant_id: str,
    kind: int,
    before: tuple[datetime, str] | None,
    limit: int,
) -> list[Gap]:
    """Return up to `limit` gaps before the given one, the newest first."""
    moment, run_id = before or (None, None)
    rows = await tx.fetch(_LIST, tenant_id, kind, moment, run_id, limit)
    return [_gap(row) for row in rows]


async def totals(tx: Transaction) -> dict[GapKind, int]:
    """Return how many gaps there are of each kind, over all tenants."""
    found = {GapKind(row[0]): row[1] for row in await tx.fetch(_TOTALS)}
    return {kind: found.get(kind, 0) for kind in GapKind}


def _gap(row: Any) -> Gap:
    return Gap(
        str(row["run_id"]),
        GapKind(row["kind"]),
        row["committed_unit_count"],
        row["recorded_unit_count"],
        row["detect_time"],
    )
