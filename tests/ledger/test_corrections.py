"""Corrections: new entries that name what they give back, and never give back more."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from cogni.ledger.v1 import entry_pb2
from cogni.ledger.v1 import ledger_service_pb2 as pb
from services.ledger.accounts import AccountKind, system_account_id
from services.runtime.ids import new_id
from tests.ledger.conftest import Ledger, StartLedger, record, unit, usd
from tests.plugins.calls import refused


def correcting(sequence: int, value: str | None = None) -> pb.CorrectEntryRequest:
    request = pb.CorrectEntryRequest(
        request_id=new_id(), sequence=sequence, description="charged by mistake"
    )
    if value is not None:
        request.amount.CopyFrom(usd(value))
    return request


async def test_a_charge_is_given_back_in_parts_and_then_no_more(ledger: Ledger) -> None:
    account_id, run_id = await ledger.account("10"), new_id()
    charge = (await record(ledger.executor(), unit(account_id, "3", run_id=run_id)))[0].charge
    request = correcting(charge.sequence, "1")

    first = await ledger.stub().CorrectEntry(request)
    request.amount.value = "1.00"
    again = await ledger.stub().CorrectEntry(request)
    rest = await ledger.stub().CorrectEntry(correcting(charge.sequence))
    beyond = await refused(ledger.stub().CorrectEntry(correcting(charge.sequence)))

    assert first == again
    assert first.entry.kind == entry_pb2.ENTRY_KIND_CORRECTION
    assert first.entry.corrects_sequence == charge.sequence
    assert rest.entry.amount.value == "2"
    assert beyond.reason == "CORRECTION_EXCEEDS_ENTRY"
    assert (await ledger.balance(account_id)).balance.value == "10"
    statement = await ledger.stub().GetRunStatement(pb.GetRunStatementRequest(run_id=run_id))
    assert statement.statement.totals[0].charged.value == "0"


async def test_racing_corrections_of_one_overrun_give_it_back_once(
    start_ledger: StartLedger,
) -> None:
    one, two = await start_ledger(), await start_ledger()
    account_id = await one.account("0")
    charge = (await record(one.executor(), unit(account_id, "3")))[0].charge
    overrun = charge.sequence + 1

    async def attempt(ledger: Ledger) -> bool:
        try:
            await ledger.stub().CorrectEntry(correcting(overrun))
        except grpc.aio.AioRpcError:
            return False
        return True

    done = await asyncio.gather(*(attempt(each) for each in (one, two) * 5))

    assert sum(done) == 1
    overrun_account = system_account_id("acme", "USD", AccountKind.OVERRUN)
    assert (await one.balance(overrun_account)).balance.value == "0"


async def test_two_actuals_that_race_for_one_estimate_replace_it_once(
    start_ledger: StartLedger,
) -> None:
    one, two = await start_ledger(), await start_ledger()
    account_id = await one.account("10")
    estimate = unit(account_id, "3", estimated=True)
    await record(one.executor(), estimate)

    def actual() -> object:
        return unit(account_id, "1", corrects_source_reference=estimate.source_reference)

    answers = await asyncio.gather(
        *(record(each.executor(), actual()) for each in (one, two) * 5)  # type: ignore[arg-type]
    )

    results = [outcome.result for answer in answers for outcome in answer]
    assert results.count(1) == 1
    assert results.count(4) == 9
    assert (await one.balance(account_id)).balance.value == "9"


async def test_a_transfer_is_given_back_only_if_its_receiver_still_has_it(ledger: Ledger) -> None:
    source, target = await ledger.account("5"), await ledger.account()
    moved = await ledger.stub().Transfer(
        pb.TransferRequest(
            request_id=new_id(),
            debit_account_id=source,
            credit_account_id=target,
            amount=usd("5"),
        )
    )
    await record(ledger.executor(), unit(target, "1"))

    refusal = await refused(ledger.stub().CorrectEntry(correcting(moved.entry.sequence)))
    part = await ledger.stub().CorrectEntry(correcting(moved.entry.sequence, "4"))

    assert refusal.reason == "INSUFFICIENT_FUNDS"
    assert part.entry.credit_balance.value == "4"


async def test_a_correction_is_not_corrected(ledger: Ledger) -> None:
    account_id = await ledger.account("10")
    charge = (await record(ledger.executor(), unit(account_id, "3")))[0].charge
    done = await ledger.stub().CorrectEntry(correcting(charge.sequence))
    free = (await record(ledger.executor(), unit(account_id, "0")))[0].charge

    for sequence in (done.entry.sequence, free.sequence):
        refusal = await refused(ledger.stub().CorrectEntry(correcting(sequence)))
        assert refusal.reason == "ENTRY_NOT_CORRECTABLE"


@pytest.mark.parametrize(
    ("sequence", "value", "reason"),
    [
        (0, None, "INVALID_REQUEST"),
        (99, None, "NOT_FOUND"),
        (1, "-1", "INVALID_REQUEST"),
        (1, "11", "CORRECTION_EXCEEDS_ENTRY"),
    ],
)
async def test_a_bad_correction_is_refused(
    ledger: Ledger, sequence: int, value: str | None, reason: str
) -> None:
    await ledger.account("10")

    refusal = await refused(ledger.stub().CorrectEntry(correcting(sequence, value)))

    assert refusal.reason == reason


async def test_correcting_needs_an_administrator(ledger: Ledger) -> None:
    await ledger.account("10")
    writer = ledger.stub(subject="bob", scopes=("ledger:write",))

    refusal = await refused(writer.CorrectEntry(correcting(1)))

    assert refusal.reason == "SCOPE_MISSING"


async def test_corrections_of_one_entry_in_one_batch_count_the_earlier_ones_once(
    ledger: Ledger,
) -> None:
    account_id = await ledger.account("10")
    charge = (await record(ledger.executor(), unit(account_id, "4")))[0].charge
    await ledger.stub().CorrectEntry(correcting(charge.sequence, "1"))

    # Sent together they wait for one another and are posted as one batch.
    await asyncio.gather(
        *(ledger.stub().CorrectEntry(correcting(charge.sequence, "1")) for _ in range(3))
    )

    assert (await ledger.balance(account_id)).balance.value == "10"
