"""What a batch is asked to do, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum, StrEnum

from services.ledger.accounts import Account
from services.ledger.entries import Entry
from services.ledger.holds import Hold
from services.ledger.units import Key, UsageUnit
from services.runtime.errors import ServiceError, Violation

#: The source_system of keys that callers make as request_ids. No caller can name it: a colon is
#: not allowed in theirs.
REQUEST_SYSTEM = "cogni:request"


def request_key(tenant_id: str, rpc: str, request_id: str) -> Key:
    """Return the permanent key of a request: the same id may serve different RPCs."""
    return Key(tenant_id, f"{REQUEST_SYSTEM}:{rpc}", request_id)


@dataclass(frozen=True, slots=True)
class TransferCommand:
    """Move `amount` minor units from one account to another; the caller may do so."""

    key: Key
    payload_hash: bytes
    debit: Account
    credit: Account
    amount: int
    description: str
    occur_time: datetime | None

    def accounts(self) -> tuple[Account, ...]:
        """Return the accounts it touches."""
        return (self.debit, self.credit)


@dataclass(slots=True)
class UsageCommand:
    """Record one well-formed unit of a known account."""

    key: Key
    payload_hash: bytes
    unit: UsageUnit
    account: Account

    def accounts(self) -> tuple[Account, ...]:
        """Return the accounts it touches."""
        return (self.account,)


class HoldAction(StrEnum):
    """What a hold command does."""

    PLACE = "PLACE"
    TOP_UP = "TOP_UP"
    SETTLE = "SETTLE"
    RELEASE = "RELEASE"
    EXPIRE = "EXPIRE"


@dataclass(frozen=True, slots=True)
class HoldCommand:
    """Change one hold on `account`; sums in minor units, `unsettled` None leaves it as it is."""

    key: Key
    payload_hash: bytes
    action: HoldAction
    hold_id: str
    account: Account
    amount: int = 0
    run_id: str = ""
    epoch: int = 0
    expire_time: datetime | None = None
    unsettled: int | None = None
    credit: Account | None = None
    description: str = ""

    def accounts(self) -> tuple[Account, ...]:
        """Return the accounts it touches."""
        return (self.account,) if self.credit is None else (self.account, self.credit)


@dataclass(frozen=True, slots=True)
class CorrectionCommand:
    """Give back `amount` minor units of an entry, or what is left of it when None."""

    key: Key
    payload_hash: bytes
    entry: Entry
    debit: Account
    credit: Account
    amount: int | None
    description: str

    def accounts(self) -> tuple[Account, ...]:
        """Return the accounts of the entry it corrects."""
        return (self.debit, self.credit)


Command = TransferCommand | UsageCommand | HoldCommand | CorrectionCommand


# This and the outcome are not frozen, though nobody changes them: 0.8 µs of each unit less.
@dataclass(slots=True)
class Charge:
    """A unit's charge: its entry, the overrun's if there was one, and what gave it back."""

    entry: Entry
    overrun: Entry | None = None
    corrected_by: int = 0

    @property
    def amount(self) -> int:
        """The whole charge in minor units."""
        return self.entry.amount + (self.overrun.amount if self.overrun else 0)


class UsageResult(IntEnum):
    """What became of a unit; the values are those of the contract."""

    CREATED = 1
    EXISTS = 2
    CONFLICT = 3
    REJECTED = 4


@dataclass(slots=True)
class UsageOutcome:
    """The answer about one unit; violations have fields relative to the unit."""

    result: UsageResult
    charge: Charge | None = None
    violations: tuple[Violation, ...] = ()


@dataclass(frozen=True, slots=True)
class HoldOutcome:
    """A hold as it is after a command, with the settlement's entry if the command settled."""

    hold: Hold
    entry: Entry | None = None


#: What a command came to: its entry, unit's outcome or hold, or the refusal to raise.
Outcome = Entry | UsageOutcome | HoldOutcome | ServiceError
