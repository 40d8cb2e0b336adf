"""Whatever is asked in whatever order, crashing anywhere: the books agree with a simple model."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from services.ledger.accounts import Account, AccountKind, system_account_id
from services.ledger.assets import asset_of
from services.ledger.canonical import fingerprint
from services.ledger.commands import (
    Command,
    CorrectionCommand,
    HoldAction,
    HoldCommand,
    HoldOutcome,
    Outcome,
    TransferCommand,
    UsageCommand,
    UsageOutcome,
)
from services.ledger.directory import Directory, NewAccount
from services.ledger.entries import Entry, EntryKind
from services.ledger.merkle import EMPTY_ROOT, Frontier, leaf_hash
from services.ledger.posting import Poster
from services.ledger.price_books import PriceBooks
from services.ledger.store import entries, log
from services.ledger.store.entries import EntryFilter
from services.ledger.units import Cost, Key, LlmUsage, ToolUsage, UsageUnit
from services.runtime.caller import Caller, CallerKind
from services.runtime.database import Database
from services.runtime.errors import ServiceError
from services.runtime.ids import new_id
from services.runtime.lane import Lane
from tests.databases import Databases
from tests.ledger.simple_ledger import OVERRUN, USAGE, USD, SimpleLedger

LONG = bool(os.environ.get("LONG"))
# A batch needs fewer statements than this, so a crash before each of them is tried.
CRASHES = 20
EXAMPLES = 300 if LONG else 30
FAR = datetime(2100, 1, 1, tzinfo=UTC)
PAST = datetime(2020, 1, 1, tzinfo=UTC)

_ENDINGS = (HoldAction.RELEASE, HoldAction.EXPIRE)
amounts = st.integers(1, 5)
accounts = st.integers(0, 3)
runs = st.integers(0, 2)


class CrashError(Exception):
    """Stands for kill -9 between two steps."""


class _Crashing:
    """A connection whose process dies before its n-th statement."""

    def __init__(self, connection: Any, fuse: list[int]) -> None:
        self._connection, self._fuse = connection, fuse

    def __getattr__(self, name: str) -> Any:
        if self._fuse[0] == 0:
            raise CrashError
        self._fuse[0] -= 1
        return getattr(self._connection, name)


class _CrashingLane:
    """A lane whose process dies before its n-th statement: each is a transaction of its own."""

    def __init__(self, lane: Any, fuse: list[int]) -> None:
        self._lane, self._fuse = lane, fuse

    async def fetchrow(self, query: str, *arguments: Any) -> Any:
        if self._fuse[0] == 0:
            raise CrashError
        self._fuse[0] -= 1
        return await self._lane.fetchrow(query, *arguments)


class CrashingDatabase:
    """A database whose caller dies after so many statements: 0 at once, -1 right after COMMIT."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.fuse = [1_000_000]
        self._lanes: list[Lane] = []

    @asynccontextmanager
    async def raw_tenant(self, *tenant_ids: str) -> AsyncIterator[Any]:
        async with self._database.raw_tenant(*tenant_ids) as connection:
            yield _Crashing(connection, self.fuse)
        if self.fuse[0] < 0:
            raise CrashError

    def lane(self) -> Any:
        self._lanes.append(self._database.lane())
        return _CrashingLane(self._lanes[-1], self.fuse)

    async def give_back(self) -> None:
        """Let the lanes' connections go to the next machine."""
        for lane in self._lanes:
            await lane.give_back()


def word(outcome: Outcome) -> str:
    """The short word for an outcome that SimpleLedger uses."""
    match outcome:
        case UsageOutcome():
            return outcome.result.name
        case HoldOutcome():
            return "HELD"
        case Entry():
            return "MOVED"
        case ServiceError(reason="REQUEST_ID_REUSED"):
            return "CONFLICT"
        case ServiceError():
            return outcome.reason


