"""Accounts and transfers: nothing passes a limit, nothing happens twice, nothing is guessed."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from cogni.ledger.v1 import account_pb2
from cogni.ledger.v1 import ledger_service_pb2 as pb
from services.ledger.accounts import AccountKind, system_account_id
from services.runtime.ids import new_id
from tests.ledger.conftest import Ledger, StartLedger, usd
from tests.plugins.calls import refused


def transfer(debit: str, credit: str, value: str, **changes: object) -> pb.TransferRequest:
    values: dict[str, object] = {
        "request_id": new_id(),
        "debit_account_id": debit,
        "credit_account_id": credit,
        "amount": usd(value),
        **changes,
    }
    return pb.TransferRequest(**values)  # type: ignore[arg-type]


async def test_a_transfer_moves_money_and_its_repeat_returns_the_same_entry(
    ledger: Ledger,
) -> None:
    source, target = await ledger.account("5"), await ledger.account()
    request = transfer(source, target, "1.25", description="allowance")

    first = await ledger.stub().Transfer(request)
    again = await ledger.stub().Transfer(request)

    assert first == again
    assert first.entry.debit_balance.value == "3.75"
    assert first.entry.credit_balance.value == "1.25"
    assert (await ledger.balance(target)).balance.value == "1.25"


async def test_a_request_id_with_other_content_is_refused(ledger: Ledger) -> None:
    source, target = await ledger.account("5"), await ledger.account()
    request = transfer(source, target, "1")
    await ledger.stub().Transfer(request)
    request.amount.value = "2"

    refusal = await refused(ledger.stub().Transfer(request))

    assert refusal.reason == "REQUEST_ID_REUSED"
    assert (await ledger.balance(target)).balance.value == "1"


async def test_a_transfer_past_the_limit_is_refused_and_stays_refused(ledger: Ledger) -> None:
    source, target = await ledger.account("1", credit_limit="0.5"), await ledger.account("10")
    request = transfer(source, target, "1.500000000001")

    refusal = await refused(ledger.stub().Transfer(request))
    await ledger.stub().Transfer(transfer(target, source, "5"))
    again = await refused(ledger.stub().Transfer(request))

    assert refusal.reason == again.reason == "INSUFFICIENT_FUNDS"
    assert refusal.info.metadata["available"] == again.info.metadata["available"] == "1.5"
    assert (await ledger.balance(source)).balance.value == "6"


async def test_racing_transfers_never_pass_the_limit(start_ledger: StartLedger) -> None:
    one, two = await start_ledger(), await start_ledger()
    source, target = await one.account("1"), await one.account()

    async def attempt(ledger: Ledger) -> bool:
        try:
            await ledger.stub().Transfer(transfer(source, target, "0.1"))
        except grpc.aio.AioRpcError:
            return False
        return True

    moved = await asyncio.gather(*(attempt(ledger) for ledger in (one, two) for _ in range(20)))

    assert sum(moved) == 10
    assert (await one.balance(source)).balance.value == "0"
    assert (await one.balance(target)).balance.value == "1"


async def test_a_transfer_may_bring_its_own_permanent_key(ledger: Ledger) -> None:
    source, target = await ledger.account("5"), await ledger.account()
    request = transfer(
        source, target, "1", request_id="", source_system="crm", source_reference="invoice 7"
    )

    first = await ledger.stub().Transfer(request)
    again = await ledger.stub().Transfer(request)

    assert first == again
    assert first.entry.source_reference == "invoice 7"


async def test_only_the_owner_or_an_administrator_moves_money_out(ledger: Ledger) -> None:
    source, target = await ledger.account("5"), await ledger.account()
    other = ledger.stub(subject="bob", scopes=("ledger:write", "ledger:read"))
    admin = ledger.stub(subject="carol")

    refusal = await refused(other.Transfer(transfer(source, target, "1")))
    await admin.Transfer(transfer(source, target, "1"))

    assert refusal.code is grpc.StatusCode.PERMISSION_DENIED
    assert refusal.reason == "ACCOUNT_NOT_OWNED"


async def test_money_appears_only_for_administrators(ledger: Ledger) -> None:
    writer = ledger.stub(subject="bob", scopes=("ledger:write",))
    base = {"display_name": "x", "asset": "USD"}
    wishes = [
        pb.CreateAccountRequest(request_id=new_id(), kind=account_pb2.ACCOUNT_KIND_FUNDING, **base),
        pb.CreateAccountRequest(request_id=new_id(), credit_limit=usd("1"), **base),
        pb.CreateAccountRequest(request_id=new_id(), owner="alice", **base),
    ]

    for wish in wishes:
        refusal = await refused(writer.CreateAccount(wish))
        assert refusal.reason == "SCOPE_MISSING"
    made = await writer.CreateAccount(pb.CreateAccountRequest(request_id=new_id(), **base))
    assert made.account.owner == "bob"


async def test_an_account_is_created_once_per_request(ledger: Ledger) -> None:
    request = pb.CreateAccountRequest(request_id=new_id(), display_name="x", asset="USD")

    first, again = await asyncio.gather(
        ledger.stub().CreateAccount(request), ledger.stub().CreateAccount(request)
    )

    assert first == again
    request.display_name = "y"
    refusal = await refused(ledger.stub().CreateAccount(request))
    assert refusal.reason == "REQUEST_ID_REUSED"


async def test_first_accounts_of_a_tenant_made_at_once_do_not_deadlock(ledger: Ledger) -> None:
    made = await asyncio.gather(*(ledger.account(tenant="new") for _ in range(8)))

    assert len(set(made)) == 8
    listed = await ledger.stub("new").ListAccounts(pb.ListAccountsRequest())
    assert len(listed.accounts) == 8 + 3


async def test_pages_of_accounts_hold_each_once(ledger: Ledger) -> None:
    made = [await ledger.account() for _ in range(5)]
    found, token = [], ""
    while True:
        request = pb.ListAccountsRequest(
            page_size=2, page_token=token, kind=account_pb2.ACCOUNT_KIND_SPENDING
        )
        page = await ledger.stub().ListAccounts(request)
        found += [each.account_id for each in page.accounts]
        token = page.next_page_token
        if not token:
            break

    assert found == made


async def test_a_page_token_of_another_list_is_refused(ledger: Ledger) -> None:
    for _ in range(2):
        await ledger.account()
    page = await ledger.stub().ListAccounts(pb.ListAccountsRequest(page_size=1))

    for request in (
        pb.ListAccountsRequest(page_token=page.next_page_token, asset="USD"),
        pb.ListAccountsRequest(page_token="nonsense"),
    ):
        refusal = await refused(ledger.stub().ListAccounts(request))
        assert refusal.reason == "PAGE_TOKEN_INVALID"


async def test_the_balance_at_a_time_is_what_it_was(ledger: Ledger) -> None:
    source, target = await ledger.account("5"), await ledger.account()
    first = await ledger.stub().Transfer(transfer(source, target, "1"))
    second = await ledger.stub().Transfer(transfer(source, target, "2"))
    funding = system_account_id("acme", "USD", AccountKind.USAGE)

    async def at(account_id: str, moment: Timestamp) -> str:
        request = pb.GetAccountRequest(account_id=account_id, balance_time=moment)
        answer = await ledger.stub().GetAccount(request)
        assert not answer.account.balance.HasField("available")
        return answer.account.balance.balance.value

    assert await at(source, first.entry.record_time) == "4"
    assert await at(source, second.entry.record_time) == "2"
    assert await at(target, Timestamp(seconds=1)) == "0"
    assert await at(funding, second.entry.record_time) == "0"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"amount": usd("0")}, "INVALID_REQUEST"),
        ({"amount": usd("-1")}, "INVALID_REQUEST"),
        ({"amount": usd("NaN")}, "INVALID_REQUEST"),
        ({"amount": usd("1e3")}, "INVALID_REQUEST"),
        ({"amount": usd("0.0000000000001")}, "INVALID_REQUEST"),
        ({"amount": usd("1" + "0" * 37)}, "INVALID_REQUEST"),
        ({"amount": {"asset": "EUR", "value": "1"}}, "ASSET_MISMATCH"),
        ({"request_id": "7"}, "INVALID_REQUEST"),
        ({"request_id": ""}, "INVALID_REQUEST"),
        ({"source_system": "crm", "source_reference": "1"}, "INVALID_REQUEST"),
        ({"request_id": "", "source_system": "crm"}, "INVALID_REQUEST"),
        (
            {"request_id": "", "source_system": "executor", "source_reference": "1"},
            "SOURCE_SYSTEM_RESERVED",
        ),
        ({"description": "x" * 501}, "INVALID_REQUEST"),
        ({"occur_time": Timestamp(seconds=32_503_680_000)}, "INVALID_REQUEST"),
        ({"occur_time": Timestamp(seconds=946_684_799)}, "INVALID_REQUEST"),
        ({"credit_account_id": "0197a000-0000-7000-8000-000000000000"}, "NOT_FOUND"),
        (
            {"credit_account_id": system_account_id("acme", "USD", AccountKind.USAGE)},
            "ACCOUNT_NOT_ALLOWED",
        ),
    ],
)
async def test_a_bad_transfer_is_refused_with_its_reason(
    ledger: Ledger, changes: dict[str, object], reason: str
) -> None:
    source, target = await ledger.account("5"), await ledger.account()

    refusal = await refused(ledger.stub().Transfer(transfer(source, target, "1", **changes)))

    assert refusal.reason == reason


async def test_a_balance_never_has_more_than_38_digits(ledger: Ledger) -> None:
    funding = await ledger.account(kind=account_pb2.ACCOUNT_KIND_FUNDING)
    target = await ledger.account()
    most = "9" * 26 + "." + "9" * 12

    await ledger.stub().Transfer(transfer(funding, target, most))
    refusal = await refused(ledger.stub().Transfer(transfer(funding, target, "1")))

    assert refusal.reason == "BALANCE_OVERFLOW"
    assert (await ledger.balance(target)).balance.value == most


async def test_an_unknown_asset_is_refused(ledger: Ledger) -> None:
    request = pb.CreateAccountRequest(request_id=new_id(), display_name="x", asset="DOGE")

    refusal = await refused(ledger.stub().CreateAccount(request))

    assert refusal.reason == "ASSET_UNKNOWN"


async def test_another_tenants_account_looks_like_none(ledger: Ledger) -> None:
    theirs, absent = await ledger.account("5", tenant="other"), new_id()
    ours = await ledger.account("1")

    for request in (
        pb.GetAccountRequest(account_id=theirs),
        pb.GetAccountRequest(account_id=absent),
    ):
        assert (await refused(ledger.stub().GetAccount(request))).reason == "NOT_FOUND"
    for request in (transfer(theirs, ours, "1"), transfer(ours, theirs, "1")):
        assert (await refused(ledger.stub().Transfer(request))).reason == "NOT_FOUND"
