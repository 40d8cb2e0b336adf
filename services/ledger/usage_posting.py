"""Posts batches of new usage in one round trip, by what this process remembers of the books.

A batch that locks, reads, writes and commits step by step takes seven round trips, of which six
are waiting. Nearly every batch is nothing but new units on accounts whose balance this process
wrote last; such a batch is made of what is remembered, and one statement compares all of that
under the same locks before it writes and commits. A belief that was wrong costs the statement, and
the batch goes the long way (`Poster`), which looks for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.ledger.appending import Appended, Appender, movements_of
from services.ledger.batch import Batch, answer
from services.ledger.book import Book, Position
from services.ledger.commands import Command, Outcome, UsageCommand
from services.ledger.holds import Hold
from services.ledger.price_books import NotAtHandError, PriceBooks
from services.ledger.pricing import price_unit
from services.ledger.recollection import Recollection
from services.ledger.store import RaceLostError
from services.ledger.store.log import LogHead
from services.ledger.store.post_usage import NewUsage, post_usage
from services.ledger.units import Key, UnitRejectedError
from services.runtime.lane import Lane


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch that is ready to be written."""

    batch: Batch
    appended: Appended
    new: NewUsage


class UsagePosting:
    """Tries the short way."""

    def __init__(
        self, lane: Lane, prices: PriceBooks, appender: Appender, recollection: Recollection
    ) -> None:
        self._lane = lane
        self._prices = prices
        self._appender = appender
        self._recollection = recollection

    def prepare(self, commands: Sequence[Command]) -> Prepared | None:
        """Make everything there is to write, or None when the batch must go the long way.

        Later batches believe at once that this one will be written as it is.
        """
        units = [command for command in commands if isinstance(command, UsageCommand)]
        if len(units) != len(commands) or any(command.unit.corrects for command in units):
            return None
        before = self._heads(units)
        positions = self._positions(units)
        if before is None or positions is None:
            return None
        holds = self._holds(units, positions)
        if holds is None:
            return None
        batch = Batch(commands)
        book = Book(positions.values(), [hold for hold in holds.values() if hold is not None])
        remaining = {
            place: hold.remaining if hold is not None and hold.is_open else 0
            for place, hold in holds.items()
        }
        try:
            self._apply(batch, book, before)
        except NotAtHandError:
            return None
        if book.remainders or len(book.drafts) != len(before):
            # What rounding leaves over is added up in PostgreSQL; a log that does not grow has no
            # head to compare.
            return None
        heads = {tenant_id: head.copy() for tenant_id, head in before.items()}
        sealed, nodes = self._appender.seal(book, heads)
        entries = list(sealed.values())
        hashes = {command.key: command.payload_hash for command in batch.first.values()}
        believed = {
            place: (known.balance_before, known.held_before)
            for place, known in book.positions.items()
        }
        self._recollection.expect(heads, book.positions.values(), holds)
        new = NewUsage(
            entries,
            hashes,
            nodes,
            movements_of(book, entries),
            before,
            heads,
            believed,
            remaining,
            taken={
                place: had - hold.remaining
                for place, had in remaining.items()
                if (hold := holds[place]) is not None and hold.is_open
            },
        )
        return Prepared(batch, Appended(sealed, {}), new)

    async def write(self, prepared: Prepared) -> list[Outcome] | None:
        """Write and commit, and return what each command came to; None when nothing was written.

        Raises ServiceError UNAVAILABLE when the database is.
        """
        tenants = prepared.new.heads
        try:
            verdict, now = await post_usage(self._lane, prepared.new)
        except RaceLostError:
            verdict = "KNOWN"
        except BaseException:
            self._recollection.forget(tenants)
            raise
        if verdict != "POSTED":
            self._recollection.missed(tenants)
            self._recollection.forget(tenants)
            return None
        self._recollection.hit(tenants)
        self._recollection.tell_time(now)
        return _answers(prepared.batch, prepared.appended)

    def _heads(self, units: list[UsageCommand]) -> dict[str, LogHead] | None:
        heads: dict[str, LogHead] = {}
        for tenant_id in {command.key.tenant_id for command in units}:
            head = self._recollection.head(tenant_id)
            if head is None:
                return None
            heads[tenant_id] = head
        return heads

    def _positions(self, units: list[UsageCommand]) -> dict[tuple[str, str], Position] | None:
        positions: dict[tuple[str, str], Position] = {}
        for command in units:
            account = command.account
            place = (account.tenant_id, account.account_id)
            position = positions.get(place)
            if position is None:
                known = self._recollection.balance(place)
                if known is None:
                    return None
                position = positions[place] = Position(account, *known)
        return positions

    def _holds(
        self, units: list[UsageCommand], positions: dict[tuple[str, str], Position]
    ) -> dict[tuple[str, str], Hold | None] | None:
        """Return what is believed of the units' holds, None when one is not known.

        Where nothing is held on the account, no hold has anything to give.
        """
        holds: dict[tuple[str, str], Hold | None] = {}
        for command in units:
            account, run_id = command.account, command.unit.run_id
            place = (account.tenant_id, run_id)
            if not run_id or place in holds:
                continue
            if positions[account.tenant_id, account.account_id].held:
                try:
                    holds[place] = self._recollection.hold(place)
                except KeyError:
                    return None
        return holds

    def _apply(self, batch: Batch, book: Book, heads: dict[str, LogHead]) -> None:
        for command in batch.fresh():
            assert isinstance(command, UsageCommand)
            unit, asset = command.unit, command.account.asset
            assert unit.occur_time is not None
            tenant_id = command.key.tenant_id
            card = self._prices.at_hand(
                tenant_id, heads[tenant_id].price_epoch, asset, unit.occur_time
            )
            try:
                batch.results[command.key] = book.record(unit, price_unit(unit, asset, card))
            except UnitRejectedError as refusal:
                batch.results[command.key] = refusal


def _answers(batch: Batch, appended: Appended) -> list[Outcome]:
    answered: set[Key] = set()
    answers: list[Outcome] = []
    for command in batch.commands:
        answers.append(answer(command, batch, appended, command.key in answered))
        answered.add(command.key)
    return answers
