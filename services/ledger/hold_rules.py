"""What placing, raising, settling, releasing and expiring a hold do to the book."""

from __future__ import annotations

from services.ledger.book import Book, Position, insufficient_funds
from services.ledger.commands import HoldAction, HoldCommand
from services.ledger.entries import Draft, EntryKind
from services.ledger.holds import Hold, HoldState
from services.ledger.money import format_minor
from services.runtime.errors import failed_precondition, not_found


def apply_hold(book: Book, command: HoldCommand) -> list[Draft]:
    """Do what the command asks; return the settlement's draft, none for the other actions.

    Raises ServiceError, and then changes nothing.
    """
    position = book.position(command.key.tenant_id, command.account.account_id)
    hold = book.holds.get((command.key.tenant_id, command.hold_id))
    if command.action is HoldAction.PLACE:
        _place(book, position, hold, command)
        return []
    if hold is None:
        raise not_found("hold", command.hold_id)
    match command.action:
        case HoldAction.TOP_UP:
            hold.check_open()
            _raise_by(book, position, hold, command, command.amount)
        case HoldAction.RELEASE:
            _release(position, hold, command)
        case HoldAction.EXPIRE:
            _expire(position, hold, command)
        case HoldAction.SETTLE:
            return [_settle(book, position, hold, command)]
    return []


def _place(book: Book, position: Position, hold: Hold | None, command: HoldCommand) -> None:
    if hold is None:
        assert command.expire_time is not None
        hold = Hold(
            command.key.tenant_id,
            command.hold_id,
            command.account.account_id,
            command.run_id,
            command.epoch,
            HoldState.ACTIVE,
            0,
            0,
            0,
            command.expire_time,
        )
        _raise_by(book, position, hold, command, command.amount)
        book.holds[hold.tenant_id, hold.hold_id] = hold
        return
    if hold.account_id != command.account.account_id:
        # What is held of one account must never be counted against another.
        raise failed_precondition(
            "ACCOUNT_NOT_ALLOWED",
            f"The run's hold is on the account {hold.account_id!r}; a run spends from one account.",
            metadata={"account_id": command.account.account_id},
        )
    hold.check_open()
    _raise_by(book, position, hold, command, max(0, command.amount - hold.remaining))


def _raise_by(
    book: Book, position: Position, hold: Hold, command: HoldCommand, amount: int
) -> None:
    left = position.available()
    if amount > left:
        raise insufficient_funds(position.account, left)
    book.check_budget(position, amount)
    hold.fence(command.epoch)
    hold.state = HoldState.ACTIVE
    hold.remaining += amount
    position.held += amount
    if command.expire_time is not None:
        hold.expire_time = command.expire_time
    if command.unsettled is not None:
        hold.unsettled = command.unsettled
    hold.unsettled = min(hold.unsettled, hold.remaining)
    hold.is_changed = True


def _release(position: Position, hold: Hold, command: HoldCommand) -> None:
    if not hold.is_open:
        return
    hold.fence(command.epoch)
    hold.unsettled = min(command.unsettled or 0, hold.remaining)
    position.held -= hold.shrink_to(hold.unsettled)
    # An explicit zero is a value: a run that waits owes nothing and comes back to its hold.
    if command.unsettled is None:
        hold.state = HoldState.RELEASED
    hold.is_changed = True


def _expire(position: Position, hold: Hold, command: HoldCommand) -> None:
    # The hold may have been prolonged since the job saw it: then this is another expiry's turn.
    if hold.state is not HoldState.ACTIVE or hold.expire_time != command.expire_time:
        return
    position.held -= hold.shrink_to(hold.unsettled)
    hold.state = HoldState.EXPIRED
    hold.is_changed = True


def _settle(book: Book, position: Position, hold: Hold, command: HoldCommand) -> Draft:
    assert command.credit is not None
    if hold.run_id:
        raise failed_precondition(
            "HOLD_BELONGS_TO_RUN",
            "A run's money moves by its usage alone; this hold can't be settled by hand.",
            metadata={"hold_id": hold.hold_id},
        )
    hold.check_open()
    if command.amount > hold.remaining:
        left = format_minor(hold.remaining, position.account.asset)
        raise failed_precondition(
            "HOLD_EXCEEDED",
            f"The hold has {left} {position.account.asset.code} left; settle at most that.",
            metadata={"hold_id": hold.hold_id, "remaining": left},
        )
    position.held -= hold.take(command.amount)
    if hold.remaining == 0:
        hold.state = HoldState.SETTLED
    return book.post(
        Draft(
            hold.tenant_id,
            EntryKind.SETTLEMENT,
            hold.account_id,
            command.credit.account_id,
            position.account.asset,
            command.amount,
            key=command.key,
            hold_id=hold.hold_id,
            description=command.description,
        )
    )
