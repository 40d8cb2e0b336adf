"""Holds: a run's money is set aside, charged from, kept from stale attempts, and given back."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2

from cogni.ledger.v1 import hold_pb2, statement_pb2, usage_pb2
from cogni.ledger.v1 import ledger_service_pb2 as pb
from services.ledger import writer
from services.runtime.ids import new_id
from tests.ledger.conftest import Ledger, StartLedger, record, unit, usd
from tests.plugins.calls import refused


def soon(**delay: float) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(datetime.now(UTC) + timedelta(**(delay or {"minutes": 5})))
    return message


def placing(account_id: str, value: str, **changes: Any) -> pb.PlaceHoldRequest:
    values: dict[str, Any] = {
        "request_id": new_id(),
        "account_id": account_id,
        "amount": usd(value),
        "expire_time": soon(),
        **changes,
    }
    return pb.PlaceHoldRequest(**values)


async def test_a_runs_charges_are_taken_from_its_hold_first(ledger: Ledger) -> None:
    account_id, run_id = await ledger.account("10"), new_id()
    run = ledger.run(run_id=run_id, account_id=account_id)

    placed = await run.PlaceHold(placing(account_id, "4", run_id=run_id))
    await record(ledger.executor(), unit(account_id, "1.5", run_id=run_id))

    assert placed.hold.hold_id == run_id
    balance = await ledger.balance(account_id)
    assert (balance.balance.value, balance.held.value) == ("8.5", "2.5")
    assert balance.available.value == "6"
    topped = await run.TopUpHold(
        pb.TopUpHoldRequest(request_id=new_id(), hold_id=run_id, amount=usd("1"))
    )
    assert (topped.hold.remaining.value, topped.hold.spent.value) == ("3.5", "1.5")


async def test_tools_leave_a_runs_hold_alone_until_nothing_else_is_left(ledger: Ledger) -> None:
    account_id, run_id = await ledger.account("10"), new_id()
    run = ledger.run(run_id=run_id, account_id=account_id)
    await run.PlaceHold(placing(account_id, "4", run_id=run_id))

    async def use_tool(cost: str) -> tuple[str, str]:
        tool = usage_pb2.ToolCall(tool="search")
        sent = unit(account_id, cost, run_id=run_id, tool_call=tool)
        (outcome,) = await record(ledger.executor(), sent)
        balance = await ledger.balance(account_id)
        return balance.held.value, outcome.charge.overrun.value

    assert [await use_tool("5"), await use_tool("2"), await use_tool("4")] == [
        ("4", "0"),
        ("3", "0"),
        ("0", "1"),
    ]


async def test_a_charge_past_the_hold_takes_what_is_unheld_and_leaves_other_holds_alone(
    ledger: Ledger,
) -> None:
    account_id, run_id, other = await ledger.account("10"), new_id(), new_id()
    for each, value in ((run_id, "2"), (other, "5")):
        run = ledger.run(run_id=each, account_id=account_id)
        await run.PlaceHold(placing(account_id, value, run_id=each))

    outcomes = await record(ledger.executor(), unit(account_id, "6", run_id=run_id))

    assert outcomes[0].charge.overrun.value == "1"
    balance = await ledger.balance(account_id)
    assert (balance.balance.value, balance.held.value, balance.available.value) == ("5", "5", "0")


async def test_a_hold_past_what_is_available_is_refused_for_good_and_a_full_queue_for_now(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    account_id = await ledger.account("1")
    request, fitting = placing(account_id, "1.01"), placing(account_id, "1")

    refusal = await refused(ledger.stub().PlaceHold(request))
    again = await refused(ledger.stub().PlaceHold(request))
    with monkeypatch.context() as full:
        full.setattr(writer, "QUEUE_COMMANDS_MAX", 0)
        later = await refused(ledger.stub().PlaceHold(fitting))

    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refusal.reason == again.reason == "INSUFFICIENT_FUNDS"
    told = {"account_id": account_id, "available": "1"}
    assert refusal.info.metadata.items() >= told.items()
    assert (later.code, later.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED")
    assert later.detail(error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 500
    [quota] = later.detail(error_details_pb2.QuotaFailure).violations
    assert quota.subject == "ledger.writer"
    assert set(later.info.metadata) == {"trace_id"}
    assert (await ledger.balance(account_id)).held.value == "0"
    assert (await ledger.stub().PlaceHold(fitting)).hold.remaining.value == "1"


async def test_fifty_runs_at_once_never_hold_more_than_there_is(start_ledger: StartLedger) -> None:
    one, two = await start_ledger(), await start_ledger()
    account_id = await one.account("10")

    async def attempt(index: int) -> bool:
        run_id = new_id()
        run = (one, two)[index % 2].run(run_id=run_id, account_id=account_id)
        try:
            await run.PlaceHold(placing(account_id, "0.4", run_id=run_id))
        except grpc.aio.AioRpcError:
            return False
        return True

    placed = await asyncio.gather(*(attempt(i) for i in range(50)))

    assert sum(placed) == 25
    balance = await one.balance(account_id)
    assert (balance.held.value, balance.available.value) == ("10", "0")


async def test_placing_again_with_the_same_request_changes_nothing(ledger: Ledger) -> None:
    account_id = await ledger.account("10")
    request = placing(account_id, "4")

    first = await ledger.stub().PlaceHold(request)
    again = await ledger.stub().PlaceHold(request)

    assert first == again
    assert (await ledger.balance(account_id)).held.value == "4"


async def test_the_next_attempt_takes_the_hold_over_and_the_stale_one_is_refused(
    ledger: Ledger,
) -> None:
    account_id, run_id = await ledger.account("10"), new_id()
    first = ledger.run(run_id=run_id, account_id=account_id, epoch=1)
    second = ledger.run(run_id=run_id, account_id=account_id, epoch=2)
    await first.PlaceHold(placing(account_id, "4", run_id=run_id))
    await record(ledger.executor(), unit(account_id, "3", run_id=run_id))

    taken = await second.PlaceHold(placing(account_id, "4", run_id=run_id))
    top_up = pb.TopUpHoldRequest(request_id=new_id(), hold_id=run_id, amount=usd("1"))
    refusal = await refused(first.TopUpHold(top_up))
    release = pb.ReleaseHoldRequest(request_id=new_id(), hold_id=run_id)
    released = await refused(first.ReleaseHold(release))

    assert (taken.hold.epoch, taken.hold.remaining.value) == (2, "4")
    assert refusal.reason == released.reason == "STALE_ATTEMPT"
    assert refusal.info.metadata["epoch"] == "2"
    assert (await ledger.balance(account_id)).held.value == "4"


async def test_a_run_has_its_hold_on_one_account(ledger: Ledger) -> None:
    first, second, run_id = await ledger.account("10"), await ledger.account("10"), new_id()
    await ledger.executor().PlaceHold(placing(first, "4", run_id=run_id, epoch=1))

    refusal = await refused(
        ledger.executor().PlaceHold(placing(second, "6", run_id=run_id, epoch=2))
    )

    assert refusal.reason == "ACCOUNT_NOT_ALLOWED"
    assert (await ledger.balance(first)).held.value == "4"
    assert (await ledger.balance(second)).held.value == "0"


async def test_a_run_token_acts_on_nothing_but_its_own_runs_hold(ledger: Ledger) -> None:
    account_id, other_account = await ledger.account("10"), await ledger.account("10")
    run_id, stranger = new_id(), ledger.run(account_id=account_id)
    run = ledger.run(run_id=run_id, account_id=account_id)
    await run.PlaceHold(placing(account_id, "1", run_id=run_id))

    attempts = [
        stranger.TopUpHold(
            pb.TopUpHoldRequest(request_id=new_id(), hold_id=run_id, amount=usd("1"))
        ),
        stranger.ReleaseHold(pb.ReleaseHoldRequest(request_id=new_id(), hold_id=run_id)),
        run.PlaceHold(placing(other_account, "1", run_id=run_id)),
        run.PlaceHold(placing(account_id, "1")),
        ledger.stub().PlaceHold(placing(account_id, "1", run_id=new_id())),
        ledger.stub().ReleaseHold(pb.ReleaseHoldRequest(request_id=new_id(), hold_id=run_id)),
    ]

    for attempt in attempts:
        assert (await refused(attempt)).reason == "CALLER_NOT_ALLOWED"


async def test_a_hold_shrinks_to_its_unsettled_calls_and_ends_when_none_are_left(
    ledger: Ledger,
) -> None:
    account_id, run_id = await ledger.account("10"), new_id()
    run = ledger.run(run_id=run_id, account_id=account_id)
    await run.PlaceHold(placing(account_id, "4", run_id=run_id))

    shrunk = await run.ReleaseHold(
        pb.ReleaseHoldRequest(request_id=new_id(), hold_id=run_id, unsettled=usd("0.5"))
    )
    ended = await run.ReleaseHold(pb.ReleaseHoldRequest(request_id=new_id(), hold_id=run_id))
    after = await refused(
        run.TopUpHold(pb.TopUpHoldRequest(request_id=new_id(), hold_id=run_id, amount=usd("1")))
    )

    assert (shrunk.hold.state, shrunk.hold.remaining.value) == (hold_pb2.HOLD_STATE_ACTIVE, "0.5")
    assert ended.hold.state == hold_pb2.HOLD_STATE_RELEASED
    assert after.reason == "HOLD_CLOSED"
    assert (await ledger.balance(account_id)).available.value == "10"


async def test_a_hold_of_which_nothing_is_kept_for_now_can_be_topped_up_again(
    ledger: Ledger,
) -> None:
    account_id, run_id = await ledger.account("10"), new_id()
    run = ledger.run(run_id=run_id, account_id=account_id)
    await run.PlaceHold(placing(account_id, "4", run_id=run_id))

    kept = await run.ReleaseHold(
        pb.ReleaseHoldRequest(request_id=new_id(), hold_id=run_id, unsettled=usd("0"))
    )
    again = await run.PlaceHold(placing(account_id, "3", run_id=run_id))

    assert (kept.hold.state, kept.hold.remaining.value) == (hold_pb2.HOLD_STATE_ACTIVE, "0")
    assert again.hold.remaining.value == "3"


async def test_an_expired_hold_keeps_its_unsettled_calls_and_a_top_up_revives_it(
    ledger: Ledger, clock: Any
) -> None:
    account_id, run_id = await ledger.account("10"), new_id()
    run = ledger.run(run_id=run_id, account_id=account_id)
    await run.PlaceHold(
        placing(account_id, "4", run_id=run_id, unsettled=usd("1"), expire_time=soon(minutes=1))
    )

    await clock.advance(ledger.database, timedelta(minutes=2))
    async with asyncio.timeout(60):
        while (await ledger.balance(account_id)).held.value != "1":
            pass
    revived = await run.TopUpHold(
        pb.TopUpHoldRequest(
            request_id=new_id(), hold_id=run_id, amount=usd("2"), expire_time=soon(minutes=9)
        )
    )

    assert revived.hold.state == hold_pb2.HOLD_STATE_ACTIVE
    assert revived.hold.remaining.value == "3"


async def test_a_hold_without_a_run_is_settled_part_by_part(ledger: Ledger) -> None:
    account_id, target = await ledger.account("10"), await ledger.account()
    hold = (await ledger.stub().PlaceHold(placing(account_id, "4"))).hold

    def settling(value: str) -> pb.SettleHoldRequest:
        return pb.SettleHoldRequest(
            request_id=new_id(),
            hold_id=hold.hold_id,
            credit_account_id=target,
            amount=usd(value),
        )

    request = settling("1.5")
    first = await ledger.stub().SettleHold(request)
    again = await ledger.stub().SettleHold(request)
    too_much = await refused(ledger.stub().SettleHold(settling("2.6")))
    last = await ledger.stub().SettleHold(settling("2.5"))

    assert first == again
    assert first.entry.hold_id == hold.hold_id
    assert too_much.reason == "HOLD_EXCEEDED"
    assert last.hold.state == hold_pb2.HOLD_STATE_SETTLED
    balance = await ledger.balance(account_id)
    assert (balance.balance.value, balance.held.value) == ("6", "0")
    assert (await ledger.balance(target)).balance.value == "4"


async def test_a_runs_hold_is_not_settled_by_hand(ledger: Ledger) -> None:
    account_id, target, run_id = await ledger.account("10"), await ledger.account(), new_id()
    executor = ledger.executor()
    await executor.PlaceHold(placing(account_id, "4", run_id=run_id, epoch=1))
    request = pb.SettleHoldRequest(
        request_id=new_id(), hold_id=run_id, credit_account_id=target, amount=usd("1")
    )

    refusal = await refused(ledger.stub().SettleHold(request))

    # A person may not act on a run's hold at all, whoever owns the account.
    assert refusal.reason == "CALLER_NOT_ALLOWED"


@pytest.mark.parametrize(
    "changes",
    [
        {"expire_time": soon(days=31)},
        {"expire_time": Timestamp(seconds=1)},
        {"amount": usd("-1")},
        {"amount": usd("0.0000000000001")},
        {"run_id": "x"},
        {"epoch": -1},
        {"unsettled": usd("-1")},
    ],
)
async def test_a_bad_hold_is_refused(ledger: Ledger, changes: dict[str, Any]) -> None:
    account_id = await ledger.account("10")

    refusal = await refused(ledger.stub().PlaceHold(placing(account_id, "1", **changes)))

    assert refusal.reason == "INVALID_REQUEST"


def digest(units: list[usage_pb2.UsageUnit]) -> bytes:
    lines = sorted(f"{each.source_system} {each.source_reference}\n".encode() for each in units)
    return hashlib.sha256(b"".join(lines)).digest()


def closing(run_id: str, units: list[usage_pb2.UsageUnit]) -> pb.CloseRunRequest:
    return pb.CloseRunRequest(run_id=run_id, unit_count=len(units), units_digest=digest(units))


async def test_closing_a_run_releases_its_hold_and_says_whether_every_unit_arrived(
    ledger: Ledger,
) -> None:
    account_id, run_id = await ledger.account("10"), new_id()
    run = ledger.run(run_id=run_id, account_id=account_id)
    await run.PlaceHold(placing(account_id, "4", run_id=run_id))
    units = [unit(account_id, run_id=run_id) for _ in range(3)]
    await record(ledger.executor(), *units[:2])

    early = await ledger.executor().CloseRun(closing(run_id, units))
    again = await ledger.executor().CloseRun(closing(run_id, units))
    await record(ledger.executor(), units[2])
    done = await ledger.executor().CloseRun(closing(run_id, units))

    assert early.close.state == statement_pb2.RUN_CLOSE_STATE_MISSING
    assert again == early
    assert done.close.state == statement_pb2.RUN_CLOSE_STATE_COMPLETE
    assert done.close.version == 1
    assert (await ledger.balance(account_id)).held.value == "0"


async def test_a_late_unit_reopens_a_closed_run_until_it_is_closed_again(ledger: Ledger) -> None:
    account_id, run_id = await ledger.account("10"), new_id()
    units = [unit(account_id, run_id=run_id) for _ in range(2)]
    await record(ledger.executor(), units[0])
    await ledger.executor().CloseRun(closing(run_id, units[:1]))

    await record(ledger.executor(), units[1])

    request = pb.GetRunStatementRequest(run_id=run_id)
    reopened = (await ledger.stub().GetRunStatement(request)).statement.close
    closed = await ledger.executor().CloseRun(closing(run_id, units))
    other = await ledger.executor().CloseRun(closing(run_id, [units[0], unit(account_id)]))
    assert reopened.state == statement_pb2.RUN_CLOSE_STATE_REOPENED
    assert (closed.close.version, closed.close.state) == (2, statement_pb2.RUN_CLOSE_STATE_COMPLETE)
    assert other.close.state == statement_pb2.RUN_CLOSE_STATE_DIFFERENT


async def test_a_run_without_units_closes_with_the_digest_of_nothing(ledger: Ledger) -> None:
    await ledger.account()

    answer = await ledger.executor().CloseRun(closing(new_id(), []))

    assert answer.close.state == statement_pb2.RUN_CLOSE_STATE_COMPLETE
