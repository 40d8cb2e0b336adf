"""Failures that other billing systems had, each under the number it was reported as."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Sequence
from decimal import Decimal

import grpc
import pytest

from cogni.ledger.v1 import ledger_service_pb2 as pb
from cogni.ledger.v1 import price_card_pb2, statement_pb2, usage_pb2
from services.ledger.accounts import AccountKind
from services.ledger.assets import asset_of
from services.ledger.commands import Command, Outcome, UsageCommand, UsageOutcome, UsageResult
from services.ledger.directory import Directory, NewAccount
from services.ledger.posting import Poster
from services.ledger.price_books import PriceBooks
from services.ledger.units import Cost, Key, ToolUsage, UsageUnit
from services.ledger.writer import Writer
from services.runtime.caller import Caller, CallerKind
from services.runtime.errors import ServiceError, unavailable
from services.runtime.ids import new_id
from tests.databases import blocks_somebody
from tests.ledger.conftest import (
    Ledger,
    StartLedger,
    one_command,
    record,
    running,
    unit,
    usd,
)
from tests.ledger.test_budgets import setting
from tests.ledger.test_holds import closing, placing
from tests.ledger.test_state_machine import CRASHES, PAST, CrashError, CrashingDatabase


async def test_litellm_38157_a_server_that_stops_under_load_loses_nothing_it_acknowledged(
    start_ledger: StartLedger,
) -> None:
    stopping, surviving = await start_ledger(), await start_ledger()
    account_id = await surviving.account("10")
    sent = [unit(account_id, "0.01") for _ in range(60)]

    async def send(each: usage_pb2.UsageUnit) -> bool:
        try:
            (outcome,) = await record(stopping.executor(), each)
        except grpc.aio.AioRpcError:
            return False
        return outcome.result == usage_pb2.USAGE_RESULT_CREATED

    answered = await asyncio.gather(*(send(each) for each in sent[:30]))
    async with stopping.database.raw_tenant("acme") as tx:
        # The writer stops with the rest in its hands: what it said before its commit is lost.
        await tx.fetch("SELECT FROM balances WHERE account_id = $1 FOR UPDATE", account_id)
        sending = [asyncio.create_task(send(each)) for each in sent[30:]]
        await blocks_somebody(tx)
        await stopping.served.server.stop(0.1)
    acknowledged = [*answered, *await asyncio.gather(*sending)]
    assert all(answered)

    again = await record(surviving.executor(), *sent)
    lost = [
        number
        for number, outcome in enumerate(again)
        if acknowledged[number] and outcome.result != usage_pb2.USAGE_RESULT_EXISTS
    ]
    assert lost == []
    assert (await surviving.balance(account_id)).balance.value == "9.4"


async def test_litellm_33872_what_was_taken_from_the_queue_is_answered_only_after_its_commit() -> (
    None
):
    fails = [True]

    async def post(commands: Sequence[Command]) -> list[Outcome]:
        # The commands have left the queue, and the database dies under them.
        if fails.pop():
            fails.append(False)
            raise unavailable("gone")
        return [UsageOutcome(UsageResult.CREATED) for _ in commands]

    async with running(Writer(post)) as writer:
        with pytest.raises(ServiceError):
            await writer.submit([one_command()])
        (outcome,) = await writer.submit([one_command()])

    assert outcome == UsageOutcome(UsageResult.CREATED)


async def test_litellm_35531_usage_that_waits_in_a_process_that_stops_was_promised_to_nobody() -> (
    None
):
    entered = asyncio.Event()

    async def post(commands: Sequence[Command]) -> list[Outcome]:
        entered.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with running(Writer(post)) as writer:
        sent = [asyncio.create_task(writer.submit([one_command()])) for _ in range(5)]
        await entered.wait()

    answers = await asyncio.gather(*sent, return_exceptions=True)
    assert [getattr(each, "reason", each) for each in answers] == ["UNAVAILABLE"] * 5


async def test_litellm_28376_a_provider_that_repeats_its_response_ids_loses_no_charge(
    ledger: Ledger,
) -> None:
    account_id = await ledger.account("1")
    call = usage_pb2.LlmCall(model="m", provider_response_id="chatcmpl-1")

    outcomes = await record(
        ledger.executor(),
        unit(account_id, "0.1", llm_call=call),
        unit(account_id, "0.1", llm_call=call),
    )

    assert [each.result for each in outcomes] == [usage_pb2.USAGE_RESULT_CREATED] * 2
    assert (await ledger.balance(account_id)).balance.value == "0.8"


async def test_litellm_15740_a_retry_at_the_same_moment_charges_once(ledger: Ledger) -> None:
    account_id = await ledger.account("1")
    sent = unit(account_id, "0.1")

    await asyncio.gather(*(record(ledger.executor(), sent) for _ in range(10)))

    assert (await ledger.balance(account_id)).balance.value == "0.9"


async def test_litellm_17814_a_response_that_is_fetched_again_is_not_paid_again(
    ledger: Ledger,
) -> None:
    account_id = await ledger.account("1")
    sent = unit(account_id, "0.1")
    again = unit(account_id, "0.1", occur_time=sent.occur_time, run_id=sent.run_id)
    again.source_reference = sent.source_reference
    # The gateway makes up a new id for a response each time it is read.
    again.llm_call.provider_response_id = "resp_other"

    first = await record(ledger.executor(), sent, sent)
    second = await record(ledger.executor(), again)

    assert [each.result for each in (*first, *second)] == [
        usage_pb2.USAGE_RESULT_CREATED,
        usage_pb2.USAGE_RESULT_EXISTS,
        usage_pb2.USAGE_RESULT_CONFLICT,
    ]
    assert (await ledger.balance(account_id)).balance.value == "0.9"


async def test_litellm_34732_parallel_runs_do_not_pass_the_budget(ledger: Ledger) -> None:
    account_id = await ledger.account("100")
    await ledger.stub().SetBudget(setting(account_id, "1"))

    async def attempt() -> bool:
        try:
            await ledger.stub().PlaceHold(placing(account_id, "0.3"))
        except grpc.aio.AioRpcError:
            return False
        return True

    assert sum(await asyncio.gather(*(attempt() for _ in range(20)))) == 3


async def test_litellm_35524_usage_without_an_estimate_is_still_counted(ledger: Ledger) -> None:
    account_id = await ledger.account("100")
    await ledger.stub().SetBudget(setting(account_id, "1"))

    await record(ledger.executor(), unit(account_id, "0.7"))

    budget = (await ledger.stub().GetBudget(pb.GetBudgetRequest(account_id=account_id))).budget
    assert budget.spent.value == "0.7"


async def test_litellm_30039_a_budget_after_a_failed_write_knows_exactly_what_was_charged(
    ledger: Ledger,
) -> None:
    account_id = await ledger.account("100")
    await ledger.stub().SetBudget(setting(account_id, "10"))
    account = await Directory(ledger.database, new_id).need("acme", account_id)
    crashing = CrashingDatabase(ledger.database)
    posters = [Poster(crashing, PriceBooks(), secrets.token_bytes) for _ in range(2)]  # type: ignore[arg-type]

    for fuse in range(CRASHES):
        command = one_command(account)
        crashing.fuse[0] = fuse
        with contextlib.suppress(CrashError):
            await posters[0].post([command])
        crashing.fuse[0] = 1_000_000
        await posters[1].post([command])
        budget = (await ledger.stub().GetBudget(pb.GetBudgetRequest(account_id=account_id))).budget
        assert Decimal(budget.spent.value) == Decimal("0.5") * (fuse + 1)


async def test_litellm_38647_small_holds_that_grow_do_not_lock_everybody_out(
    ledger: Ledger,
) -> None:
    account_id = await ledger.account("1")
    runs = [new_id() for _ in range(10)]

    for run_id in runs:
        run = ledger.run(run_id=run_id, account_id=account_id)
        await run.PlaceHold(placing(account_id, "0.05", run_id=run_id))
    run = ledger.run(run_id=runs[0], account_id=account_id)
    topped = await run.TopUpHold(
        pb.TopUpHoldRequest(request_id=new_id(), hold_id=runs[0], amount=usd("0.5"))
    )

    assert topped.hold.remaining.value == "0.55"


async def test_litellm_8867_sums_have_no_float_noise(ledger: Ledger) -> None:
    account_id, run_id = await ledger.account("1"), new_id()

    await record(
        ledger.executor(), *(unit(account_id, cost, run_id=run_id) for cost in ("0.1", "0.2"))
    )

    answer = await ledger.stub().GetRunStatement(pb.GetRunStatementRequest(run_id=run_id))
    assert answer.statement.totals[0].charged.value == "0.3"


async def test_litellm_34801_what_the_provider_reported_is_kept_beside_what_was_charged(
    ledger: Ledger,
) -> None:
    account_id, run_id = await ledger.account("1"), new_id()
    call = usage_pb2.LlmCall(model="m", provider_cost=usd("0.085"))

    await record(ledger.executor(), unit(account_id, "0.1", run_id=run_id, llm_call=call))

    answer = await ledger.stub().GetRunStatement(pb.GetRunStatementRequest(run_id=run_id))
    charge = answer.statement.charges[0]
    assert charge.amount.value == charge.unit.cost.value == "0.1"
    assert charge.unit.llm_call.provider_cost.value == "0.085"


@pytest.mark.parametrize(
    ("counts", "cost"),
    [
        # litellm_37407: 9,000 of 10,000 prompt tokens came from the cache, and were paid in full.
        ({"INPUT": 1000, "CACHE_READ": 9000, "OUTPUT": 100}, "0.0021"),
        # litellm_42663: what a model thought, wrote to the cache or spoke was not paid at all.
        (
            {"INPUT": 1000, "OUTPUT": 100, "REASONING": 5000, "CACHE_WRITE": 2000}
            | {"AUDIO_INPUT": 10, "AUDIO_OUTPUT": 20},
            "0.0140",
        ),
    ],
)
async def test_litellm_37407_and_42663_each_kind_of_token_is_paid_once_and_at_its_own_price(
    ledger: Ledger, counts: dict[str, int], cost: str
) -> None:
    account_id = await ledger.account("1")
    micros = {"INPUT": 1, "CACHE_READ": "0.1", "CACHE_WRITE": "1.25", "OUTPUT": 2, "REASONING": 2}
    prices = {**micros, "AUDIO_INPUT": 10, "AUDIO_OUTPUT": 10}
    model_price = price_card_pb2.ModelPrice(
        model="m",
        token_prices=[
            {"kind": f"TOKEN_KIND_{kind}", "price": format(Decimal(price) / 10**6, "f")}  # type: ignore[list-item]
            for kind, price in prices.items()
        ],
    )
    card = price_card_pb2.PriceCard(asset="USD", model_prices=[model_price])
    await ledger.stub().CreatePriceCard(
        pb.CreatePriceCardRequest(request_id=new_id(), price_card=card)
    )
    call = usage_pb2.LlmCall(model="m")
    for kind, count in counts.items():
        call.token_counts.add(kind=f"TOKEN_KIND_{kind}", count=count)  # type: ignore[arg-type]

    (outcome,) = await record(ledger.executor(), unit(account_id, None, llm_call=call))

    assert Decimal(outcome.charge.amount.value) == Decimal(cost)


@pytest.mark.parametrize("fuse", range(CRASHES))
async def test_openmeter_5118_a_key_is_not_taken_by_a_write_that_failed(
    ledger: Ledger, fuse: int
) -> None:
    caller = Caller(CallerKind.USER, "me", "acme", frozenset({"ledger:admin"}))
    wanted = NewAccount(new_id(), "a", asset_of("USD"), AccountKind.FUNDING, "", 0)
    account, _ = await Directory(ledger.database, new_id).create(caller, wanted)
    crashing = CrashingDatabase(ledger.database)
    poster = Poster(crashing, PriceBooks(), secrets.token_bytes)  # type: ignore[arg-type]
    key = Key("acme", "executor", new_id())
    one = UsageUnit(key, account.account_id, ToolUsage("t"), PAST, cost=Cost("USD", "1"))
    command = UsageCommand(key, one.payload_hash(), one, account)

    crashing.fuse[0] = fuse
    try:
        await poster.post([command])
        crashed = False
    except CrashError:
        crashed = True
    crashing.fuse[0] = 1_000_000
    (outcome,) = await poster.post([command])

    assert isinstance(outcome, UsageOutcome)
    assert outcome.result is (UsageResult.CREATED if crashed else UsageResult.EXISTS)
    balance = await ledger.balance(account.account_id)
    assert Decimal(balance.balance.value) == -1


async def test_openmeter_4902_usage_that_never_arrived_is_seen(ledger: Ledger) -> None:
    account_id, run_id = await ledger.account("1"), new_id()
    units = [unit(account_id, run_id=run_id) for _ in range(3)]
    await record(ledger.executor(), *units[:2])

    closed = await ledger.executor().CloseRun(closing(run_id, units))

    assert closed.close.state == statement_pb2.RUN_CLOSE_STATE_MISSING
    listed = await ledger.stub().ListGaps(pb.ListGapsRequest())
    assert [each.run_id for each in listed.gaps] == [run_id]


async def test_lago_3618_a_hold_settled_twice_at_once_pays_once(ledger: Ledger) -> None:
    account_id, target = await ledger.account("10"), await ledger.account()
    hold = (await ledger.stub().PlaceHold(placing(account_id, "4"))).hold

    async def settle() -> bool:
        request = pb.SettleHoldRequest(
            request_id=new_id(),
            hold_id=hold.hold_id,
            credit_account_id=target,
            amount=usd("4"),
        )
        try:
            await ledger.stub().SettleHold(request)
        except grpc.aio.AioRpcError:
            return False
        return True

    assert sum(await asyncio.gather(*(settle() for _ in range(5)))) == 1
    assert (await ledger.balance(target)).balance.value == "4"


async def test_tigerbeetle_2955_each_account_has_a_credit_limit_of_its_own(
    start_ledger: StartLedger,
) -> None:
    one, two = await start_ledger(), await start_ledger()
    limited, generous = await one.account(credit_limit="2"), await one.account(credit_limit="5")
    target = await one.account()

    async def take(ledger: Ledger, debit: str) -> bool:
        request = pb.TransferRequest(
            request_id=new_id(), debit_account_id=debit, credit_account_id=target, amount=usd("1")
        )
        try:
            await ledger.stub().Transfer(request)
        except grpc.aio.AioRpcError:
            return False
        return True

    wanted = [limited, generous] * 8
    done = await asyncio.gather(
        *(take(ledger, each) for each, ledger in zip(wanted, (one, two) * 8, strict=True))
    )

    moved = [each for each, is_done in zip(wanted, done, strict=True) if is_done]
    assert (moved.count(limited), moved.count(generous)) == (2, 5)
    assert (await one.balance(limited)).balance.value == "-2"
    assert (await one.balance(generous)).balance.value == "-5"


async def test_tigerbeetle_2693_a_balance_and_what_is_held_of_it_are_read_as_of_one_moment(
    ledger: Ledger,
) -> None:
    account_id, target = await ledger.account("10"), await ledger.account()
    hold = (await ledger.stub().PlaceHold(placing(account_id, "4"))).hold
    settling = [
        pb.SettleHoldRequest(
            request_id=new_id(),
            hold_id=hold.hold_id,
            credit_account_id=target,
            amount=usd("0.1"),
        )
        for _ in range(40)
    ]

    settled = asyncio.gather(*(ledger.stub().SettleHold(each) for each in settling))
    seen = []
    while not settled.done():
        seen.append(await ledger.balance(account_id))
    await settled

    # Settling takes as much from the balance as from the hold: the rest never changes.
    assert {each.available.value for each in seen} == {"6"}
    assert {Decimal(b.balance.value) - Decimal(b.held.value) for b in seen} == {Decimal(6)}
