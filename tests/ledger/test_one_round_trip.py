"""New usage is posted in one statement, and whatever that statement finds otherwise is seen."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ledger.accounts import Account, AccountKind
from services.ledger.assets import asset_of
from services.ledger.canonical import canonical_line
from services.ledger.commands import (
    HoldAction,
    HoldCommand,
    HoldOutcome,
    UsageCommand,
    UsageOutcome,
    UsageResult,
)
from services.ledger.directory import Directory, NewAccount
from services.ledger.posting import Poster
from services.ledger.price_books import PriceBooks
from services.ledger.units import Cost, Key, LlmUsage, UsageUnit
from services.runtime.caller import Caller, CallerKind
from services.runtime.database import Database
from services.runtime.ids import new_id

PAST = datetime(2020, 1, 1, tzinfo=UTC)
CALLER = Caller(CallerKind.USER, "me", "acme", frozenset({"ledger:admin"}))


class CountingDatabase:
    """A database that counts the transactions and the single statements asked of it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.transactions = self.statements = 0

    def raw_tenant(self, *tenant_ids: str) -> Any:
        self.transactions += 1
        return self._database.raw_tenant(*tenant_ids)

    def lane(self) -> Any:
        return _CountingLane(self, self._database.lane())


class _CountingLane:
    def __init__(self, database: CountingDatabase, lane: Any) -> None:
        self._database, self._lane = database, lane

    async def fetchrow(self, query: str, *arguments: Any) -> Any:
        self._database.statements += 1
        return await self._lane.fetchrow(query, *arguments)


@dataclass
class World:
    """Two processes that post to one tenant's log, and one account."""

    database: Database
    counted: list[CountingDatabase]
    posters: list[Poster]
    account: Account

    def command(self, reference: str = "", cost: str = "1", run_id: str = "") -> UsageCommand:
        key = Key("acme", "executor", reference or new_id())
        one = UsageUnit(
            key,
            self.account.account_id,
            LlmUsage("m", "p", {"INPUT": 1}),
            PAST,
            run_id=run_id,
            attempt=1 if run_id else 0,
            cost=Cost("USD", cost),
        )
        return UsageCommand(key, one.payload_hash(), one, self.account)

    async def hold(self, run_id: str) -> None:
        """Set five dollars aside for a run."""
        placing = HoldCommand(
            Key("acme", "test", new_id()),
            b"h" * 32,
            HoldAction.PLACE,
            run_id,
            self.account,
            amount=5 * 10**12,
            run_id=run_id,
            epoch=1,
            expire_time=datetime.now(UTC) + timedelta(hours=1),
        )
        (outcome,) = await self.posters[0].post([placing])
        assert isinstance(outcome, HoldOutcome)

    async def post(self, process: int, *commands: UsageCommand) -> list[UsageResult]:
        outcomes = await self.posters[process].post(commands)
        return [each.result for each in outcomes if isinstance(each, UsageOutcome)]

    def asked(self, process: int) -> tuple[int, int]:
        """Transactions and single statements since the last time."""
        counted = self.counted[process]
        asked = counted.transactions, counted.statements
        counted.transactions = counted.statements = 0
        return asked


@pytest.fixture
async def world(database: Any) -> World:
    opened: Database = await database("ledger")
    wanted = NewAccount(new_id(), "a", asset_of("USD"), AccountKind.SPENDING, "", 100 * 10**12)
    account, _ = await Directory(opened, new_id).create(CALLER, wanted)
    counted = [CountingDatabase(opened) for _ in range(2)]
    posters = [
        Poster(each, PriceBooks(), secrets.token_bytes)  # type: ignore[arg-type]
        for each in counted
    ]
    return World(opened, counted, posters, account)


async def test_a_batch_of_new_units_is_one_statement_once_its_books_are_known(
    world: World,
) -> None:
    await world.post(0, world.command())
    world.asked(0)

    told = await world.post(0, world.command(), world.command())

    assert told == [UsageResult.CREATED, UsageResult.CREATED]
    assert world.asked(0) == (0, 1)


