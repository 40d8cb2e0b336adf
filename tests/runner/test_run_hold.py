"""Runs that spend from one account, over a real Ledger: what is held, and who is refused when."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import pytest

from cogni.ledger.v1.usage_pb2 import ToolCall
from services.executor.amounts import Amount
from services.executor.runner import run_hold
from services.executor.runner.holds import LedgerHolds
from services.executor.runner.journal import Holding, LeaseLostError
from services.executor.runner.run_hold import RunHold
from services.executor.runner.stopping import RunStoppedError
from services.executor.store.usage import Outstanding, PendingCall, Tokens
from services.ledger.holds import HoldState
from services.runtime.ids import new_id
from tests.ledger.conftest import record, unit
from tests.runner.bank import FUNDS, Bank
from tests.runner.fleet import TENANT

_SUMS = """
SELECT balance, held,
    (SELECT coalesce(sum(remaining), 0) FROM holds WHERE account_id = $1) AS remaining
FROM balances WHERE account_id = $1
"""
UPPER = Decimal("0.4")
#: Tests that wait for the Ledger give it this long.
DEADLINE_SECONDS = 60.0


@dataclass
class Spender:
    """One run: its attempt's hold, and the calls that the Executor's database would know of."""

    bank: Bank
    holding: Holding
    pending: dict[str, Decimal] = field(default_factory=dict)
    stored: dict[str, Decimal] = field(default_factory=dict)
    recorded: Decimal = Decimal(0)
    charged: Decimal = Decimal(0)
    hold: RunHold = field(init=False)

    def __post_init__(self) -> None:
        self.hold = RunHold(self.bank.holds, self.holding, self.bank.account_id, self._outstanding)

    async def _outstanding(self) -> Outstanding:
        return Outstanding(dict(self.pending), dict(self.stored), self.recorded, self.charged)

    @classmethod
    def of(cls, bank: Bank) -> Spender:
        return cls(bank, Holding(new_id(), TENANT, 1, 1))

    def next_attempt(self) -> Spender:
        """Another runner takes over; what the first one knew is gone."""
        self.hold.close()
        holding = replace(
            self.holding, epoch=self.holding.epoch + 1, attempt=self.holding.attempt + 1
        )
        return Spender(self.bank, holding, self.pending, self.stored, self.recorded, self.charged)

    async def open(self, upper: Decimal = UPPER) -> str:
        call = PendingCall(
            call_id=new_id(),
            tenant_id=TENANT,
            run_id=self.holding.run_id,
            attempt=1,
            grant_id="grant",
            account_id=self.bank.account_id,
            node="n",
            model="m",
            provider="p",
            upper_bound=Tokens(),
            upper_cost=Amount("USD", upper),
            rework=False,
        )
        await self.hold.cover(call)
        self.pending[call.call_id] = upper
        return call.call_id

    def settle(self, call_id: str, cost: Decimal) -> None:
        self.hold.settled(call_id, Amount("USD", cost))
        del self.pending[call_id]
        self.stored[call_id] = cost

    async def deliver(self, call_id: str) -> None:
        """Bring the call to the Ledger, and note a little later that it is there."""
        usage = unit(
            self.bank.account_id,
            f"{self.stored[call_id]:f}",
            run_id=self.holding.run_id,
            source_reference=call_id,
        )
        (outcome,) = await record(self.bank.ledger.executor(TENANT), usage)
        assert outcome.charge.overrun.value == "0", "the account was passed"
        await asyncio.sleep(0)
        self.charged += Decimal(outcome.charge.amount.value)
        self.recorded += self.stored.pop(call_id)

    async def spend(self, cost: Decimal, upper: Decimal = UPPER) -> None:
        call_id = await self.open(upper)
        self.settle(call_id, cost)
        await self.deliver(call_id)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which RPCs the runner sends."""
    sent: list[str] = []
    send = LedgerHolds._send

    def note(self: LedgerHolds, method: str, request: Any, token: str) -> Any:
        sent.append(method)
        return send(self, method, request, token)

    monkeypatch.setattr(LedgerHolds, "_send", note)
    return sent


