"""Reads entries of the log, by place, by account and by run."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from services.ledger.assets import ASSETS
from services.ledger.commands import Charge
from services.ledger.entries import Entry, EntryFlag, EntryKind
from services.ledger.store import Transaction

_AT = """
SELECT e.* FROM entries AS e
JOIN unnest($1::text[], $2::bigint[]) AS w (tenant_id, sequence) USING (tenant_id, sequence)
"""

_CORRECTIONS = """
SELECT e.tenant_id, e.corrects_sequence, min(e.sequence) AS sequence, sum(e.amount) AS amount
FROM entries AS e
JOIN unnest($1::text[], $2::bigint[]) AS w (tenant_id, corrects_sequence)
     USING (tenant_id, corrects_sequence)
GROUP BY e.tenant_id, e.corrects_sequence
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
    tenants, sequences = zip(*places, strict=True)
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
