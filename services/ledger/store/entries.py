"""Reads entries of the log, by place, by account and by run."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from services.ledger.assets import ASSETS
from services.ledger.commands import Charge
from services.ledger.entries import Entry, EntryFlag, EntryKind
from services.ledger.store import Transaction

# LATERAL with LIMIT is looked up place by place: see store.keys.
_AT = """
SELECT e.* FROM unnest($1::text[], $2::bigint[]) AS w (tenant_id, sequence)
CROSS JOIN LATERAL (
    SELECT * FROM entries WHERE tenant_id = w.tenant_id AND sequence = w.sequence LIMIT 1
) AS e
"""

_CORRECTIONS = """
SELECT w.tenant_id, w.corrected, c.sequence, c.amount
FROM unnest($1::text[], $2::bigint[]) AS w (tenant_id, corrected)
CROSS JOIN LATERAL (
    SELECT min(sequence) AS sequence, sum(amount) AS amount FROM entries
    WHERE tenant_id = w.tenant_id AND corrects_sequence = w.corrected
) AS c
WHERE c.sequence IS NOT NULL
"""

_LIST = """
SELECT * FROM entries
WHERE tenant_id = $1 AND ($2::bigint IS NULL OR sequence < $2) AND ($3 = 0 OR kind = $3)
ORDER BY sequence DESC LIMIT $4
"""

_LIST_OF_RUN = """
SELECT * FROM entries
WHERE tenant_id = $1 AND ($2::bigint IS NULL OR sequence < $2) AND ($3 = 0 OR kind = $3)
  AND run_id = $5 AND ($6::uuid IS NULL OR $6 IN (debit_account_id, credit_account_id))
ORDER BY sequence DESC LIMIT $4
"""

_LIST_OF_ACCOUNT = """
SELECT * FROM (
    (SELECT * FROM entries
     WHERE tenant_id = $1 AND ($2::bigint IS NULL OR sequence < $2) AND ($3 = 0 OR kind = $3)
       AND debit_account_id = $5
     ORDER BY sequence DESC LIMIT $4)
    UNION ALL
    (SELECT * FROM entries
     WHERE tenant_id = $1 AND ($2::bigint IS NULL OR sequence < $2) AND ($3 = 0 OR kind = $3)
       AND credit_account_id = $5
     ORDER BY sequence DESC LIMIT $4)
) AS either
ORDER BY sequence DESC LIMIT $4
"""


_RANGE = """tenant_id = $1 AND sequence > $2 AND sequence <= $3
  AND ($4::timestamptz IS NULL OR record_time >= $4)
  AND ($5::timestamptz IS NULL OR record_time < $5)"""

# One statement per way to look: as one with optional filters, a kept plan would read the whole log
# to find the few entries of a run or an account.
_FORWARD = f"SELECT * FROM entries WHERE {_RANGE} ORDER BY sequence LIMIT $6"

_FORWARD_OF_RUN = f"""
SELECT * FROM entries
WHERE {_RANGE} AND run_id = $7 AND ($8::uuid IS NULL OR $8 IN (debit_account_id, credit_account_id))
ORDER BY sequence LIMIT $6
"""

_FORWARD_OF_ACCOUNT = f"""
SELECT * FROM (
    (SELECT * FROM entries WHERE {_RANGE} AND debit_account_id = $7 ORDER BY sequence LIMIT $6)
    UNION ALL
    (SELECT * FROM entries WHERE {_RANGE} AND credit_account_id = $7 ORDER BY sequence LIMIT $6)
) AS either
ORDER BY sequence LIMIT $6
"""

_COUNT = f"SELECT count(*) FROM entries WHERE {_RANGE}"

_COUNT_OF_RUN = f"""
SELECT count(*) FROM entries
WHERE {_RANGE} AND run_id = $6 AND ($7::uuid IS NULL OR $7 IN (debit_account_id, credit_account_id))
"""

_COUNT_OF_ACCOUNT = f"""
SELECT (SELECT count(*) FROM entries WHERE {_RANGE} AND debit_account_id = $6)
     + (SELECT count(*) FROM entries WHERE {_RANGE} AND credit_account_id = $6)
"""

_RECORD_TIME = "SELECT record_time FROM entries WHERE tenant_id = $1 AND sequence = $2"


@dataclass(frozen=True, slots=True)
class EntryFilter:
    """Which entries of a tenant's log are wanted: after one, up to another, and whose."""

    tenant_id: str
    after: int = 0
    last: int = 0
    account_id: str = ""
    run_id: str = ""
    start_time: datetime | None = None
    end_time: datetime | None = None

    @property
    def is_filtered(self) -> bool:
        """Whether entries between the first and the last wanted one may be left out."""
        return bool(self.account_id or self.run_id or self.start_time or self.end_time)

    def between(self, after: int, last: int) -> EntryFilter:
        """Return the same for a part of the log."""
        return replace(self, after=after, last=last)

    def range(self) -> tuple[Any, ...]:
        """Return the parameters of _RANGE."""
        return (self.tenant_id, self.after, self.last, self.start_time, self.end_time)


