"""One batch: what is known of its keys, what its commands came to, and what callers are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from services.ledger.appending import Appended
from services.ledger.book import Position
from services.ledger.commands import (
    Charge,
    Command,
    HoldCommand,
    HoldOutcome,
    Outcome,
    UsageCommand,
    UsageOutcome,
    UsageResult,
)
from services.ledger.entries import Draft
from services.ledger.holds import Hold
from services.ledger.store.keys import StoredKey
from services.ledger.store.log import LogHead
from services.ledger.units import Key, UnitRejectedError
from services.runtime.errors import ServiceError, reused_request_id

Result = list[Draft] | ServiceError | UnitRejectedError


@dataclass(slots=True)
class Batch:
    """The commands of one transaction. `given_back` is by place: first correction, and sum.

    `heads`, `positions` and `holds` are as the batch leaves them, once they are written; None is
    a hold that was looked for and does not exist.
    """

    commands: Sequence[Command]
    stored: dict[Key, StoredKey] = field(default_factory=dict)
    originals: dict[Key, Charge] = field(default_factory=dict)
    given_back: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    standings: dict[tuple[str, str], tuple[object, ...]] = field(default_factory=dict)
    results: dict[Key, Result] = field(default_factory=dict)
    heads: Mapping[str, LogHead] = field(default_factory=dict)
    positions: Sequence[Position] = ()
    holds: dict[tuple[str, str], Hold | None] = field(default_factory=dict)
    first: dict[Key, Command] = field(init=False)

    def __post_init__(self) -> None:
        self.first = {command.key: command for command in reversed(self.commands)}

    def fresh(self) -> list[Command]:
        """Return what has to be applied: the first command of each key that is not stored."""
        return [c for c in self.commands if self.first[c.key] is c and c.key not in self.stored]


def replay(
    command: Command, stored: StoredKey, charge: Charge | None, hold: Hold | None
) -> Outcome:
    """Answer a command whose key was used before this batch."""
    same = stored.payload_hash == command.payload_hash
    if isinstance(command, UsageCommand):
        if not same:
            return UsageOutcome(UsageResult.CONFLICT)
        return UsageOutcome(UsageResult.EXISTS, charge)
    refusal = stored.refused()
    if not same:
        return reused_request_id(command.key.source_reference)
    if refusal is not None:
        return refusal
    entry = None if charge is None else charge.entry
    if isinstance(command, HoldCommand):
        assert hold is not None, "a hold is never deleted"
        return HoldOutcome(hold, entry)
    assert entry is not None, "a key without refusal or hold names an entry"
    return entry


def answer(command: Command, batch: Batch, appended: Appended, is_repeat: bool) -> Outcome:
    """Answer a command of this batch; a repeat is a later one with the key of an earlier."""
    result = batch.results[command.key]
    same = batch.first[command.key].payload_hash == command.payload_hash
    if isinstance(command, UsageCommand):
        return _answer_unit(result, appended, same, is_repeat)
    if not same:
        return reused_request_id(command.key.source_reference)
    if isinstance(result, ServiceError):
        return result
    assert not isinstance(result, UnitRejectedError)
    entry = appended.entries[id(result[0])] if result else None
    if isinstance(command, HoldCommand):
        return HoldOutcome(appended.holds[command.key.tenant_id, command.hold_id], entry)
    assert entry is not None
    return entry


def _answer_unit(result: Result, appended: Appended, same: bool, is_repeat: bool) -> UsageOutcome:
    if isinstance(result, UnitRejectedError):
        return UsageOutcome(UsageResult.REJECTED, violations=(result.violation,))
    if not same or isinstance(result, ServiceError):
        return UsageOutcome(UsageResult.CONFLICT)
    overrun = appended.entries[id(result[1])] if len(result) > 1 else None
    charge = Charge(appended.entries[id(result[0])], overrun)
    return UsageOutcome(UsageResult.EXISTS if is_repeat else UsageResult.CREATED, charge)
