"""Reads what runs cost: their charges page by page, their totals, and the digest of their units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from services.ledger.assets import ASSETS, Asset
from services.ledger.commands import Charge
from services.ledger.entries import Entry, EntryKind
from services.ledger.store import Transaction
from services.ledger.store.entries import corrected, entry_of, last_before, overrun_of
from services.ledger.store.log import read_head
from services.ledger.units import CLOCK_SKEW

_CHARGES = """
SELECT * FROM entries
WHERE tenant_id = $1 AND run_id = $2 AND kind IN (2, 3) AND sequence > $3
ORDER BY sequence LIMIT $4
"""

# Flags: 1 estimated, 2 rework. A correction carries the flags of what it gives back, and counts
# against the same sums.
_TOTALS = """
SELECT asset,
       sum(signed) AS charged,
       sum(signed) FILTER (WHERE is_overrun) AS overrun,
       sum(signed) FILTER (WHERE flags & 2 <> 0) AS rework,
       sum(signed) FILTER (WHERE flags & 1 <> 0) AS estimated
FROM (
    SELECT e.asset, e.flags,
           CASE WHEN e.kind = 5 THEN -e.amount ELSE e.amount END AS signed,
           coalesce(o.kind, e.kind) = 3 AS is_overrun
    FROM entries AS e
    LEFT JOIN entries AS o ON o.tenant_id = e.tenant_id AND o.sequence = e.corrects_sequence
    WHERE e.tenant_id = $1 AND e.run_id = $2 AND e.kind IN (2, 3, 5)
) AS part
GROUP BY asset ORDER BY asset
"""

_TOKENS = """
SELECT e.asset, t.key AS kind, sum(t.value::bigint) AS count
FROM entries AS e,
     jsonb_each_text(convert_from(e.leaf, 'UTF8')::jsonb #> '{unit,llm_call,tokens}') AS t
WHERE e.tenant_id = $1 AND e.run_id = $2 AND e.kind = 2
  AND NOT EXISTS (SELECT FROM entries AS c
                  WHERE c.tenant_id = e.tenant_id AND c.corrects_sequence = e.sequence)
GROUP BY e.asset, t.key
"""

_COUNTS = """
SELECT count(*) AS units,
       count(*) FILTER (WHERE flags & 4 <> 0 AND NOT is_corrected) AS unpriced,
       count(*) FILTER (WHERE flags & 1 <> 0 AND NOT is_corrected) AS estimated,
       count(*) FILTER (WHERE flags & 2 <> 0) AS rework,
       sha256(convert_to(coalesce(string_agg(line, '' ORDER BY line), ''), 'UTF8')) AS digest
FROM (
    SELECT e.flags,
           e.source_system || ' ' || e.source_reference || E'\n' AS line,
           EXISTS (SELECT FROM entries AS c WHERE c.tenant_id = e.tenant_id
                   AND c.corrects_sequence = e.sequence) AS is_corrected
    FROM entries AS e
    WHERE e.tenant_id = $1 AND e.run_id = $2 AND e.kind = 2
) AS unit
"""


_STANDING_OF_RUN = """
SELECT e.* FROM entries AS e
WHERE e.tenant_id = $1 AND e.run_id = $2 AND e.kind = 2
  AND ($3::timestamptz IS NULL OR e.occur_time >= $3)
  AND ($4::timestamptz IS NULL OR e.occur_time < $4)
  AND NOT EXISTS (SELECT FROM entries AS c
                  WHERE c.tenant_id = e.tenant_id AND c.corrects_sequence = e.sequence)
ORDER BY e.sequence LIMIT $5
"""

# A unit is recorded no earlier than it occurred, but for the skew that clocks may have.
_STANDING_OF_PERIOD = """
SELECT e.* FROM entries AS e
WHERE e.tenant_id = $1 AND e.sequence > $2 AND e.kind = 2
  AND e.occur_time >= $3 AND e.occur_time < $4
  AND NOT EXISTS (SELECT FROM entries AS c
                  WHERE c.tenant_id = e.tenant_id AND c.corrects_sequence = e.sequence)
ORDER BY e.sequence LIMIT $5
"""


@dataclass(frozen=True, slots=True)
class RunTotal:
    """What a run cost in one asset, in minor units."""

    asset: Asset
    charged: int
    overrun: int
    rework: int
    estimated: int
    tokens: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class RunCounts:
    """How many units a run has, and their digest as CloseRun defines it."""

    units: int
    unpriced: int
    estimated: int
    rework: int
    digest: bytes


async def charges(
    tx: Transaction, tenant_id: str, run_id: str, after: int, limit: int
) -> list[Charge]:
    """Return up to `limit` charges of a run after a sequence, oldest first."""
    # Each charge has at most one overrun, so twice as many rows hold enough charges.
    rows = await tx.fetch(_CHARGES, tenant_id, run_id, after, 2 * limit)
    found = [entry_of(row) for row in rows]
    by_sequence = {entry.sequence: entry for entry in found}
    page = [entry for entry in found if entry.kind is EntryKind.CHARGE][:limit]
    given_back = await corrected(tx, [(tenant_id, entry.sequence) for entry in page])
    return [_charge(entry, by_sequence, given_back) for entry in page]


def _charge(
    entry: Entry,
    by_sequence: Mapping[int, Entry],
    given_back: Mapping[tuple[str, int], tuple[int, int]],
) -> Charge:
    first_correction, _ = given_back.get((entry.tenant_id, entry.sequence), (0, 0))
    return Charge(entry, overrun_of(entry, by_sequence.get(entry.sequence + 1)), first_correction)


async def totals(tx: Transaction, tenant_id: str, run_id: str) -> list[RunTotal]:
    """Return what a run cost, per asset."""
    tokens: dict[str, dict[str, int]] = {}
    for row in await tx.fetch(_TOKENS, tenant_id, run_id):
        tokens.setdefault(row["asset"], {})[row["kind"]] = int(row["count"])
    return [
        RunTotal(
            ASSETS[row["asset"]],
            int(row["charged"]),
            int(row["overrun"] or 0),
            int(row["rework"] or 0),
            int(row["estimated"] or 0),
            tokens.get(row["asset"], {}),
        )
        for row in await tx.fetch(_TOTALS, tenant_id, run_id)
    ]


async def counts(tx: Transaction, tenant_id: str, run_id: str) -> RunCounts:
    """Return how many units a run has and which, as a digest."""
    row = await tx.fetchrow(_COUNTS, tenant_id, run_id)
    return RunCounts(*row.values())


async def standing_charges(
    tx: Transaction,
    tenant_id: str,
    run_id: str,
    start_time: datetime | None,
    end_time: datetime | None,
    limit: int,
) -> list[Entry]:
    """Return up to `limit` charges that nothing corrects, of a run or of a period."""
    if run_id:
        rows = await tx.fetch(_STANDING_OF_RUN, tenant_id, run_id, start_time, end_time, limit)
    else:
        assert start_time is not None
        assert end_time is not None
        size, _ = await read_head(tx, tenant_id)
        before = await last_before(tx, tenant_id, size, start_time - CLOCK_SKEW)
        rows = await tx.fetch(_STANDING_OF_PERIOD, tenant_id, before, start_time, end_time, limit)
    return [entry_of(row) for row in rows]
