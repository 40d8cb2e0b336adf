"""What the Executor tells the Ledger is what a real Ledger understands."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from cogni.ledger.v1 import ledger_service_pb2 as pb
from cogni.ledger.v1.ledger_service_pb2_grpc import LedgerServiceStub
from cogni.ledger.v1.statement_pb2 import RUN_CLOSE_STATE_COMPLETE
from services.executor.adapters.ledger import Answer, LedgerClient, Recording
from services.executor.amounts import Amount
from services.executor.usage import Closing, SettledUnit, UsageKind
from services.ledger.composition import compose
from services.runtime.channels import service_channel
from services.runtime.drain import Drain
from services.runtime.errors import ErrorKind, PeerError
from services.runtime.ids import new_id
from tests.databases import DatabaseFactory
from tests.plugins.identities import Identities
from tests.plugins.serving import ServeService

SCOPES = ("ledger:read", "ledger:write", "ledger:admin")


@dataclass
class Books:
    """A real Ledger, the Executor's client of it, and a person who owns an account."""

    client: LedgerClient
    alice: LedgerServiceStub
    account_id: str


@pytest.fixture
async def books(
    database: DatabaseFactory, serve_service: ServeService, identities: Identities
) -> AsyncIterator[Books]:
    drain = Drain()
    application = compose(await database("ledger"), drain=drain)
    served = await serve_service("ledger", application, drain=drain)
    alice = LedgerServiceStub(served.channel(identities.user_token("acme", "alice", SCOPES)))
    created = await alice.CreateAccount(
        pb.CreateAccountRequest(request_id=new_id(), display_name="purse", asset="USD")
    )
    channel = service_channel(served.address, "ledger", identities.service_tokens("executor"))
    yield Books(LedgerClient(channel), alice, created.account.account_id)
    await channel.close()


async def test_a_unit_is_recorded_again_without_harm_and_conflicts_when_it_differs(
    books: Books,
) -> None:
    unit = _unit(books)

    first = await books.client.record("acme", [unit, _unit(books)])
    again = await books.client.record("acme", [unit, replace(unit, rework=True)])

    charged = Answer(Recording.RECORDED, Amount("USD", Decimal("0.0042")))
    assert first == [charged, charged]
    assert again == [charged, Answer(Recording.CONFLICT)]


async def test_what_nobody_can_price_has_no_charge_and_a_tool_without_a_price_has_none_to_pay(
    books: Books,
) -> None:
    unknown = replace(_unit(books), cost=None)
    tool = replace(unknown, call_id=new_id(), kind=UsageKind.TOOL_CALL, tool="search")

    answers = await books.client.record("acme", [unknown, tool])

    assert answers == [
        Answer(Recording.RECORDED),
        Answer(Recording.RECORDED, Amount("USD", Decimal(0))),
    ]


async def test_a_unit_of_an_unknown_account_is_rejected_and_the_others_are_recorded(
    books: Books,
) -> None:
    answers = await books.client.record(
        "acme", [replace(_unit(books), account_id=new_id()), _unit(books)]
    )

    assert [each.recording for each in answers] == [Recording.REJECTED, Recording.RECORDED]


async def test_the_statement_shows_the_charge_and_the_close_agrees(books: Books) -> None:
    run_id = new_id()
    units = [replace(_unit(books), run_id=run_id) for _ in range(3)]
    await books.client.record("acme", units)

    await books.client.close_run(Closing(run_id, "acme", tuple(unit.call_id for unit in units)))

    statement = (
        await books.alice.GetRunStatement(pb.GetRunStatementRequest(run_id=run_id))
    ).statement
    assert statement.close.unit_count == 3
    assert statement.close.state == RUN_CLOSE_STATE_COMPLETE


async def test_an_account_is_its_owners_and_nobody_elses(books: Books) -> None:
    assert await books.client.may_spend("acme", "alice", books.account_id)
    assert not await books.client.may_spend("acme", "bob", books.account_id)
    with pytest.raises(PeerError) as unknown:
        await books.client.may_spend("other", "alice", books.account_id)
    assert unknown.value.kind is ErrorKind.NOT_FOUND


def _unit(books: Books) -> SettledUnit:
    return SettledUnit(
        call_id=new_id(),
        tenant_id="acme",
        run_id=new_id(),
        attempt=1,
        account_id=books.account_id,
        kind=UsageKind.LLM_CALL,
        model="gpt-5-mini",
        provider="openai",
        tool="",
        invocation_id="",
        provider_response_id="resp-1",
        counts={"input_tokens": 100, "output_tokens": 20, "cached_input_tokens": 60},
        cost=Amount("USD", Decimal("0.0042")),
        rework=False,
        estimated=False,
        occur_time=datetime.now(UTC),
    )
