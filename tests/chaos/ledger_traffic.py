"""What callers send to Ledgers that are killed meanwhile: again and again, until it is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from cogni.ledger.v1 import account_pb2, hold_pb2, statement_pb2, usage_pb2
from cogni.ledger.v1 import ledger_service_pb2 as pb
from services.runtime.ids import new_id
from tests.ledger.conftest import unit, usd
from tests.ledger.test_holds import closing

COST = "0.001"
FUNDS = 1_000_000
BATCH = 20
RUN_UNITS = 3
CREATED, EXISTS = usage_pb2.USAGE_RESULT_CREATED, usage_pb2.USAGE_RESULT_EXISTS
#: What a caller may meet while something is dead; anything else is a defect.
EXPECTED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@dataclass
class Load:
    """What callers sent, and what they were told."""

    funding_id: str
    account_id: str
    payee_id: str
    acknowledged: dict[str, usage_pb2.UsageUnit] = field(default_factory=dict)
    #: Moved to the account since the beginning, and from it to the payee.
    received: Decimal = Decimal(0)
    paid: Decimal = Decimal(0)
    callers: list[asyncio.Task[None]] = field(default_factory=list)
    stopping: bool = False


async def persist(method: Callable[[Any], Awaitable[Any]], request: Any) -> Any:
    """Call again and again until there is an answer, as every caller may."""
    while True:
        try:
            return await method(request)
        except grpc.aio.AioRpcError as error:
            if error.code() not in EXPECTED:
                raise


async def acknowledge(executor: Any, units: list[usage_pb2.UsageUnit]) -> list[int]:
    """Send units until they are acknowledged; return what the answer said."""
    answer = await persist(executor.RecordUsage, pb.RecordUsageRequest(units=units))
    results = [outcome.result for outcome in answer.outcomes]
    assert set(results) <= {CREATED, EXISTS}
    return results


async def send_singles(executor: Any, load: Load) -> None:
    """Send units one by one to one Ledger."""
    while not load.stopping:
        sent = unit(load.account_id, COST)
        await acknowledge(executor, [sent])
        load.acknowledged[sent.source_reference] = sent


async def send_pairs(executors: Sequence[Any], load: Load) -> None:
    """Send the same keys to all Ledgers at once, every other time in the opposite order."""
    while not load.stopping:
        batch = [unit(load.account_id, COST) for _ in range(BATCH)]
        orders = [batch if number % 2 else batch[::-1] for number in range(len(executors))]
        told = await asyncio.gather(
            *(acknowledge(each, order) for each, order in zip(executors, orders, strict=True))
        )
        # A Ledger that died after its commit told nobody, so CREATED may be missing: not doubled.
        created = [
            sent.source_reference
            for order, results in zip(orders, told, strict=True)
            for sent, result in zip(order, results, strict=True)
            if result == CREATED
        ]
        assert len(created) == len(set(created))
        load.acknowledged.update((sent.source_reference, sent) for sent in batch)


async def move_money(people: Sequence[Any], load: Load) -> None:
    """Ask all Ledgers for the same transfer at once; both must tell of the same entry."""
    while not load.stopping:
        moving = pb.TransferRequest(
            request_id=new_id(),
            debit_account_id=load.funding_id,
            credit_account_id=load.account_id,
            amount=usd("0.5"),
        )
        told = await asyncio.gather(*(persist(each.Transfer, moving) for each in people))
        assert len({each.entry.sequence for each in told}) == 1
        load.received += Decimal("0.5")


async def pay_from_holds(people: Sequence[Any], load: Load) -> None:
    """Set money aside, pay half of it, and give the rest back; each request to all Ledgers."""

    async def ask(method: str, request: Any) -> hold_pb2.Hold:
        told = await asyncio.gather(*(persist(getattr(each, method), request) for each in people))
        holds = [each.hold for each in told]
        assert len({each.hold_id for each in holds}) == 1
        return holds[-1]

    while not load.stopping:
        placing = pb.PlaceHoldRequest(
            request_id=new_id(), account_id=load.account_id, amount=usd("2"), expire_time=_later()
        )
        hold_id = (await ask("PlaceHold", placing)).hold_id
        paying = pb.SettleHoldRequest(
            request_id=new_id(),
            hold_id=hold_id,
            credit_account_id=load.payee_id,
            amount=usd("0.25"),
        )
        paid = await ask("SettleHold", paying)
        assert (paid.remaining.value, paid.spent.value) == ("1.75", "0.25")
        load.paid += Decimal("0.25")
        leaving = pb.ReleaseHoldRequest(request_id=new_id(), hold_id=hold_id)
        await ask("ReleaseHold", leaving)


async def run_runs(executors: Sequence[Any], load: Load) -> None:
    """Runs with a hold, charged and closed, each request to all Ledgers."""
    while not load.stopping:
        run_id = new_id()
        placing = pb.PlaceHoldRequest(
            request_id=new_id(),
            account_id=load.account_id,
            amount=usd("1"),
            run_id=run_id,
            epoch=1,
            expire_time=_later(),
        )
        await asyncio.gather(*(persist(each.PlaceHold, placing) for each in executors))
        units = [unit(load.account_id, COST, run_id=run_id) for _ in range(RUN_UNITS)]
        await asyncio.gather(*(acknowledge(each, units) for each in executors))
        load.acknowledged.update((sent.source_reference, sent) for sent in units)
        ending = closing(run_id, units)
        told = await asyncio.gather(*(persist(each.CloseRun, ending) for each in executors))
        for each in told:
            assert each.close.state == statement_pb2.RUN_CLOSE_STATE_COMPLETE
            assert each.close.version == 1


async def balance_of(person: Any, account_id: str) -> account_pb2.Balance:
    """What an account has, when somebody answers."""
    answer = await persist(person.GetAccount, pb.GetAccountRequest(account_id=account_id))
    balance: account_pb2.Balance = answer.account.balance
    return balance


def _later() -> Timestamp:
    message = Timestamp()
    message.FromDatetime(datetime.now(UTC) + timedelta(hours=1))
    return message


async def found(person: Any) -> Load:
    """Create the account that pays, with money for all of it, and its neighbours."""
    made = []
    spending = account_pb2.ACCOUNT_KIND_SPENDING
    for kind in (account_pb2.ACCOUNT_KIND_FUNDING, spending, spending):
        request = pb.CreateAccountRequest(
            request_id=new_id(), display_name="a", asset="USD", kind=kind
        )
        made.append((await persist(person.CreateAccount, request)).account.account_id)
    moving = pb.TransferRequest(
        request_id=new_id(),
        debit_account_id=made[0],
        credit_account_id=made[1],
        amount=usd(str(FUNDS)),
    )
    await persist(person.Transfer, moving)
    return Load(*made)
