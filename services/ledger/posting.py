"""Posts a batch of commands in one transaction: read, lock, apply in memory, append, commit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from services.ledger.accounts import Account
from services.ledger.appending import Appended, Appender
from services.ledger.batch import Batch, Result, answer, replay
from services.ledger.book import Book, Position
from services.ledger.commands import (
    Command,
    CorrectionCommand,
    HoldCommand,
    Outcome,
    TransferCommand,
    UsageCommand,
)
from services.ledger.entries import Draft, EntryKind
from services.ledger.hold_rules import apply_hold
from services.ledger.price_books import PriceBooks
from services.ledger.pricing import Price, price_unit
from services.ledger.recollection import Recollection
from services.ledger.store import (
    RaceLostError,
    Transaction,
    accounts,
    budgets,
    entries,
    holds,
    keys,
    log,
)
from services.ledger.store.log import KeyUse
from services.ledger.units import Key, UnitRejectedError
from services.ledger.usage_posting import UsagePosting
from services.runtime.database import Database
from services.runtime.errors import ServiceError, unavailable

#: A batch loses a race for the same key at most this often before its callers must retry.
_RACES_MAX = 5


class Poster:
    """Posts batches. The only writer of entries, balances and their keys."""

    def __init__(
        self, database: Database, prices: PriceBooks, nonces: Callable[[int], bytes]
    ) -> None:
        self._database = database
        self._prices = prices
        self._appender = Appender(nonces)
        self._turn = asyncio.Lock()
        self._is_long_way = False
        self._recollection = Recollection()
        self._usage = UsagePosting(database.lane(), prices, self._appender, self._recollection)

    async def post(self, commands: Sequence[Command]) -> list[Outcome]:
        """Apply the commands in their order, commit, and return what each came to.

        Commands whose key was used before are answered from what is stored. Raises ServiceError
        UNAVAILABLE when the database is, in which case everything may be posted again.
        """
        # Made while the batch before is at PostgreSQL, unless that one goes the long way: nobody
        # knows yet what it will leave behind.
        prepared = None if self._is_long_way else self._usage.prepare(commands)
        # Written in the order of the calls: a lock's waiters are served in turn.
        async with self._turn:
            prepared = prepared or self._usage.prepare(commands)
            if prepared is not None:
                answers = await self._usage.write(prepared)
                if answers is not None:
                    return answers
            self._is_long_way = True
            try:
                return await self._post_step_by_step(commands)
            finally:
                self._is_long_way = False

    async def _post_step_by_step(self, commands: Sequence[Command]) -> list[Outcome]:
        tenants = sorted({command.key.tenant_id for command in commands})
        for _ in range(_RACES_MAX):
            batch = Batch(commands)
            try:
                async with self._database.raw_tenant(*tenants) as tx:
                    answers = await self._post(tx, batch)
            except RaceLostError:
                # Another process committed one of these keys: the next look finds it.
                continue
            except BaseException:
                self._recollection.forget(tenants)
                raise
            self._learn(batch)
            return answers
        raise unavailable("Others are recording the same units at the same time; retry.")

    def _learn(self, batch: Batch) -> None:
        heads = batch.heads
        if heads:
            now = max(head.now for head in heads.values())
            self._recollection.tell_time(now)
            self._recollection.expect(heads, batch.positions, batch.holds)

    async def _post(self, tx: Transaction, batch: Batch) -> list[Outcome]:
        await self._find_keys(tx, batch)
        fresh = batch.fresh()
        appended = Appended({}, {})
        if fresh:
            book = await self._open_book(tx, batch, fresh)
            await self._apply(tx, book, batch, fresh)
            used = [use for c in fresh if (use := _key_use(c, batch.results[c.key])) is not None]
            if used:
                await _keep_budgets(tx, book, batch)
                appended = await self._appender.append(tx, book, used)
                batch.heads, batch.positions = appended.heads, list(book.positions.values())
                batch.holds |= appended.holds
        return await self._answers(tx, batch, appended)

    async def _find_keys(self, tx: Transaction, batch: Batch) -> None:
        replaced = {
            command.key._replace(source_reference=command.unit.corrects)
            for command in batch.commands
            if isinstance(command, UsageCommand) and command.unit.corrects
        }
        corrections = [c for c in batch.commands if isinstance(c, CorrectionCommand)]
        corrected_keys = {
            Key(c.entry.tenant_id, c.entry.source_system, c.entry.source_reference)
            for c in corrections
        }
        await keys.lock_corrected(tx, replaced | corrected_keys)
        batch.stored = await keys.find(tx, {c.key for c in batch.commands} | replaced)
        places = {
            key: (key.tenant_id, sequence)
            for key in replaced
            if key in batch.stored and (sequence := batch.stored[key].sequence) is not None
        }
        charges = await entries.charges_at(tx, list(places.values()))
        # A transfer may have a key of the same source system; a unit replaces units alone.
        batch.originals = {
            key: charges[place]
            for key, place in places.items()
            if charges[place].entry.kind is EntryKind.CHARGE
        }
        batch.given_back = await entries.corrected(
            tx, [(c.entry.tenant_id, c.entry.sequence) for c in corrections]
        )

    async def _open_book(self, tx: Transaction, batch: Batch, fresh: list[Command]) -> Book:
        """Lock what the commands touch: balances first, holds after them, the log's heads last."""
        touched: dict[tuple[str, str], Account] = {}
        wanted: set[tuple[str, str]] = set()
        for command in fresh:
            for account in command.accounts():
                if not account.kind.is_system:
                    touched[account.tenant_id, account.account_id] = account
            if isinstance(command, HoldCommand):
                wanted.add((command.key.tenant_id, command.hold_id))
            elif isinstance(command, UsageCommand) and command.unit.run_id:
                wanted.add((command.key.tenant_id, command.unit.run_id))
        batch.holds = dict.fromkeys(wanted)
        for charge in batch.originals.values():
            place = (charge.entry.tenant_id, charge.entry.debit_account_id)
            if place not in touched:
                (touched[place],) = await accounts.find(tx, place[0], [place[1]])
        locked = await accounts.lock_balances(tx, touched)
        found, now = await budgets.lock(tx, [p for p, each in locked.items() if each.has_budget])
        for budget in found:
            assert now is not None
            batch.standings[budget.tenant_id, budget.account_id] = budget.standing()
            budget.roll(now)
        budget_of = {(budget.tenant_id, budget.account_id): budget for budget in found}
        positions = [
            Position(account, locked[place].balance, locked[place].held, budget_of.get(place))
            for place, account in touched.items()
        ]
        return Book(positions, await holds.lock(tx, wanted), batch.originals)

    async def _apply(self, tx: Transaction, book: Book, batch: Batch, fresh: list[Command]) -> None:
        tenants = {c.key.tenant_id for c in fresh if isinstance(c, UsageCommand)}
        epochs = await log.price_epochs(tx, tenants) if tenants else {}
        for command in fresh:
            try:
                drafts = await self._apply_one(tx, book, batch, command, epochs)
            except (ServiceError, UnitRejectedError) as refusal:
                batch.results[command.key] = refusal
            else:
                batch.results[command.key] = drafts

    async def _apply_one(
        self,
        tx: Transaction,
        book: Book,
        batch: Batch,
        command: Command,
        epochs: dict[str, int],
    ) -> list[Draft]:
        match command:
            case TransferCommand():
                return [book.transfer(command)]
            case HoldCommand():
                return apply_hold(book, command)
            case CorrectionCommand():
                place = (command.entry.tenant_id, command.entry.sequence)
                _, given_back = batch.given_back.get(place, (0, 0))
                return [book.correct(command, given_back)]
            case UsageCommand():
                price = await self._price(tx, command, epochs[command.key.tenant_id])
                return book.record(command.unit, price)

    async def _price(self, tx: Transaction, command: UsageCommand, epoch: int) -> Price:
        unit, asset = command.unit, command.account.asset
        assert unit.occur_time is not None
        card = await self._prices.in_force(tx, command.key.tenant_id, epoch, asset, unit.occur_time)
        return price_unit(unit, asset, card)

    async def _answers(self, tx: Transaction, batch: Batch, appended: Appended) -> list[Outcome]:
        places = [
            (key.tenant_id, stored.sequence)
            for key, stored in batch.stored.items()
            if stored.sequence is not None
        ]
        charges = await entries.charges_at(tx, places)
        answered: set[Key] = set()
        answers: list[Outcome] = []
        for command in batch.commands:
            stored = batch.stored.get(command.key)
            if stored is None:
                answers.append(answer(command, batch, appended, command.key in answered))
                answered.add(command.key)
                continue
            hold = None
            if isinstance(command, HoldCommand) and stored.subject_id is not None:
                hold = await holds.read(tx, command.key.tenant_id, stored.subject_id)
            place = (command.key.tenant_id, stored.sequence or 0)
            answers.append(replay(command, stored, charges.get(place), hold))
        return answers


async def _keep_budgets(tx: Transaction, book: Book, batch: Batch) -> None:
    """Store what was spent, and tell watchers where that changed a budget's standing."""
    kept = [p.budget for p in book.positions.values() if p.budget is not None]
    for budget in kept:
        await budgets.write(tx, budget)
    before = batch.standings
    changed = [b for b in kept if before[b.tenant_id, b.account_id] != b.standing()]
    await budgets.tell(tx, changed)


def _key_use(command: Command, result: Result) -> KeyUse | None:
    """Return how the command's key is stored: a rejected unit's stays free."""
    if isinstance(result, UnitRejectedError):
        return None
    use = KeyUse(command.key, command.payload_hash)
    if isinstance(result, ServiceError):
        return replace(use, refusal=keys.pack_refusal(result))
    subject_id = command.hold_id if isinstance(command, HoldCommand) else None
    return replace(use, draft=result[0] if result else None, subject_id=subject_id)
