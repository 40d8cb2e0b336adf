"""Posts a batch of commands in one transaction: read, lock, apply in memory, append, commit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from services.ledger.accounts import Account
from services.ledger.appending import Appender
from services.ledger.book import Book, Position
from services.ledger.commands import (
    Charge,
    Command,
    Outcome,
    TransferCommand,
    UsageCommand,
    UsageOutcome,
    UsageResult,
)
from services.ledger.entries import Draft, Entry
from services.ledger.price_books import PriceBooks
from services.ledger.pricing import Price, price_unit
from services.ledger.store import Transaction, accounts, entries, holds, keys, log
from services.ledger.store.keys import StoredKey
from services.ledger.store.log import KeyUse
from services.ledger.units import Key, UnitRejectedError
from services.runtime.database import Database
from services.runtime.errors import ServiceError, reused_request_id, unavailable

#: A batch loses a race for the same key at most this often before its callers must retry.
_RACES_MAX = 5


@dataclass(slots=True)
class _Batch:
    """One transaction's work: what is known of each key, and what each command came to."""

    commands: Sequence[Command]
    stored: dict[Key, StoredKey] = field(default_factory=dict)
    originals: dict[Key, Charge] = field(default_factory=dict)
    results: dict[Key, list[Draft] | ServiceError | UnitRejectedError] = field(default_factory=dict)
    first: dict[Key, Command] = field(init=False)

    def __post_init__(self) -> None:
        self.first = {command.key: command for command in reversed(self.commands)}

    def fresh(self) -> list[Command]:
        """Return what has to be applied: the first command of each key that is not stored."""
        return [c for c in self.commands if self.first[c.key] is c and c.key not in self.stored]


class Poster:
    """Posts batches. The only writer of entries, balances and their keys."""

    def __init__(
        self, database: Database, prices: PriceBooks, nonces: Callable[[int], bytes]
    ) -> None:
        self._database = database
        self._prices = prices
        self._appender = Appender(nonces)

    async def post(self, commands: Sequence[Command]) -> list[Outcome]:
        """Apply the commands in their order, commit, and return what each came to.

        Commands whose key was used before are answered from what is stored. Raises ServiceError
        UNAVAILABLE when the database is, in which case everything may be posted again.
        """
        tenants = sorted({command.key.tenant_id for command in commands})
        for _ in range(_RACES_MAX):
            try:
                async with self._database.raw_tenant(*tenants) as tx:
                    return await self._post(tx, _Batch(commands))
            except log.DuplicateKeyError:
                # Another process committed one of these keys: the next look finds it.
                continue
        raise unavailable("Others are recording the same units at the same time; retry.")

    async def _post(self, tx: Transaction, batch: _Batch) -> list[Outcome]:
        await self._find_keys(tx, batch)
        fresh = batch.fresh()
        entries_of: dict[int, Entry] = {}
        if fresh:
            book = await self._open_book(tx, batch, fresh)
            await self._apply(tx, book, batch, fresh)
            used = [use for c in fresh if (use := _key_use(c, batch.results[c.key])) is not None]
            if used:
                entries_of = await self._appender.append(tx, book, used)
        return await self._answers(tx, batch, entries_of)

    async def _find_keys(self, tx: Transaction, batch: _Batch) -> None:
        corrected = {
            command.key._replace(source_reference=command.unit.corrects)
            for command in batch.commands
            if isinstance(command, UsageCommand) and command.unit.corrects
        }
        wanted = {command.key for command in batch.commands} | corrected
        batch.stored = await keys.find(tx, wanted)
        places = {
            key: (key.tenant_id, batch.stored[key].sequence or 0)
            for key in corrected
            if key in batch.stored
        }
        charges = await entries.charges_at(tx, list(places.values()))
        batch.originals = {key: charges[place] for key, place in places.items()}

    async def _open_book(self, tx: Transaction, batch: _Batch, fresh: list[Command]) -> Book:
        """Lock what the commands touch: balances first, holds after them, the log's heads last."""
        touched: dict[tuple[str, str], Account] = {}
        runs: set[tuple[str, str]] = set()
        for command in fresh:
            for account in command.accounts():
                if not account.kind.is_system:
                    touched[account.tenant_id, account.account_id] = account
            if isinstance(command, UsageCommand) and command.unit.run_id:
                runs.add((command.key.tenant_id, command.unit.run_id))
        for charge in batch.originals.values():
            place = (charge.entry.tenant_id, charge.entry.debit_account_id)
            if place not in touched:
                (touched[place],) = await accounts.find(tx, place[0], [place[1]])
        balances = await accounts.lock_balances(tx, touched)
        positions = [
            Position(account, balances[place].balance, balances[place].held or 0)
            for place, account in touched.items()
        ]
        return Book(positions, await holds.lock(tx, runs), batch.originals)

    async def _apply(
        self, tx: Transaction, book: Book, batch: _Batch, fresh: list[Command]
    ) -> None:
        tenants = {c.key.tenant_id for c in fresh if isinstance(c, UsageCommand)}
        epochs = await log.price_epochs(tx, tenants) if tenants else {}
        for command in fresh:
            try:
                if isinstance(command, TransferCommand):
                    drafts = [book.transfer(command)]
                else:
                    price = await self._price(tx, command, epochs[command.key.tenant_id])
                    drafts = book.record(command.unit, price)
            except (ServiceError, UnitRejectedError) as refusal:
                batch.results[command.key] = refusal
            else:
                batch.results[command.key] = drafts

    async def _price(self, tx: Transaction, command: UsageCommand, epoch: int) -> Price:
        unit, asset = command.unit, command.account.asset
        assert unit.occur_time is not None
        card = await self._prices.in_force(tx, command.key.tenant_id, epoch, asset, unit.occur_time)
        return price_unit(unit, asset, card)

    async def _answers(
        self, tx: Transaction, batch: _Batch, sealed: dict[int, Entry]
    ) -> list[Outcome]:
        known = [
            (key.tenant_id, stored.sequence)
            for key, stored in batch.stored.items()
            if stored.sequence is not None
        ]
        charges = await entries.charges_at(tx, known)
        answered: set[Key] = set()
        answers: list[Outcome] = []
        for command in batch.commands:
            stored = batch.stored.get(command.key)
            if stored is not None:
                place = (command.key.tenant_id, stored.sequence or 0)
                answers.append(_replay(command, stored, charges.get(place)))
            else:
                answers.append(_answer(command, batch, sealed, command.key in answered))
                answered.add(command.key)
        return answers


