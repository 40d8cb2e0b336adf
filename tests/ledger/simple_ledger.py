"""A ledger that fits on two pages: what the real one must agree with, whatever happens to it."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.ledger.commands import (
    Command,
    CorrectionCommand,
    HoldAction,
    HoldCommand,
    TransferCommand,
    UsageCommand,
)
from services.ledger.units import Key, ToolUsage

OVERRUN = "overrun"
USAGE = "usage"
USD = 10**12


@dataclass
class SimpleHold:
    account: str
    remaining: int
    unsettled: int
    epoch: int
    state: str = "ACTIVE"


@dataclass
class SimpleLedger:
    """Applies one command after the other; `apply` returns a short word for what came of it."""

    limits: dict[str, int | None]
    balances: dict[str, int] = field(default_factory=dict)
    holds: dict[str, SimpleHold] = field(default_factory=dict)
    answers: dict[Key, tuple[bytes, str]] = field(default_factory=dict)
    charges: dict[Key, tuple[str, int, int]] = field(default_factory=dict)
    replaced: set[Key] = field(default_factory=set)
    corrected: set[Key] = field(default_factory=set)
    given_back: dict[int, int] = field(default_factory=dict)

    def apply(self, command: Command) -> str:
        known = self.answers.get(command.key)
        if known is not None:
            if known[0] != command.payload_hash:
                return "CONFLICT"
            return "EXISTS" if isinstance(command, UsageCommand) else known[1]
        answer = self._decide(command)
        if answer != "REJECTED":
            self.answers[command.key] = (command.payload_hash, answer)
        return answer

    def held(self, account: str) -> int:
        return sum(hold.remaining for hold in self.holds.values() if hold.account == account)

    def available(self, account: str) -> int | None:
        limit = self.limits[account]
        if limit is None:
            return None
        return max(0, self.balances.get(account, 0) + limit - self.held(account))

    def _can_pay(self, account: str, amount: int) -> bool:
        available = self.available(account)
        return available is None or amount <= available

    def _move(self, debit: str, credit: str, amount: int) -> None:
        self.balances[debit] = self.balances.get(debit, 0) - amount
        self.balances[credit] = self.balances.get(credit, 0) + amount

    def _decide(self, command: Command) -> str:
        match command:
            case TransferCommand():
                debit, credit = command.debit.account_id, command.credit.account_id
                if not self._can_pay(debit, command.amount):
                    return "INSUFFICIENT_FUNDS"
                self._move(debit, credit, command.amount)
                return "MOVED"
            case UsageCommand():
                return self._charge(command)
            case CorrectionCommand():
                return self._correct(command)
            case HoldCommand(action=HoldAction.SETTLE):
                return self._settle(command)
            case HoldCommand():
                return self._hold(command)

    def _charge(self, command: UsageCommand) -> str:
        unit, account = command.unit, command.account.account_id
        assert unit.cost is not None
        amount = int(unit.cost.value) * USD
        if unit.corrects:
            key = command.key._replace(source_reference=unit.corrects)
            if key not in self.charges or key in self.corrected:
                return "REJECTED"
            self.corrected.add(key)
            self.replaced.add(key)
            payer, paid, overrun = self.charges[key]
            self._move(USAGE, payer, paid)
            self._move(USAGE, OVERRUN, overrun)
        hold = self.holds.get(unit.run_id)
        if hold is not None and hold.account == account and hold.state in ("ACTIVE", "EXPIRED"):
            wanted = amount
            if isinstance(unit.usage, ToolUsage):
                wanted = max(0, amount - (self.available(account) or 0))
            hold.remaining -= min(hold.remaining, wanted)
            hold.unsettled = min(hold.unsettled, hold.remaining)
        available = self.available(account)
        paid = amount if available is None else min(amount, available)
        self._move(account, USAGE, paid)
        self._move(OVERRUN, USAGE, amount - paid)
        self.charges[command.key] = (account, paid, amount - paid)
        return "CREATED"

    def _correct(self, command: CorrectionCommand) -> str:
        entry = command.entry
        key = Key(entry.tenant_id, entry.source_system, entry.source_reference)
        left = 0 if key in self.replaced else entry.amount
        left -= self.given_back.get(entry.sequence, 0)
        amount = left if command.amount is None else command.amount
        if amount > left or left <= 0:
            return "CORRECTION_EXCEEDS_ENTRY"
        credit = entry.credit_account_id
        if credit in self.limits and not self._can_pay(credit, amount):
            return "INSUFFICIENT_FUNDS"
        self._move(credit if credit in self.limits else USAGE, entry.debit_account_id, amount)
        self.given_back[entry.sequence] = self.given_back.get(entry.sequence, 0) + amount
        if key in self.charges:
            self.corrected.add(key)
        return "MOVED"

    def _hold(self, command: HoldCommand) -> str:
        hold, account = self.holds.get(command.hold_id), command.account.account_id
        if command.action is HoldAction.RELEASE and hold and hold.state in ("RELEASED", "SETTLED"):
            return "HELD"
        if command.action is HoldAction.EXPIRE:
            return self._expire(hold)
        if hold is None:
            if command.action is not HoldAction.PLACE:
                return "NOT_FOUND"
            hold = SimpleHold(account, 0, 0, command.epoch)
        elif hold.state not in ("ACTIVE", "EXPIRED"):
            return "HOLD_CLOSED"
        if command.action is HoldAction.RELEASE:
            return self._release(hold, command)
        more = command.amount
        if command.action is HoldAction.PLACE:
            more = max(0, command.amount - hold.remaining)
        if not self._can_pay(account, more):
            return "INSUFFICIENT_FUNDS"
        if command.epoch < hold.epoch:
            return "STALE_ATTEMPT"
        self.holds[command.hold_id] = hold
        hold.epoch, hold.state = command.epoch, "ACTIVE"
        hold.remaining += more
        if command.unsettled is not None:
            hold.unsettled = command.unsettled
        hold.unsettled = min(hold.unsettled, hold.remaining)
        return "HELD"

    def _release(self, hold: SimpleHold, command: HoldCommand) -> str:
        if command.epoch < hold.epoch:
            return "STALE_ATTEMPT"
        hold.epoch = command.epoch
        hold.remaining = hold.unsettled = min(command.unsettled or 0, hold.remaining)
        if command.unsettled is None:
            hold.state = "RELEASED"
        return "HELD"

    def _expire(self, hold: SimpleHold | None) -> str:
        if hold is None:
            return "NOT_FOUND"
        if hold.state == "ACTIVE":
            hold.remaining, hold.state = hold.unsettled, "EXPIRED"
        return "HELD"

    def _settle(self, command: HoldCommand) -> str:
        hold = self.holds.get(command.hold_id)
        if hold is None:
            return "NOT_FOUND"
        if command.run_id or hold.epoch:
            return "HOLD_BELONGS_TO_RUN"
        if hold.state not in ("ACTIVE", "EXPIRED"):
            return "HOLD_CLOSED"
        if command.amount > hold.remaining:
            return "HOLD_EXCEEDED"
        assert command.credit is not None
        hold.remaining -= command.amount
        hold.unsettled = min(hold.unsettled, hold.remaining)
        if hold.remaining == 0:
            hold.state = "SETTLED"
        self._move(hold.account, command.credit.account_id, command.amount)
        return "HELD"