async def test_fifty_runs_never_pass_the_account_and_none_is_refused_that_fits(
    bank: Bank,
) -> None:
    dice, refusals, looks = random.Random(4711), list[Spender](), list[Decimal]()
    over = asyncio.Event()

    async def watch() -> None:
        while not over.is_set():
            async with bank.ledger.database.raw_tenant(TENANT) as tx:
                row = await tx.fetchrow(_SUMS, bank.account_id)
            assert row["held"] == row["remaining"]
            assert 0 <= row["held"] <= row["balance"]
            looks.append(row["held"])

    async def live(spender: Spender) -> None:
        for _ in range(4):
            upper = UPPER * dice.choice((1, 1, 2, 3, 8)) / 4
            try:
                call_id = await spender.open(upper)
            except RunStoppedError as refusal:
                await _check_refused_rightly(bank, spender, upper, refusal)
                refusals.append(spender)
                break
            await asyncio.sleep(0)
            spender.settle(call_id, upper * dice.randint(0, 4) / 20)
            await spender.deliver(call_id)
        await spender.hold.shrink()

    watching = asyncio.create_task(watch())
    runs = [Spender.of(bank) for _ in range(50)]
    async with asyncio.timeout(DEADLINE_SECONDS):
        await asyncio.gather(*(live(run) for run in runs))
    over.set()
    await watching
    assert max(looks) > 0

    # 50 runs with 0.3 on average do not fit into 10 at once, and some have come to their end.
    assert 0 < len(refusals) < 50
    assert await bank.held() == 0
    spent = sum((run.recorded for run in runs), Decimal(0))
    assert await bank.available() == FUNDS - spent


async def _check_refused_rightly(
    bank: Bank, spender: Spender, upper: Decimal, refusal: RunStoppedError
) -> None:
    """The bound did not fit into what was left of the run's own hold and unheld by anybody."""
    said = str(refusal)
    assert refusal.error.reason == "BUDGET_EXHAUSTED"
    hold = await bank.hold_of(spender.holding.run_id)
    remaining = Decimal(hold.remaining).scaleb(-12) if hold else Decimal(0)
    owed = sum((*spender.pending.values(), *spender.stored.values()), Decimal(0))
    unheld = Decimal(said.split(" has ")[2].split()[0])
    assert upper > remaining - owed + unheld, said


async def test_a_run_asks_ever_more_seldom_as_it_goes_on(bank: Bank, asked: list[str]) -> None:
    run = Spender.of(bank)

    for _ in range(64):
        await run.spend(Decimal("0.01"))

    # 1, 2, 4, 8, 16, 32, 48, 64: each time what it spent so far, at most sixteen calls ahead.
    assert 5 <= len(asked) <= 9
    assert await bank.held() <= UPPER + 16 * Decimal("0.01")


async def test_parallel_calls_share_one_request(bank: Bank, asked: list[str]) -> None:
    run = Spender.of(bank)

    await asyncio.gather(*(run.open() for _ in range(10)))

    assert await bank.held() == 10 * UPPER
    assert len(asked) <= 2


async def test_of_parallel_calls_those_are_refused_that_do_not_fit(bank: Bank) -> None:
    run = Spender.of(bank)

    opened = await asyncio.gather(*(run.open() for _ in range(30)), return_exceptions=True)

    refused = [each for each in opened if isinstance(each, RunStoppedError)]
    assert len(refused) == 5
    assert await bank.held() == FUNDS


