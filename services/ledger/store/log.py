"""Locks the heads of tenants' logs and writes what a batch appends to them, in one statement."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal

import asyncpg

from services.ledger.entries import Draft, Entry
from services.ledger.merkle import Node
from services.ledger.money import EXACT
from services.ledger.store import RaceLostError, Transaction
from services.ledger.units import Key

#: Notified once per batch with the tenants whose logs grew, separated by commas.
ENTRIES_CHANNEL = "ledger_entries"
# pg_notify refuses 8,000 bytes and more; a listener polls anyway.
_NOTIFICATION_LENGTH_MAX = 7_000

_LOCK_HEADS = """
SELECT tenant_id, tree_size, frontier, last_leaf_hash, last_record_time, cogni_now() AS now,
       price_epoch
FROM log_heads WHERE tenant_id = ANY($1) ORDER BY tenant_id FOR NO KEY UPDATE
"""

_READ_HEAD = "SELECT tree_size, frontier FROM log_heads WHERE tenant_id = $1"

_PRICE_EPOCHS = "SELECT tenant_id, price_epoch FROM log_heads WHERE tenant_id = ANY($1)"

_CARRIED = "SELECT carried FROM balances WHERE tenant_id = $1 AND account_id = $2"
_CARRY = "UPDATE balances SET carried = $3 WHERE tenant_id = $1 AND account_id = $2"

# One round trip for all a batch writes: each one saved is a tenth of what a small batch costs.
_WRITE = """
WITH new_entries AS (
    INSERT INTO entries (
        tenant_id, sequence, kind, flags, debit_account_id, credit_account_id, asset, amount,
        debit_balance, credit_balance, record_time, occur_time, source_system, source_reference,
        run_id, attempt, hold_id, corrects_sequence, description, leaf, leaf_hash)
    SELECT * FROM unnest(
        $1::text[], $2::bigint[], $3::smallint[], $4::smallint[], $5::uuid[], $6::uuid[],
        $7::text[], $8::numeric[], $9::numeric[], $10::numeric[], $11::timestamptz[],
        $12::timestamptz[], $13::text[], $14::text[], $15::uuid[], $16::int[], $17::uuid[],
        $18::bigint[], $19::text[], $20::bytea[], $21::bytea[])
), new_keys AS (
    INSERT INTO keys (
        tenant_id, source_system, source_reference, payload_hash, sequence, subject_id, refusal)
    SELECT * FROM unnest(
        $22::text[], $23::text[], $24::text[], $25::bytea[], $26::bigint[], $27::uuid[],
        $28::text[])
), new_nodes AS (
    INSERT INTO log_nodes (tenant_id, level, index, hash)
    SELECT * FROM unnest($29::text[], $30::smallint[], $31::bigint[], $32::bytea[])
), moved AS (
    UPDATE balances AS b
    SET balance = b.balance + c.change, held = b.held + c.held_change,
        sequence = greatest(b.sequence, c.sequence),
        update_time = greatest(b.update_time, c.update_time)
    FROM unnest($33::text[], $34::uuid[], $35::numeric[], $36::numeric[], $37::bigint[],
                $38::timestamptz[])
         AS c (tenant_id, account_id, change, held_change, sequence, update_time)
    WHERE b.tenant_id = c.tenant_id AND b.account_id = c.account_id
), grown AS (
    UPDATE log_heads AS h
    SET tree_size = g.tree_size, frontier = g.frontier, last_leaf_hash = g.last_leaf_hash,
        last_record_time = g.last_record_time
    FROM unnest($39::text[], $40::bigint[], $41::bytea[], $42::bytea[], $43::timestamptz[])
         AS g (tenant_id, tree_size, frontier, last_leaf_hash, last_record_time)
    WHERE h.tenant_id = g.tenant_id
)
SELECT pg_notify($44, $45)
"""


@dataclass(slots=True)
class LogHead:
    """Where a locked tenant's log stands."""

    tree_size: int
    frontier: bytes
    last_leaf_hash: bytes
    last_record_time: datetime | None
    now: datetime
    price_epoch: int

    def copy(self) -> LogHead:
        """Return the same head, to move on alone."""
        return replace(self)


@dataclass(frozen=True, slots=True)
class KeyUse:
    """A key as it is written: the entry it led to, the subject, or the refusal it met.

    `draft` is the entry before it has a sequence.
    """

    key: Key
    payload_hash: bytes
    draft: Draft | None = None
    sequence: int | None = None
    subject_id: str | None = None
    refusal: str | None = None