async def test_a_log_that_another_process_wrote_meanwhile_is_looked_at_again(
    world: World,
) -> None:
    await world.post(0, world.command())
    await world.post(1, world.command())
    world.asked(0)

    told = await world.post(0, world.command())

    assert told == [UsageResult.CREATED]
    assert world.asked(0) == (1, 1)
    async with world.database.raw_tenant("acme") as tx:
        rows = await tx.fetch("SELECT sequence, debit_balance FROM entries ORDER BY sequence")
        balance = await tx.fetchval(
            "SELECT balance FROM balances WHERE account_id = $1", world.account.account_id
        )
    assert [row["sequence"] for row in rows] == [1, 2, 3]
    assert rows[-1]["debit_balance"] == balance == -3 * 10**12


async def test_a_known_key_is_answered_and_another_content_of_it_refused(world: World) -> None:
    first = world.command("same")
    await world.post(0, world.command())
    await world.post(0, first)

    told = await world.post(0, first, world.command("same", "2"), world.command())

    assert told == [UsageResult.EXISTS, UsageResult.CONFLICT, UsageResult.CREATED]


async def test_charges_of_a_run_take_from_its_hold_in_one_statement_too(world: World) -> None:
    run_id, without = new_id(), new_id()
    await world.hold(run_id)
    await world.post(0, world.command(run_id=run_id), world.command(run_id=without))
    world.asked(0)

    await world.post(0, world.command(cost="3", run_id=run_id), world.command(run_id=without))
    assert world.asked(0) == (0, 1)
    await world.post(0, world.command(cost="3", run_id=run_id))
    assert world.asked(0) == (0, 1)

    async with world.database.raw_tenant("acme") as tx:
        hold = await tx.fetchrow("SELECT remaining, spent FROM holds")
        balance = await tx.fetchrow(
            "SELECT balance, held FROM balances WHERE account_id = $1", world.account.account_id
        )
    assert tuple(hold) == (0, 5 * 10**12)
    assert tuple(balance) == (-9 * 10**12, 0)


async def test_a_hold_that_changed_meanwhile_is_looked_at_again(world: World) -> None:
    run_id = new_id()
    await world.hold(run_id)
    await world.post(0, world.command(run_id=run_id))
    prepared = world.posters[0]._usage.prepare([world.command(run_id=run_id)])
    assert prepared is not None
    async with world.database.raw_tenant("acme") as tx:
        await tx.execute("UPDATE holds SET remaining = remaining - 1")

    assert await world.posters[0]._usage.write(prepared) is None


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE balances SET has_budget = true",
        "UPDATE balances SET held = 1",
        "UPDATE balances SET balance = balance - 1",
        "UPDATE log_heads SET price_epoch = price_epoch + 1",
        "UPDATE log_heads SET last_leaf_hash = '\\x00'",
    ],
)
async def test_nothing_is_written_on_a_belief_that_is_wrong(world: World, change: str) -> None:
    await world.post(0, world.command())
    prepared = world.posters[0]._usage.prepare([world.command()])
    assert prepared is not None
    async with world.database.raw_tenant("acme") as tx:
        await tx.execute(change)

    answers = await world.posters[0]._usage.write(prepared)

    assert answers is None
    async with world.database.raw_tenant("acme") as tx:
        assert await tx.fetchval("SELECT count(*) FROM entries") == 1


async def test_record_times_are_the_databases_and_never_ahead_of_it(world: World) -> None:
    await world.post(0, world.command())
    await world.post(0, world.command())

    async with world.database.raw_tenant("acme") as tx:
        lag = await tx.fetchval("SELECT cogni_now() - max(record_time) FROM entries")
    assert 0 <= lag.total_seconds() < 60


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
facts = st.dictionaries(
    texts,
    st.recursive(
        texts | st.integers(-(2**53), 2**53) | st.just(True),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
        max_leaves=8,
    ),
    max_size=6,
)


@given(facts)
def test_the_canonical_form_is_what_the_standard_library_writes(fact: dict[str, Any]) -> None:
    written = json.dumps(fact, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    assert canonical_line(fact) == written.encode()
