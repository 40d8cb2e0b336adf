"""Whatever a caller sends is answered by a reason of the contract, never by INTERNAL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from cogni.ledger.v1 import ledger_service_pb2 as pb
from cogni.ledger.v1 import price_card_pb2, usage_pb2
from services.runtime.ids import new_id
from services.runtime.opaque import seal
from tests.ledger.conftest import Ledger, record, unit, usd
from tests.plugins.calls import refused

FIRST_MOMENT = Timestamp(seconds=-62135596800)
LAST_MOMENT = Timestamp(seconds=253402300799, nanos=999_999_999)
MANY = f"{'9' * 38}.{'9' * 30}"
REJECTED = usage_pb2.USAGE_RESULT_REJECTED

#: A list's method, its request, and what its page tokens are bound to.
LISTS: dict[str, tuple[Callable[..., Any], list[Any]]] = {
    "ListEntries": (pb.ListEntriesRequest, ["entries", "acme", "", "", 0]),
    "ListAccounts": (pb.ListAccountsRequest, ["accounts", "acme", "", 0, ""]),
    "ListBudgets": (pb.ListBudgetsRequest, ["budgets", "acme", 0]),
    "ListGaps": (pb.ListGapsRequest, ["gaps", "acme", 0]),
    "ListPriceCards": (pb.ListPriceCardsRequest, ["price_cards", "acme", ""]),
}
#: What no page ends with.
KEYS: tuple[Any, ...] = (
    {"a": 1},
    "abc",
    [],
    ["x"],
    [None],
    [-1],
    [2**70],
    [float("inf")],
    ["x", "y"],
    [1, 2],
    ["2026-01-01T00:00:00", "0198c2a0-0000-7000-8000-000000000000"],
    ["2026-01-01T00:00:00+00:00", "no id"],
)


async def test_a_page_token_that_a_caller_made_up_is_refused(ledger: Ledger) -> None:
    # A budget's place is a tenant and an id, so the one key whose text and id fit is its own.
    fits = ("ListBudgets", KEYS[10])
    for method, (request, bound_to) in LISTS.items():
        for key in KEYS:
            if (method, key) != fits:
                token = seal(key, bound_to=bound_to)
                call = getattr(ledger.stub(), method)(request(page_token=token))
                assert (await refused(call)).reason == "PAGE_TOKEN_INVALID", (method, key)


async def test_the_first_and_the_last_moment_there_is_are_times_like_others(
    ledger: Ledger,
) -> None:
    account_id = await ledger.account("1")

    for moment, value in ((FIRST_MOMENT, "0"), (LAST_MOMENT, "1")):
        request = pb.GetAccountRequest(account_id=account_id, balance_time=moment)
        assert (await ledger.stub().GetAccount(request)).account.balance.balance.value == value
    answer = await ledger.stub().ReconcileUsage(
        pb.ReconcileUsageRequest(source=1, start_time=FIRST_MOMENT, end_time=LAST_MOMENT)
    )
    assert list(answer.differences) == []


async def test_a_price_of_more_digits_than_can_be_kept_rejects_the_unit_alone(
    ledger: Ledger,
) -> None:
    account_id = await ledger.account("1")
    prices = [price_card_pb2.UnitPrice(name="page", price=MANY)]
    card = price_card_pb2.PriceCard(asset="USD", markup=MANY, custom_prices=prices)
    await ledger.stub().CreatePriceCard(
        pb.CreatePriceCardRequest(request_id=new_id(), price_card=card)
    )
    pages = usage_pb2.CustomUnits(unit="page", quantity=MANY)

    outcomes = await record(
        ledger.executor(),
        unit(account_id, None, custom_units=pages, llm_call=None),
        unit(account_id),
    )

    assert [each.result for each in outcomes] == [REJECTED, REJECTED]
    assert outcomes[0].violations[0].field == "units[0].kind"
    # The second costs 0.01 times the same markup.
    assert outcomes[1].violations[0].field == "units[1].kind"


@pytest.mark.parametrize("funds", ["100", "0"])
async def test_a_unit_does_not_replace_a_transfer_of_the_same_source_system(
    ledger: Ledger, funds: str
) -> None:
    source, target = await ledger.account(funds), await ledger.account()
    payer = await ledger.account("1")
    transfer = pb.TransferRequest(
        source_system="bank",
        source_reference="t1",
        debit_account_id=source,
        credit_account_id=target,
        amount=usd("5"),
    )
    if funds == "0":
        await refused(ledger.stub().Transfer(transfer))
    else:
        await ledger.stub().Transfer(transfer)
    before = await ledger.balance(target)
    replacing = unit(
        payer, "0", source_system="bank", run_id="", attempt=0, corrects_source_reference="t1"
    )

    outcomes = await record(ledger.stub(), replacing)

    assert outcomes[0].result == REJECTED
    assert outcomes[0].violations[0].field == "units[0].corrects_source_reference"
    assert await ledger.balance(target) == before
