"""Writes a batch of new usage in one statement, if what is believed of its logs is so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from services.ledger.entries import Entry
from services.ledger.merkle import Node
from services.ledger.store import RaceLostError
from services.ledger.store.log import ENTRIES_CHANNEL, LogHead, Movement, notification
from services.ledger.units import Key
from services.runtime.database import bound_tenants
from services.runtime.lane import Lane

_ARGUMENTS = 46
_POST = f"SELECT * FROM post_usage({', '.join(f'${n}' for n in range(1, _ARGUMENTS + 1))})"


@dataclass(frozen=True, slots=True)
class NewUsage:
    """What is to be written, and what was believed when it was made.

    `before` and `heads` are the tenants' heads before and after, `believed` the balance and the
    held part of each account that pays, `remaining` what each run's hold (tenant, run) had to give,
    `taken` what the charges take of it. Every entry is a charge or its overrun.
    """

    entries: Sequence[Entry]
    payload_hashes: Mapping[Key, bytes]
    nodes: Sequence[tuple[str, Node]]
    movements: Mapping[tuple[str, str], Movement]
    before: Mapping[str, LogHead]
    heads: Mapping[str, LogHead]
    believed: Mapping[tuple[str, str], tuple[int, int]]
    remaining: Mapping[tuple[str, str], int]
    taken: Mapping[tuple[str, str], int]


async def post_usage(lane: Lane, new: NewUsage) -> tuple[str, datetime]:
    """Write and commit it, or nothing; return the verdict and the database's time.

    POSTED; KNOWN when a key was used before; MOVED when a belief was wrong.
    """
    tenants = sorted(new.heads)
    number_of = {tenant_id: number for number, tenant_id in enumerate(tenants, 1)}
    heads = [new.heads[tenant_id] for tenant_id in tenants]
    before = [new.before[tenant_id] for tenant_id in tenants]
    places = sorted(new.movements)
    holds = sorted(new.remaining)
    movements = [new.movements[place] for place in places]
    believed = [new.believed.get(place) for place in places]
    try:
        row = await lane.fetchrow(
            _POST,
            bound_tenants(tenants),
            [tenant_id for tenant_id, _ in places],
            [account_id for _, account_id in places],
            [None if each is None else str(each[0]) for each in believed],
            [None if each is None else str(each[1]) for each in believed],
            [str(movement.change) for movement in movements],
            [movement.sequence for movement in movements],
            [each is not None for each in believed],
            [str(movement.held_change) for movement in movements],
            [tenant_id for tenant_id, _ in holds],
            [hold_id for _, hold_id in holds],
            [str(new.remaining[place]) for place in holds],
            [str(new.taken.get(place, 0)) for place in holds],
            tenants,
            [head.tree_size for head in before],
            [head.last_leaf_hash for head in before],
            [head.price_epoch for head in before],
            [head.tree_size for head in heads],
            [head.frontier for head in heads],
            [head.last_leaf_hash for head in heads],
            [head.last_record_time for head in heads],
            *_columns(new, number_of),
            [tenant_id for tenant_id, _ in new.nodes],
            [node.level for _, node in new.nodes],
            [node.index for _, node in new.nodes],
            [node.hash for _, node in new.nodes],
            ENTRIES_CHANNEL,
            notification(tenants),
        )
    except asyncpg.UniqueViolationError as error:
        raise RaceLostError from error
    assert row is not None, "a function without rows returns one"
    return row[0], row[1]


def _columns(new: NewUsage, number_of: Mapping[str, int]) -> list[list[object]]:
    entries, hashes = new.entries, new.payload_hashes
    # What many entries share is sent once: each column is encoded, sent and read per entry.
    shared = [
        (e.tenant_id, e.debit_account_id, e.credit_account_id, e.asset.code, e.source_system)
        for e in entries
    ]
    groups = {values: number for number, values in enumerate(dict.fromkeys(shared), 1)}
    return [
        [number_of[tenant_id] for tenant_id, *_ in groups],
        [debit for _, debit, *_ in groups],
        [credit for _, _, credit, *_ in groups],
        [asset for _, _, _, asset, _ in groups],
        [system for *_, system in groups],
        [groups[values] for values in shared],
        [e.sequence for e in entries],
        [int(e.kind) for e in entries],
        [int(e.flags) for e in entries],
        # As texts: PostgreSQL reads a numeric faster than asyncpg makes one.
        [str(e.amount) for e in entries],
        [None if e.debit_balance is None else str(e.debit_balance) for e in entries],
        [e.occur_time for e in entries],
        [e.source_reference for e in entries],
        [e.run_id or None for e in entries],
        [e.attempt for e in entries],
        [e.description for e in entries],
        [e.leaf for e in entries],
        [e.leaf_hash for e in entries],
        [hashes[Key(e.tenant_id, e.source_system, e.source_reference)] for e in entries],
    ]
