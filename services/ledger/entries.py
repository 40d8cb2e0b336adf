"""Entries: money that moved, first drafted, then sealed into its place in the tenant's log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum, IntFlag
from typing import Any, NamedTuple

from services.ledger.assets import Asset
from services.ledger.canonical import canonical_line, format_time
from services.ledger.merkle import leaf_hash
from services.ledger.money import format_minor
from services.ledger.units import Key

LEAF_VERSION = 1
NONCE_BYTES = 16


class EntryKind(IntEnum):
    """Why money moved; the values are those of the contract and of the table."""

    TRANSFER = 1
    CHARGE = 2
    OVERRUN = 3
    SETTLEMENT = 4
    CORRECTION = 5
    ROUNDING = 6


class EntryFlag(IntFlag):
    """What statements count apart; the leaf says the same in words."""

    ESTIMATED = 1
    REWORK = 2
    UNPRICED = 4


NO_FLAGS = EntryFlag(0)


@dataclass(slots=True, eq=False)
class Draft:
    """An entry that has no place in the log yet. `amount` is in minor units.

    The balances are those after it, None for the system's own accounts. `corrects` is the draft
    or the sequence of the entry that this one gives back.
    """

    tenant_id: str
    kind: EntryKind
    debit_account_id: str
    credit_account_id: str
    asset: Asset
    amount: int
    occur_time: datetime | None = None
    key: Key | None = None
    run_id: str = ""
    attempt: int = 0
    hold_id: str = ""
    corrects: Draft | int = 0
    description: str = ""
    unit: Mapping[str, Any] | None = None
    price: Mapping[str, Any] | None = None
    flags: EntryFlag = NO_FLAGS
    debit_balance: int | None = None
    credit_balance: int | None = None
    sequence: int = 0

    def corrects_sequence(self) -> int:
        """Return the sequence of the corrected entry, 0 for none; it precedes this one."""
        return self.corrects.sequence if isinstance(self.corrects, Draft) else self.corrects


# Not frozen, though nobody changes it: making a frozen one of so many fields takes 4 µs more.
@dataclass(slots=True)
class Entry:
    """One sealed line of a tenant's log. Balances are None for the system's own accounts."""

    tenant_id: str
    sequence: int
    kind: EntryKind
    debit_account_id: str
    credit_account_id: str
    asset: Asset
    amount: int
    debit_balance: int | None
    credit_balance: int | None
    record_time: datetime
    occur_time: datetime
    source_system: str
    source_reference: str
    run_id: str
    attempt: int
    hold_id: str
    corrects_sequence: int
    flags: EntryFlag
    description: str
    leaf: bytes
    leaf_hash: bytes
    _facts: dict[str, Any] | None = field(default=None, compare=False, repr=False)

    def facts(self) -> dict[str, Any]:
        """Return what the leaf says; do not change it."""
        if self._facts is None:
            self._facts = json.loads(self.leaf)
        return self._facts


class Place(NamedTuple):
    """Where in the log a draft is sealed: after the entry whose leaf hash is `previous`."""

    sequence: int
    record_time: datetime
    previous: bytes
    nonce: bytes


def seal(draft: Draft, place: Place) -> Entry:
    """Give the draft its place, and make the leaf that will prove it.

    The leaf names its predecessor's hash, so that whoever alters, removes or reorders one line of
    an exported log is found at that line; the nonce keeps a proof's neighbours from being guessed.
    """
    occur_time = draft.occur_time or place.record_time
    draft.sequence = place.sequence
    facts = _leaf_facts(draft, place, occur_time)
    leaf = canonical_line(facts)
    key = draft.key
    # In the order of the fields, which is quicker than by their names.
    return Entry(
        draft.tenant_id,
        place.sequence,
        draft.kind,
        draft.debit_account_id,
        draft.credit_account_id,
        draft.asset,
        draft.amount,
        draft.debit_balance,
        draft.credit_balance,
        place.record_time,
        occur_time,
        key.source_system if key else "",
        key.source_reference if key else "",
        draft.run_id,
        draft.attempt,
        draft.hold_id,
        draft.corrects_sequence(),
        draft.flags,
        draft.description,
        leaf,
        leaf_hash(leaf),
        facts,
    )


def _leaf_facts(draft: Draft, place: Place, occur_time: datetime) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "v": LEAF_VERSION,
        "tenant": draft.tenant_id,
        "sequence": place.sequence,
        "previous": place.previous.hex(),
        "nonce": place.nonce.hex(),
        "kind": draft.kind.name,
        "debit": draft.debit_account_id,
        "credit": draft.credit_account_id,
        "asset": draft.asset.code,
        "amount": format_minor(draft.amount, draft.asset),
        "record_time": format_time(place.record_time),
        "occur_time": format_time(occur_time),
    }
    if draft.debit_balance is not None:
        facts["debit_balance"] = format_minor(draft.debit_balance, draft.asset)
    if draft.credit_balance is not None:
        facts["credit_balance"] = format_minor(draft.credit_balance, draft.asset)
    if draft.key is not None:
        facts["source_system"] = draft.key.source_system
        facts["source_reference"] = draft.key.source_reference
    if draft.run_id:
        facts["run"] = draft.run_id
    if draft.attempt:
        facts["attempt"] = draft.attempt
    if draft.hold_id:
        facts["hold"] = draft.hold_id
    if corrects := draft.corrects_sequence():
        facts["corrects"] = corrects
    if draft.description:
        facts["description"] = draft.description
    if draft.unit:
        facts["unit"] = draft.unit
    if draft.price:
        facts["price"] = draft.price
    return facts