@dataclass(slots=True)
class Movement:
    """How a batch changes one balance, in minor units."""

    change: int = 0
    held_change: int = 0
    sequence: int = 0
    update_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Appendix:
    """Everything one batch appends."""

    entries: list[Entry]
    keys: list[KeyUse]
    nodes: list[tuple[str, Node]]
    movements: Mapping[tuple[str, str], Movement]
    heads: Mapping[str, LogHead]


async def lock_heads(tx: Transaction, tenant_ids: Collection[str]) -> dict[str, LogHead]:
    """Lock the tenants' logs until the transaction ends. Lock nothing else after them."""
    rows = await tx.fetch(_LOCK_HEADS, sorted(tenant_ids))
    return {row["tenant_id"]: LogHead(*list(row.values())[1:]) for row in rows}


async def read_head(tx: Transaction, tenant_id: str) -> tuple[int, bytes]:
    """Return the size and the frontier of a tenant's log; an empty one for a new tenant."""
    row = await tx.fetchrow(_READ_HEAD, tenant_id)
    return (0, b"") if row is None else (row[0], row[1])


async def price_epochs(tx: Transaction, tenant_ids: Collection[str]) -> dict[str, int]:
    """Return a number per tenant that changes whenever a price card is created."""
    return {row[0]: row[1] for row in await tx.fetch(_PRICE_EPOCHS, list(tenant_ids))}


async def carry(tx: Transaction, tenant_id: str, account_id: str, remainder: Decimal) -> int:
    """Add a remainder to what a rounding account carries; return the whole minor units of it.

    Only under the tenant's head. What is returned leaves the account's carried part: the caller
    posts it.
    """
    carried = EXACT.add(await tx.fetchval(_CARRIED, tenant_id, account_id), remainder)
    whole = int(carried)
    await tx.execute(_CARRY, tenant_id, account_id, EXACT.subtract(carried, Decimal(whole)))
    return whole


async def write(tx: Transaction, appendix: Appendix) -> None:
    """Write a batch; raises RaceLostError, after which the transaction is of no more use."""
    # Sorted, so that two processes that write the same refused keys wait and do not deadlock.
    keys = sorted(appendix.keys, key=lambda use: use.key)
    moved = sorted(appendix.movements.items())
    heads = sorted(appendix.heads.items())
    try:
        await tx.execute(
            _WRITE,
            *_entry_columns(appendix.entries),
            [use.key.tenant_id for use in keys],
            [use.key.source_system for use in keys],
            [use.key.source_reference for use in keys],
            [use.payload_hash for use in keys],
            [use.sequence for use in keys],
            [use.subject_id for use in keys],
            [use.refusal for use in keys],
            [tenant_id for tenant_id, _ in appendix.nodes],
            [node.level for _, node in appendix.nodes],
            [node.index for _, node in appendix.nodes],
            [node.hash for _, node in appendix.nodes],
            [tenant_id for (tenant_id, _), _ in moved],
            [account_id for (_, account_id), _ in moved],
            [movement.change for _, movement in moved],
            [movement.held_change for _, movement in moved],
            [movement.sequence for _, movement in moved],
            [movement.update_time for _, movement in moved],
            [tenant_id for tenant_id, _ in heads],
            [head.tree_size for _, head in heads],
            [head.frontier for _, head in heads],
            [head.last_leaf_hash for _, head in heads],
            [head.last_record_time for _, head in heads],
            ENTRIES_CHANNEL,
            notification(tenant_id for tenant_id, _ in heads),
        )
    except asyncpg.UniqueViolationError as error:
        raise RaceLostError from error


def _entry_columns(entries: list[Entry]) -> list[list[object]]:
    return [
        [e.tenant_id for e in entries],
        [e.sequence for e in entries],
        [int(e.kind) for e in entries],
        [int(e.flags) for e in entries],
        [e.debit_account_id for e in entries],
        [e.credit_account_id for e in entries],
        [e.asset.code for e in entries],
        [e.amount for e in entries],
        [e.debit_balance for e in entries],
        [e.credit_balance for e in entries],
        [e.record_time for e in entries],
        [e.occur_time for e in entries],
        [e.source_system for e in entries],
        [e.source_reference for e in entries],
        [e.run_id or None for e in entries],
        [e.attempt for e in entries],
        [e.hold_id or None for e in entries],
        [e.corrects_sequence or None for e in entries],
        [e.description for e in entries],
        [e.leaf for e in entries],
        [e.leaf_hash for e in entries],
    ]


def notification(tenant_ids: Iterable[str]) -> str:
    """Return what listeners are told about a batch of these tenants."""
    text = ",".join(tenant_ids)
    return text if len(text) <= _NOTIFICATION_LENGTH_MAX else "*"
