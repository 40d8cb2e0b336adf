"""The book of one batch: applies commands to locked balances in memory, entry by entry.

Everything here is pure. A batch reads what it needs under locks, applies its commands one after
the other to this book, and writes the result at once, so every interleaving of callers is some
order of commands on one book.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from services.ledger.accounts import Account, AccountKind, available, system_account_id
from services.ledger.assets import Asset
from services.ledger.budgets import Budget
from services.ledger.commands import Charge, CorrectionCommand, TransferCommand
from services.ledger.entries import NO_FLAGS, Draft, Entry, EntryFlag, EntryKind
from services.ledger.holds import Hold
from services.ledger.money import EXACT, MINOR_MAX, format_minor, round_to_minor
from services.ledger.pricing import Price, PriceSource
from services.ledger.units import Key, ToolUsage, UnitRejectedError, UsageUnit
from services.runtime.errors import ErrorKind, ServiceError, failed_precondition


@dataclass(slots=True)
class Position:
    """One locked account with what it has at this point of the batch, in minor units."""

    account: Account
    balance: int
    held: int
    budget: Budget | None = None
    balance_before: int = field(init=False)
    held_before: int = field(init=False)

    def __post_init__(self) -> None:
        self.balance_before = self.balance
        self.held_before = self.held

    def available(self) -> int:
        """Return what a transfer or hold can still take."""
        return available(self.account, self.balance, self.held)


class Book:
    """Locked accounts and holds, and the drafts that commands have made of them so far."""

    def __init__(
        self,
        positions: Iterable[Position],
        holds: Iterable[Hold] = (),
        originals: Mapping[Key, Charge] | None = None,
    ) -> None:
        """Open the book on what is locked; `originals` are stored charges that units correct."""
        self.positions = {(p.account.tenant_id, p.account.account_id): p for p in positions}
        self.holds = {(hold.tenant_id, hold.hold_id): hold for hold in holds}
        self.drafts: dict[str, list[Draft]] = {}
        self.remainders: dict[tuple[str, Asset], Decimal] = {}
        self.originals = originals or {}
        self._charged: dict[Key, list[Draft]] = {}
        self._replaced_keys: set[Key] = set()
        self._given_back: dict[tuple[str, int], int] = {}

    def position(self, tenant_id: str, account_id: str) -> Position:
        """Return a locked account's position; KeyError when the batch did not lock it."""
        return self.positions[tenant_id, account_id]

    def transfer(self, command: TransferCommand) -> Draft:
        """Move money; raises INSUFFICIENT_FUNDS or BALANCE_OVERFLOW and then moves nothing."""
        debit, credit, amount = command.debit, command.credit, command.amount
        self._check_can_pay(debit, amount)
        self._check_digits(debit, -amount)
        self._check_digits(credit, amount)
        return self.post(
            Draft(
                debit.tenant_id,
                EntryKind.TRANSFER,
                debit.account_id,
                credit.account_id,
                debit.asset,
                amount,
                occur_time=command.occur_time,
                key=command.key,
                description=command.description,
            )
        )

    def record(self, unit: UsageUnit, price: Price) -> list[Draft]:
        """Charge a unit whatever its account has: the part past the limit goes to OVERRUN.

        What the run's hold has set aside pays first, for tools last. A unit that corrects another
        gives back that one's charge before it takes its own. Returns the charge, and after it the
        overrun if there was one. Raises UnitRejectedError, and then changes nothing.
        """
        position = self.position(unit.key.tenant_id, unit.account_id)
        asset = position.account.asset
        amount, remainder = round_to_minor(price.exact, asset)
        if amount > MINOR_MAX:
            raise UnitRejectedError("kind", f"costs more than the Ledger can keep in {asset.code}")
        replaced = self._replaced(unit)
        for entry in replaced:
            self.give_back(
                entry,
                entry.amount,
                key=unit.key,
                description=f"replaced by {unit.key.source_reference}",
            )
        self._carry(unit.key.tenant_id, asset, remainder)
        self._count(position, amount, replaced)
        paid = self._payable(unit, position, amount)
        charge = self._charge_draft(unit, price, EntryKind.CHARGE, unit.account_id, asset, paid)
        charge.unit, charge.price = unit.facts(), self._price_facts(price, amount, remainder, asset)
        drafts = [self.post(charge)]
        if amount > paid:
            overrun_id = system_account_id(unit.key.tenant_id, asset.code, AccountKind.OVERRUN)
            overrun = self._charge_draft(
                unit, price, EntryKind.OVERRUN, overrun_id, asset, amount - paid
            )
            overrun.description = f"past the limit of account {unit.account_id}"
            drafts.append(self.post(overrun))
        self._charged[unit.key] = drafts
        return drafts

    def give_back(self, entry: Draft | Entry, amount: int, *, key: Key, description: str) -> Draft:
        """Give back part of an entry by one in the other direction that names it.

        Bound by the limit of the account it takes from; charges took to USAGE, which has none.
        Raises INSUFFICIENT_FUNDS and then moves nothing.
        """
        payer = self.positions.get((entry.tenant_id, entry.credit_account_id))
        if payer is not None:
            self._check_can_pay(payer.account, amount)
        if isinstance(entry, Entry):
            place = (entry.tenant_id, entry.sequence)
            self._given_back[place] = self._given_back.get(place, 0) + amount
        correction = Draft(
            entry.tenant_id,
            EntryKind.CORRECTION,
            entry.credit_account_id,
            entry.debit_account_id,
            entry.asset,
            amount,
            key=key,
            run_id=entry.run_id,
            attempt=entry.attempt,
            corrects=entry.sequence if isinstance(entry, Entry) else entry,
            description=description,
            flags=entry.flags,
        )
        return self.post(correction)

    def correct(self, command: CorrectionCommand, given_back: int) -> Draft:
        """Give back what a person decided; `given_back` of the entry was given back before.

        Raises CORRECTION_EXCEEDS_ENTRY or INSUFFICIENT_FUNDS and then moves nothing.
        """
        entry = command.entry
        left = entry.amount - given_back
        left -= self._given_back.get((entry.tenant_id, entry.sequence), 0)
        amount = left if command.amount is None else command.amount
        if amount > left or left == 0:
            text = format_minor(left, entry.asset)
            raise failed_precondition(
                "CORRECTION_EXCEEDS_ENTRY",
                f"Of entry {entry.sequence} only {text} {entry.asset.code} is left to give back.",
                metadata={"sequence": str(entry.sequence), "left": text},
            )
        correction = self.give_back(entry, amount, key=command.key, description=command.description)
        spender = self.positions.get((entry.tenant_id, entry.debit_account_id))
        if spender is not None and spender.budget is not None and entry.kind is EntryKind.CHARGE:
            spender.budget.spend(-amount)
        return correction

    def check_budget(self, position: Position, amount: int) -> None:
        """Raise BUDGET_EXHAUSTED when setting aside `amount` more would pass the budget."""
        budget = position.budget
        if budget is None or amount == 0:
            return
        left = max(0, budget.left - position.held)
        if amount > left:
            text = format_minor(left, budget.asset)
            raise failed_precondition(
                "BUDGET_EXHAUSTED",
                f"The account's budget has {text} {budget.asset.code} left in this period; raise "
                "it or wait for the next, then use a new request_id.",
                metadata={"account_id": budget.account_id, "left": text},
            )

    def _count(self, position: Position, amount: int, replaced: list[Draft | Entry]) -> None:
        """Count a charge towards its account's budget, less what it replaces.

        In one step, since nothing is counted below zero: what is replaced may have been counted
        in the period before. The charge, which names the account, comes before its overrun.
        """
        given_back = sum(entry.amount for entry in replaced)
        if replaced and replaced[0].debit_account_id != position.account.account_id:
            payer = self.positions.get((replaced[0].tenant_id, replaced[0].debit_account_id))
            if payer is not None and payer.budget is not None:
                payer.budget.spend(-given_back)
            given_back = 0
        if position.budget is not None:
            position.budget.spend(amount - given_back)

    def _replaced(self, unit: UsageUnit) -> list[Draft | Entry]:
        """Return the entries that a correcting unit gives back, none for others."""
        if not unit.corrects:
            return []
        key = unit.key._replace(source_reference=unit.corrects)
        stored = self.originals.get(key)
        if key in self._replaced_keys or (stored is not None and self._is_corrected(stored)):
            raise UnitRejectedError("corrects_source_reference", "was corrected before")
        replaced: list[Draft | Entry] = [*self._charged.get(key, ())]
        if stored is not None:
            replaced = [entry for entry in (stored.entry, stored.overrun) if entry is not None]
        if not replaced:
            raise UnitRejectedError("corrects_source_reference", "there is no such unit")
        self._replaced_keys.add(key)
        return replaced

    def _is_corrected(self, charge: Charge) -> bool:
        place = (charge.entry.tenant_id, charge.entry.sequence)
        return charge.corrected_by > 0 or place in self._given_back

    def _carry(self, tenant_id: str, asset: Asset, remainder: Decimal) -> None:
        if remainder:
            carried = self.remainders.get((tenant_id, asset), Decimal(0))
            self.remainders[tenant_id, asset] = EXACT.add(carried, remainder)

    def _payable(self, unit: UsageUnit, position: Position, amount: int) -> int:
        hold = self.holds.get((unit.key.tenant_id, unit.run_id)) if unit.run_id else None
        if hold is not None and hold.is_open and hold.account_id == unit.account_id:
            wanted = amount
            if isinstance(unit.usage, ToolUsage):
                # The run reckons with its hold for the model calls it has bounded, and does not
                # know what tools cost: they leave it alone as long as there is other money.
                wanted = max(0, amount - position.available())
            position.held -= hold.take(wanted)
        if not position.account.kind.is_limited:
            return amount
        # What the hold paid is still in the balance here, and no longer held: available() covers
        # both parts.
        return min(amount, position.available())

    def _charge_draft(
        self,
        unit: UsageUnit,
        price: Price,
        kind: EntryKind,
        debit_account_id: str,
        asset: Asset,
        amount: int,
    ) -> Draft:
        flags = NO_FLAGS
        if unit.estimated:
            flags |= EntryFlag.ESTIMATED
        if unit.rework:
            flags |= EntryFlag.REWORK
        if price.source is PriceSource.UNPRICED:
            flags |= EntryFlag.UNPRICED
        return Draft(
            unit.key.tenant_id,
            kind,
            debit_account_id,
            system_account_id(unit.key.tenant_id, asset.code, AccountKind.USAGE),
            asset,
            amount,
            occur_time=unit.occur_time,
            key=unit.key,
            run_id=unit.run_id,
            attempt=unit.attempt,
            flags=flags,
        )

    def _price_facts(
        self, price: Price, amount: int, remainder: Decimal, asset: Asset
    ) -> Mapping[str, object]:
        facts = {**price.facts, "amount": format_minor(amount, asset)}
        if remainder:
            facts["unrounded"] = format(price.exact, "f")
        return facts

    def post(self, draft: Draft) -> Draft:
        """Move a draft's money between the positions and append it to its tenant's log."""
        debited = self.positions.get((draft.tenant_id, draft.debit_account_id))
        if debited is not None:
            debited.balance -= draft.amount
            draft.debit_balance = debited.balance
        credited = self.positions.get((draft.tenant_id, draft.credit_account_id))
        if credited is not None:
            credited.balance += draft.amount
            draft.credit_balance = credited.balance
        self.drafts.setdefault(draft.tenant_id, []).append(draft)
        return draft

    def _check_can_pay(self, account: Account, amount: int) -> None:
        if not account.kind.is_limited:
            return
        left = self.position(account.tenant_id, account.account_id).available()
        if amount > left:
            raise insufficient_funds(account, left)

    def _check_digits(self, account: Account, change: int) -> None:
        position = self.positions.get((account.tenant_id, account.account_id))
        if position is not None and abs(position.balance + change) > MINOR_MAX:
            raise ServiceError(
                ErrorKind.OUT_OF_RANGE,
                "BALANCE_OVERFLOW",
                f"The balance of account {account.account_id!r} would have more than 38 digits.",
                metadata={"account_id": account.account_id},
            )


def insufficient_funds(account: Account, left: int) -> ServiceError:
    """The account has less available than was asked for."""
    text = format_minor(left, account.asset)
    return failed_precondition(
        "INSUFFICIENT_FUNDS",
        f"The account has {text} {account.asset.code} available, which is not enough; fund it, "
        "then use a new request_id.",
        metadata={"account_id": account.account_id, "available": text},
    )