async def list_forward(tx: Transaction, wanted: EntryFilter, limit: int) -> list[Entry]:
    """Return up to `limit` wanted entries, the oldest first."""
    within = (*wanted.range(), limit)
    if wanted.run_id:
        of_run = (wanted.run_id, wanted.account_id or None)
        rows = await tx.fetch(_FORWARD_OF_RUN, *within, *of_run)
    elif wanted.account_id:
        rows = await tx.fetch(_FORWARD_OF_ACCOUNT, *within, wanted.account_id)
    else:
        rows = await tx.fetch(_FORWARD, *within)
    return [entry_of(row) for row in rows]


async def count(tx: Transaction, wanted: EntryFilter) -> int:
    """Return how many entries are wanted."""
    found: int
    if not wanted.is_filtered:
        found = max(0, wanted.last - wanted.after)
    elif wanted.run_id:
        of_run = (wanted.run_id, wanted.account_id or None)
        found = await tx.fetchval(_COUNT_OF_RUN, *wanted.range(), *of_run)
    elif wanted.account_id:
        found = await tx.fetchval(_COUNT_OF_ACCOUNT, *wanted.range(), wanted.account_id)
    else:
        found = await tx.fetchval(_COUNT, *wanted.range())
    return found


async def last_before(tx: Transaction, tenant_id: str, size: int, moment: datetime) -> int:
    """Return the sequence of the last entry recorded before a moment, 0 when there is none.

    Record times never decrease along the log, so this halves its way there by the primary key
    instead of keeping an index that every entry would pay for.
    """
    low, high = 0, size
    while low < high:
        middle = (low + high + 1) // 2
        if await tx.fetchval(_RECORD_TIME, tenant_id, middle) < moment:
            low = middle
        else:
            high = middle - 1
    return low


async def at(tx: Transaction, places: Collection[tuple[str, int]]) -> dict[tuple[str, int], Entry]:
    """Return the entries at these (tenant, sequence) places."""
    if not places:
        return {}
    tenants, sequences = zip(*places, strict=True)
    rows = await tx.fetch(_AT, tenants, sequences)
    return {(row["tenant_id"], row["sequence"]): entry_of(row) for row in rows}


async def corrected(
    tx: Transaction, places: Collection[tuple[str, int]]
) -> dict[tuple[str, int], tuple[int, int]]:
    """Return, for corrected entries, the first correction's sequence and the sum given back."""
    if not places:
        return {}
    # Each place once: a place that two corrections of a batch name would be summed twice.
    tenants, sequences = zip(*set(places), strict=True)
    rows = await tx.fetch(_CORRECTIONS, tenants, sequences)
    return {(row[0], row[1]): (row[2], int(row[3])) for row in rows}


async def charges_at(
    tx: Transaction, places: Collection[tuple[str, int]]
) -> dict[tuple[str, int], Charge]:
    """Return the charges whose entries are at these places, with what belongs to them."""
    found = await at(tx, [*places, *((tenant, sequence + 1) for tenant, sequence in places)])
    given_back = await corrected(tx, places)
    return {
        place: Charge(
            found[place],
            overrun_of(found[place], found.get((place[0], place[1] + 1))),
            given_back.get(place, (0, 0))[0],
        )
        for place in places
    }


def overrun_of(charge: Entry, following: Entry | None) -> Entry | None:
    """Return the entry after a charge when it is that charge's overrun."""
    if following is None or following.kind is not EntryKind.OVERRUN:
        return None
    mine = (charge.source_system, charge.source_reference)
    return following if (following.source_system, following.source_reference) == mine else None


async def list_page(
    tx: Transaction,
    tenant_id: str,
    *,
    kind: int,
    account_id: str,
    run_id: str,
    before: int | None,
    limit: int,
) -> list[Entry]:
    """Return up to `limit` entries before a sequence, the newest first."""
    arguments: list[Any] = [tenant_id, before, kind, limit]
    if run_id:
        rows = await tx.fetch(_LIST_OF_RUN, *arguments, run_id, account_id or None)
    elif account_id:
        rows = await tx.fetch(_LIST_OF_ACCOUNT, *arguments, account_id)
    else:
        rows = await tx.fetch(_LIST, *arguments)
    return [entry_of(row) for row in rows]


def entry_of(row: Any) -> Entry:
    """Return the entry of a row that has all columns of the table."""
    return Entry(
        tenant_id=row["tenant_id"],
        sequence=row["sequence"],
        kind=EntryKind(row["kind"]),
        debit_account_id=str(row["debit_account_id"]),
        credit_account_id=str(row["credit_account_id"]),
        asset=ASSETS[row["asset"]],
        amount=int(row["amount"]),
        debit_balance=_whole(row["debit_balance"]),
        credit_balance=_whole(row["credit_balance"]),
        record_time=row["record_time"],
        occur_time=row["occur_time"],
        source_system=row["source_system"],
        source_reference=row["source_reference"],
        run_id=_text(row["run_id"]),
        attempt=row["attempt"],
        hold_id=_text(row["hold_id"]),
        corrects_sequence=row["corrects_sequence"] or 0,
        flags=EntryFlag(row["flags"]),
        description=row["description"],
        leaf=row["leaf"],
        leaf_hash=row["leaf_hash"],
    )


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)


def _text(value: Any) -> str:
    return "" if value is None else str(value)