async def test_what_a_call_did_not_use_pays_for_the_next(
    bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first call is settled and never delivered, which a refusal would wait for.
    monkeypatch.setattr(run_hold, "_RECORDING_SECONDS_MAX", 0.1)
    run = Spender.of(bank)
    first = await run.open(FUNDS)
    with pytest.raises(RunStoppedError, match="Fund the account"):
        await run.open(Decimal("0.01"))

    run.settle(first, Decimal(4))

    await run.open(Decimal(6))
    with pytest.raises(RunStoppedError):
        await run.open(Decimal("0.01"))


async def test_a_charge_whose_answer_is_on_its_way_does_not_refuse_a_call(bank: Bank) -> None:
    run = Spender.of(bank)
    call_id = await run.open(Decimal(6))
    run.settle(call_id, Decimal(6))
    usage = unit(bank.account_id, "6", run_id=run.holding.run_id, source_reference=call_id)
    await record(bank.ledger.executor(TENANT), usage)

    opening = asyncio.create_task(run.open(Decimal(4)))
    # The Ledger has charged it, and only the Executor does not know yet.
    done, _ = await asyncio.wait({opening}, timeout=0.2)
    assert not done
    run.recorded += run.stored.pop(call_id)

    await asyncio.wait_for(opening, DEADLINE_SECONDS)


async def test_the_next_attempt_takes_over_the_hold_with_what_the_lost_one_left_pending(
    bank: Bank,
) -> None:
    first = Spender.of(bank)
    lost = await first.open(Decimal(3))

    # Killed between the Ledger's answer and anything it would have written down.
    second = first.next_attempt()
    await second.open(Decimal(2))

    assert await bank.held() == 5
    hold = await bank.hold_of(second.holding.run_id)
    assert hold is not None
    assert (hold.epoch, hold.unsettled) == (2, hold.remaining)
    with pytest.raises(LeaseLostError):
        await first.open(Decimal(3))
    with pytest.raises(RunStoppedError):
        await second.open(Decimal("5.01"))
    second.settle(lost, Decimal(1))
    await second.open(Decimal(7))


async def test_a_hold_that_was_placed_and_never_heard_of_is_used(
    bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Spender.of(bank)
    send = LedgerHolds._send

    def die_after(self: LedgerHolds, method: str, request: Any, token: str) -> Any:
        send(self, method, request, token)
        raise asyncio.CancelledError

    monkeypatch.setattr(LedgerHolds, "_send", die_after)
    with pytest.raises(asyncio.CancelledError):
        await run.open(FUNDS)
    monkeypatch.setattr(LedgerHolds, "_send", send)
    assert await bank.held() == FUNDS

    await run.next_attempt().open(FUNDS)

    assert await bank.held() == FUNDS


async def test_a_run_that_waits_keeps_only_what_its_calls_need_and_comes_back(
    bank: Bank,
) -> None:
    run = Spender.of(bank)
    await run.spend(Decimal("0.1"), Decimal(5))
    under_way = await run.open(Decimal(1))

    await run.hold.shrink()

    assert await bank.held() == 1
    run.settle(under_way, Decimal(0))
    await run.hold.shrink()
    assert await bank.held() == 0
    resumed = run.next_attempt()
    await resumed.open(Decimal(2))
    assert await bank.held() == 2
    hold = await bank.hold_of(run.holding.run_id)
    assert hold is not None
    assert hold.state is HoldState.ACTIVE


async def test_a_ledger_that_is_away_is_waited_for(
    bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Spender.of(bank)
    await bank.ledger.served.stop()
    opening = asyncio.create_task(run.open())
    done, _ = await asyncio.wait({opening}, timeout=0.2)

    assert not done
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    assert not run.pending


async def test_calls_that_fit_need_no_ledger(bank: Bank) -> None:
    run = Spender.of(bank)
    run.settle(await run.open(Decimal(5)), Decimal(1))
    await bank.ledger.served.stop()

    await run.open(Decimal(4))


async def test_a_price_above_ours_is_learnt_from_what_the_ledger_took(bank: Bank) -> None:
    run = Spender.of(bank)
    call_id = await run.open(Decimal(1))
    run.settle(call_id, Decimal("0.5"))
    run.stored[call_id] = Decimal("0.75")
    await run.deliver(call_id)
    run.recorded = Decimal("0.5")
    await run.open(Decimal(2))

    await run.open(Decimal(2))

    # Twice two and half a dollar ahead, at one and a half times our price.
    assert await bank.held() == Decimal("6.75")


async def test_what_tools_cost_takes_nothing_from_the_hold_and_does_not_raise_its_prices(
    bank: Bank,
) -> None:
    run = Spender.of(bank)
    call_id = await run.open(Decimal(4))
    tool = ToolCall(tool="search")
    charged = unit(bank.account_id, "3", run_id=run.holding.run_id, tool_call=tool)
    await record(bank.ledger.executor(TENANT), charged)
    run.settle(call_id, Decimal("0.5"))
    await run.deliver(call_id)

    assert await bank.held() == Decimal("3.5"), "the run reckons with it, and knows no tool"
    await run.open(Decimal(4))

    # Four and half a dollar ahead, and not seven times that.
    assert await bank.held() == Decimal("4.5")


@pytest.mark.parametrize(("kind", "asset"), [(2, "USD"), (1, "USDC")])
async def test_an_account_that_cannot_be_held_in_dollars_is_charged_as_ever(
    bank: Bank, kind: int, asset: str
) -> None:
    bank.account_id = await bank.ledger.account(tenant=TENANT, kind=kind, asset=asset)
    bank.tokens.account_id = bank.account_id

    await Spender.of(bank).open()
