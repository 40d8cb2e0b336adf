"""Whatever a caller sends is answered by a reason of the contract, never by INTERNAL."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from cogni.ledger.v1 import ledger_service_pb2 as pb
from cogni.ledger.v1 import price_card_pb2, usage_pb2
from services.ledger.checkpoint import LogSigner
from services.ledger.composition import compose
from services.runtime.drain import Drain
from services.runtime.ids import new_id
from services.runtime.opaque import seal
from services.runtime.server import Application
from tests.databases import DatabaseFactory
from tests.ledger.conftest import Ledger, record, unit, usd
from tests.plugins.bad_input import prove_bad_input
from tests.plugins.calls import refused
from tests.plugins.identities import Identities
from tests.plugins.serving import Served, ServeService
from tests.plugins.strangers import prove_strangers

FIRST_MOMENT = Timestamp(seconds=-62135596800)
LAST_MOMENT = Timestamp(seconds=253402300799, nanos=999_999_999)
FIRST_KEPT = Timestamp(seconds=946_684_800)
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


@pytest.mark.parametrize("moment", [FIRST_MOMENT, LAST_MOMENT])
async def test_a_log_that_refused_an_impossible_time_is_still_read_and_watched(
    ledger: Ledger, moment: Timestamp
) -> None:
    source, target = await ledger.account("5"), await ledger.account()
    request = pb.TransferRequest(
        request_id=new_id(),
        debit_account_id=source,
        credit_account_id=target,
        amount=usd("1"),
        occur_time=moment,
    )
    card = price_card_pb2.PriceCard(asset="USD", effective_time=moment)

    transfer = await refused(ledger.stub().Transfer(request))
    publication = await refused(
        ledger.stub().CreatePriceCard(
            pb.CreatePriceCardRequest(request_id=new_id(), price_card=card)
        )
    )
    request.request_id = new_id()
    request.occur_time.CopyFrom(FIRST_KEPT)
    await ledger.stub().Transfer(request)

    assert (transfer.reason, publication.reason) == ("INVALID_REQUEST", "INVALID_REQUEST")
    assert "occur_time" in transfer.message
    assert "effective_time" in publication.message
    listed = await ledger.stub().ListEntries(pb.ListEntriesRequest(account_id=target))
    statement = await ledger.stub().GetStatement(
        pb.GetStatementRequest(account_id=target, start_time=FIRST_MOMENT, end_time=LAST_MOMENT)
    )
    watched = ledger.stub().WatchEntries(pb.WatchEntriesRequest(account_id=target))
    first = await anext(each async for each in watched if each.entries)
    times = [
        each.occur_time for each in (*listed.entries, *statement.statement.entries, *first.entries)
    ]
    assert times == [FIRST_KEPT] * 3
    outcomes = await record(ledger.executor(), unit(source))
    assert outcomes[0].result == usage_pb2.USAGE_RESULT_CREATED


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


@dataclass(frozen=True)
class Walked:
    """A Ledger, and what it has that requests can name."""

    application: Application
    served: Served
    known: dict[str, Any]


@pytest.fixture
async def walked(
    database: DatabaseFactory, serve_service: ServeService, identities: Identities
) -> Walked:
    drain = Drain()
    db = await database("ledger")
    application = compose(db, drain=drain, signer=LogSigner(identities.keys["ledger"], "l.test"))
    served = await serve_service("ledger", application, drain=drain)
    ledger = Ledger(served, identities, db)
    account_id, credit_id = await ledger.account("1000"), await ledger.account()
    transfer = pb.TransferRequest(
        request_id=new_id(),
        debit_account_id=account_id,
        credit_account_id=credit_id,
        amount=usd("0.1"),
        occur_time=now(),
    )
    hold = pb.PlaceHoldRequest(
        request_id=new_id(), account_id=account_id, amount=usd("0.1"), expire_time=now(3600)
    )
    held = await ledger.stub().PlaceHold(hold)

    known = {
        "account_id": account_id,
        "credit_account_id": credit_id,
        "hold_id": held.hold.hold_id,
        "sequence": 1,
        "unit_count": 0,
        "display_name": "a name",
        "model": "gpt-5-mini",
        "provider": "openai",
        "name": "page",
        "price": "0.01",
        "markup": "1.1",
        "description": "why",
        "source_system": "bank",
        "source_reference": "u1",
        "start_time": now(-3600),
        "end_time": now(3600),
        "expire_time": now(3600),
        "period": 1,
        "threshold_percents": [50, 100],
        "update_mask": FieldMask(paths=["period", "limit", "threshold_percents"]),
        "rows": [],
        "csv": b"",
        "cogni.ledger.v1.TransferRequest": transfer,
        "cogni.ledger.v1.PlaceHoldRequest": hold,
        "cogni.ledger.v1.UsageUnit": unit(account_id, source_system="bank", attempt=0, run_id=""),
    }
    return Walked(application, served, known)


async def test_no_request_is_answered_by_a_defect(walked: Walked, identities: Identities) -> None:
    count = await prove_bad_input(
        "ledger", walked.application, walked.served, identities, walked.known
    )

    assert count > 1000


async def test_to_another_tenant_all_of_it_is_unknown(
    walked: Walked, identities: Identities
) -> None:
    count = await prove_strangers(
        "ledger", walked.application, walked.served, identities, walked.known
    )

    assert count >= 13


def now(seconds: int = 0) -> Timestamp:
    """The time so many seconds from now."""
    return Timestamp(seconds=int(time.time()) + seconds)