def _key_use(
    command: Command, result: list[Draft] | ServiceError | UnitRejectedError
) -> KeyUse | None:
    """Return how the command's key is stored: a rejected unit's stays free."""
    if isinstance(result, UnitRejectedError):
        return None
    if isinstance(result, ServiceError):
        return KeyUse(command.key, command.payload_hash, refusal=keys.pack_refusal(result))
    return KeyUse(command.key, command.payload_hash, draft=result[0])


def _replay(command: Command, stored: StoredKey, charge: Charge | None) -> Outcome:
    """Answer a command whose key was used before this batch."""
    same = stored.payload_hash == command.payload_hash
    if isinstance(command, UsageCommand):
        if not same:
            return UsageOutcome(UsageResult.CONFLICT)
        return UsageOutcome(UsageResult.EXISTS, charge)
    if not same:
        return reused_request_id(command.key.source_reference)
    if charge is None:
        return stored.refused() or reused_request_id(command.key.source_reference)
    return charge.entry


def _answer(command: Command, batch: _Batch, sealed: dict[int, Entry], is_repeat: bool) -> Outcome:
    """Answer a command of this batch; a repeat is a later one with the key of an earlier."""
    result = batch.results[command.key]
    same = batch.first[command.key].payload_hash == command.payload_hash
    if isinstance(command, UsageCommand):
        if isinstance(result, UnitRejectedError):
            return UsageOutcome(UsageResult.REJECTED, violations=(result.violation,))
        if not same or isinstance(result, ServiceError):
            return UsageOutcome(UsageResult.CONFLICT)
        charge = Charge(sealed[id(result[0])], sealed[id(result[1])] if result[1:] else None)
        return UsageOutcome(UsageResult.EXISTS if is_repeat else UsageResult.CREATED, charge)
    if not same:
        return reused_request_id(command.key.source_reference)
    if isinstance(result, ServiceError):
        return result
    assert not isinstance(result, UnitRejectedError)
    return sealed[id(result[0])]