class LedgerMachine(RuleBasedStateMachine):
    """Queues commands, posts them in batches through processes that crash, and compares."""

    runner: asyncio.Runner
    database: Database

    @initialize()
    def open(self) -> None:
        self.tenant = f"t{secrets.token_hex(8)}"
        self.crashing = CrashingDatabase(self.database)
        # Two processes take turns: what one remembers must not matter to the other.
        self.posters = [
            Poster(self.crashing, PriceBooks(), secrets.token_bytes)  # type: ignore[arg-type]
            for _ in range(2)
        ]
        self.accounts = [self.create(AccountKind.FUNDING, 0)]
        self.accounts += [self.create(AccountKind.SPENDING, limit) for limit in (0, 3, 0)]
        limits = {a.account_id: a.credit_limit for a in self.accounts[1:]}
        self.model = SimpleLedger({**limits, self.accounts[0].account_id: None})
        self.runs = [new_id() for _ in range(3)]
        self.by_hand = [new_id() for _ in range(3)]
        self.queue: list[Command] = []
        self.sent: list[Command] = []
        self.seen: list[Entry] = []
        for spending in (1, 2, 3):
            self.transfer(0, spending, 5)
        self.post([], 0)

    def create(self, kind: AccountKind, limit: int) -> Account:
        directory = Directory(self.database, new_id)
        caller = Caller(CallerKind.USER, "me", self.tenant, frozenset({"ledger:admin"}))
        wanted = NewAccount(new_id(), "a", asset_of("USD"), kind, "", limit * USD)
        account, _ = self.runner.run(directory.create(caller, wanted))
        return account

    def key(self) -> Key:
        return Key(self.tenant, "machine", new_id())

    @rule(debit=accounts, credit=accounts, amount=amounts)
    def transfer(self, debit: int, credit: int, amount: int) -> None:
        if debit != credit:
            accounts_ = self.accounts[debit], self.accounts[credit]
            content = fingerprint({"transfer": [debit, credit, amount]})
            self.queue.append(
                TransferCommand(self.key(), content, *accounts_, amount * USD, "", None)
            )

    @rule(
        account=accounts,
        cost=st.integers(0, 6),
        run=runs,
        corrects=st.integers(0, 5),
        used=st.sampled_from([ToolUsage("search"), LlmUsage("m", "p", {"INPUT": 1})]),
    )
    def use(
        self, account: int, cost: int, run: int, corrects: int, used: ToolUsage | LlmUsage
    ) -> None:
        of = self.accounts[account]
        earlier = [c for c in (*self.sent, *self.queue) if isinstance(c, UsageCommand)]
        unit = UsageUnit(
            self.key(),
            of.account_id,
            used,
            PAST,
            self.runs[run],
            1,
            cost=Cost("USD", str(cost)),
            corrects=earlier[-1].key.source_reference if earlier and corrects == 0 else "",
        )
        self.queue.append(UsageCommand(unit.key, unit.payload_hash(), unit, of))

    @rule(
        action=st.sampled_from([HoldAction.PLACE, HoldAction.PLACE, HoldAction.TOP_UP, *_ENDINGS]),
        run=runs,
        amount=amounts,
        epoch=st.integers(1, 3),
        unsettled=st.none() | st.integers(0, 3),
    )
    def hold(
        self, action: HoldAction, run: int, amount: int, epoch: int, unsettled: int | None
    ) -> None:
        # Each run has one account: the grant names it.
        account = self.accounts[run + 1]
        self.queue.append(
            HoldCommand(
                self.key(),
                fingerprint({"hold": [action, run, amount, epoch, str(unsettled)]}),
                action,
                self.runs[run],
                account,
                amount * USD,
                self.runs[run],
                epoch,
                FAR,
                None if unsettled is None else unsettled * USD,
            )
        )

    @rule(
        action=st.sampled_from([HoldAction.PLACE, HoldAction.SETTLE, HoldAction.SETTLE]),
        which=runs,
        credit=accounts,
        amount=amounts,
    )
    def hold_by_hand(self, action: HoldAction, which: int, credit: int, amount: int) -> None:
        account, target = self.accounts[which + 1], self.accounts[credit]
        if account is target:
            return
        self.queue.append(
            HoldCommand(
                self.key(),
                fingerprint({"by hand": [action, which, credit, amount]}),
                action,
                self.by_hand[which],
                account,
                amount * USD,
                expire_time=FAR,
                credit=target if action is HoldAction.SETTLE else None,
            )
        )

    @rule(run=runs)
    def settle_a_runs_hold(self, run: int) -> None:
        self.queue.append(
            HoldCommand(
                self.key(),
                fingerprint({"settle": run}),
                HoldAction.SETTLE,
                self.runs[run],
                self.accounts[run + 1],
                USD,
                credit=self.accounts[0],
            )
        )

    @rule(which=st.integers(0, 50), amount=st.none() | amounts)
    def correct(self, which: int, amount: int | None) -> None:
        kinds = (EntryKind.TRANSFER, EntryKind.CHARGE)
        found = [entry for entry in self.seen if entry.kind in kinds and entry.amount]
        if found:
            entry = found[which % len(found)]
            by_id = {account.account_id: account for account in self.accounts}
            credit = by_id.get(entry.credit_account_id) or self.usage_account()
            content = fingerprint({"correct": [entry.sequence, str(amount)]})
            minor = None if amount is None else amount * USD
            debit = by_id[entry.debit_account_id]
            self.queue.append(
                CorrectionCommand(self.key(), content, entry, debit, credit, minor, "wrong")
            )

    def usage_account(self) -> Account:
        account_id = system_account_id(self.tenant, "USD", AccountKind.USAGE)
        asset = asset_of("USD")
        return Account(self.tenant, account_id, "", asset, AccountKind.USAGE, "", 0, PAST)

    @rule(which=st.integers(0, 100))
    def send_again(self, which: int) -> None:
        # Those that wait too: duplicates inside one batch.
        known = [*self.sent, *self.queue]
        if known:
            self.queue.append(replace(known[which % len(known)]))

    @rule(which=st.integers(0, 100))
    def send_other_content_under_an_old_key(self, which: int) -> None:
        known = [*self.sent, *self.queue]
        if known:
            command = known[which % len(known)]
            self.queue.append(replace(command, payload_hash=fingerprint({"other": which})))

    @rule(
        crashes=st.lists(st.integers(-1, CRASHES), max_size=2),
        process=st.integers(0, 1),
    )
    def post(self, crashes: Sequence[int], process: int) -> None:
        batch, self.queue = self.queue, []
        if not batch:
            return
        committed = self.crash(batch, crashes, process)
        outcomes = self.runner.run(self.posters[1 - process].post(batch))
        expected = [self.model.apply(command) for command in batch]
        told = [word(outcome) for outcome in outcomes]
        if committed:
            # The first answer was lost with its process: what was created exists now.
            expected = ["EXISTS" if each == "CREATED" else each for each in expected]
        assert told == expected
        self.sent += batch
        self.seen += [outcome for outcome in outcomes if isinstance(outcome, Entry)]
        self.seen += [
            outcome.charge.entry
            for outcome in outcomes
            if isinstance(outcome, UsageOutcome) and outcome.charge is not None
        ]

    def crash(self, batch: Sequence[Command], crashes: Sequence[int], process: int) -> bool:
        """Let processes die over the batch; tell whether one of them got as far as COMMIT."""
        committed = False
        for fuse in crashes:
            self.crashing.fuse[0] = fuse if fuse >= 0 else 1_000_000
            try:
                if fuse >= 0:
                    self.runner.run(self.posters[process].post(batch))
                else:
                    self.runner.run(self._die_after_commit(batch, process))
                committed = True
            except CrashError:
                committed = committed or fuse < 0
            self.crashing.fuse[0] = 1_000_000
        return committed

    async def _die_after_commit(self, batch: Sequence[Command], process: int) -> None:
        await self.posters[process].post(batch)
        raise CrashError

    @invariant()
    def the_books_agree_with_the_model(self) -> None:
        if not hasattr(self, "model"):
            return
        balances, held = self.runner.run(self._balances())
        for account in self.accounts:
            expected = self.model.balances.get(account.account_id, 0)
            assert balances[account.account_id] == expected
            assert held[account.account_id] == self.model.held(account.account_id)
        for kind, name in ((AccountKind.USAGE, USAGE), (AccountKind.OVERRUN, OVERRUN)):
            account_id = system_account_id(self.tenant, "USD", kind)
            assert balances[account_id] == self.model.balances.get(name, 0)
        assert sum(balances.values()) == 0

    async def _balances(self) -> tuple[dict[str, int], dict[str, int]]:
        async with self.database.raw_tenant(self.tenant) as tx:
            rows = await tx.fetch("SELECT account_id, balance, held FROM balances")
        return {str(r[0]): int(r[1]) for r in rows}, {str(r[0]): int(r[2]) for r in rows}

    def teardown(self) -> None:
        if hasattr(self, "crashing"):
            self.runner.run(self.crashing.give_back())
        if hasattr(self, "model"):
            self.runner.run(self._check_log())

    async def _check_log(self) -> None:
        async with self.database.raw_tenant(self.tenant) as tx:
            size, packed = await log.read_head(tx, self.tenant)
            found = await entries.list_forward(tx, EntryFilter(self.tenant, 0, size), size + 1)
        assert [entry.sequence for entry in found] == list(range(1, size + 1))
        tree, previous = Frontier(), EMPTY_ROOT
        for entry in found:
            assert entry.facts()["previous"] == previous.hex()
            previous = leaf_hash(entry.leaf)
            tree.append(previous)
        assert tree.root() == Frontier(size, packed).root()


@pytest.fixture
def running(databases: Databases) -> Iterator[type[LedgerMachine]]:
    """The machine on a database of its own, with a loop of its own."""
    with asyncio.Runner() as runner:
        url = runner.run(databases.clone("ledger", "services.ledger"))
        database = Database.open(url, "ledger", application_name="machine")
        yield type("Running", (LedgerMachine,), {"runner": runner, "database": database})
        runner.run(database.close())
        runner.run(databases.drop(url))


@pytest.mark.timeout(600)
def test_the_books_agree_with_a_simple_model_through_crashes(
    running: type[LedgerMachine],
) -> None:
    run_state_machine_as_test(
        running,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=30,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
