"""Price cards: the version in force prices a unit, frozen for ever in its charge."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from cogni.ledger.v1 import ledger_service_pb2 as pb
from cogni.ledger.v1 import price_card_pb2, usage_pb2
from cogni.type.v1.amount_pb2 import Amount
from services.runtime.ids import new_id
from tests.ledger.conftest import Ledger, StartLedger, record, unit, usd
from tests.plugins.calls import refused

INPUT, OUTPUT = usage_pb2.TOKEN_KIND_INPUT, usage_pb2.TOKEN_KIND_OUTPUT


def model(name: str = "gpt-5-mini", **prices: Any) -> price_card_pb2.ModelPrice:
    return price_card_pb2.ModelPrice(
        model=name,
        token_prices=[
            price_card_pb2.TokenPrice(kind=INPUT, price=prices.get("input", "0.00000025")),
            price_card_pb2.TokenPrice(kind=OUTPUT, price=prices.get("output", "0.000002")),
        ],
        provider=prices.get("provider", ""),
    )


def card(*models: price_card_pb2.ModelPrice, **fields: Any) -> pb.CreatePriceCardRequest:
    return pb.CreatePriceCardRequest(
        request_id=new_id(),
        price_card=price_card_pb2.PriceCard(asset="USD", model_prices=models, **fields),
    )


async def test_the_card_prices_a_call_token_by_token_with_its_markup(ledger: Ledger) -> None:
    account_id = await ledger.account("1")
    made = await ledger.stub().CreatePriceCard(card(model(), markup="1.20"))

    outcomes = await record(ledger.executor(), unit(account_id, "99"))

    charge = outcomes[0].charge
    # (1000 * 0.00000025 + 200 * 0.000002) * 1.2
    assert charge.amount.value == "0.00078"
    assert charge.price_source == usage_pb2.PRICE_SOURCE_PRICE_CARD
    assert charge.price_card_id == made.price_card.price_card_id
    assert made.price_card.markup == "1.2"


async def test_a_new_version_prices_what_occurs_from_then_on_in_every_process(
    start_ledger: StartLedger,
) -> None:
    one, two = await start_ledger(), await start_ledger()
    account_id = await one.account("1")
    await one.stub().CreatePriceCard(card(model()))
    before = unit(account_id)
    first = await record(two.executor(), before)
    second = await one.stub().CreatePriceCard(card(model(input="0", output="0.01")))
    after = unit(account_id)
    after.occur_time.CopyFrom(second.price_card.effective_time)

    outcomes = await record(
        two.executor(), after, before, unit(account_id, occur_time=before.occur_time)
    )

    assert second.price_card.version == 2
    assert outcomes[0].charge.amount.value == "2"
    assert outcomes[1].charge == first[0].charge
    assert outcomes[2].charge.amount.value == "0.00065"


async def test_what_the_card_does_not_list_costs_what_the_caller_computed_with_the_markup(
    ledger: Ledger,
) -> None:
    account_id = await ledger.account("1")
    await ledger.stub().CreatePriceCard(card(markup="1.1"))

    outcomes = await record(ledger.executor(), unit(account_id, "0.1"), unit(account_id, None))

    assert outcomes[0].charge.amount.value == "0.11"
    assert outcomes[0].charge.price_source == usage_pb2.PRICE_SOURCE_CALLER_COST
    assert outcomes[1].charge.price_source == usage_pb2.PRICE_SOURCE_UNPRICED


async def test_a_token_kind_without_a_price_makes_the_card_no_price(ledger: Ledger) -> None:
    account_id = await ledger.account("1")
    await ledger.stub().CreatePriceCard(card(model()))
    sent = unit(account_id, None)
    sent.llm_call.token_counts.add(kind=usage_pb2.TOKEN_KIND_REASONING, count=5)

    outcomes = await record(ledger.executor(), sent)

    assert outcomes[0].charge.price_source == usage_pb2.PRICE_SOURCE_UNPRICED


async def test_a_providers_own_price_wins_over_the_models(ledger: Ledger) -> None:
    account_id = await ledger.account("1")
    await ledger.stub().CreatePriceCard(
        card(model(), model(input="0", output="0", provider="openai"))
    )

    outcomes = await record(ledger.executor(), unit(account_id))

    assert outcomes[0].charge.amount.value == "0"


async def test_tools_time_and_custom_units_have_prices_too(ledger: Ledger) -> None:
    account_id = await ledger.account("1")

    def price(name: str, value: str) -> list[price_card_pb2.UnitPrice]:
        return [price_card_pb2.UnitPrice(name=name, price=value)]

    await ledger.stub().CreatePriceCard(
        card(
            tool_prices=price("search", "0.01"),
            compute_prices=price("runner", "0.0001"),
            custom_prices=price("page", "0.002"),
        )
    )
    compute = usage_pb2.ComputeTime(resource="runner")
    compute.duration.FromTimedelta(timedelta(seconds=1.5))

    outcomes = await record(
        ledger.executor(),
        unit(account_id, None, tool_call=usage_pb2.ToolCall(tool="search")),
        unit(account_id, None, compute_time=compute),
        unit(account_id, None, custom_units=usage_pb2.CustomUnits(unit="page", quantity="3")),
    )

    assert [each.charge.amount.value for each in outcomes] == ["0.01", "0.00015", "0.006"]


async def test_a_tool_costs_what_the_card_says_else_what_its_caller_says_else_nothing(
    ledger: Ledger,
) -> None:
    account_id, run_id = await ledger.account("1"), new_id()

    def call(tool: str, cost: str | None = None) -> usage_pb2.UsageUnit:
        return unit(account_id, cost, run_id=run_id, tool_call=usage_pb2.ToolCall(tool=tool))

    before = await record(ledger.executor(), call("search"))
    listed = [{"name": "search", "price": "0.01"}, {"name": "read", "price": "0"}]
    await ledger.stub().CreatePriceCard(card(tool_prices=listed, markup="1.5"))
    elsewhere = call("fetch")
    elsewhere.cost.CopyFrom(Amount(asset="USDC", value="0.2"))

    after = await record(
        ledger.executor(),
        call("search", "9"),
        call("read", "9"),
        call("fetch", "0.2"),
        call("fetch"),
        elsewhere,
    )

    seen = [(each.charge.amount.value, each.charge.price_source) for each in (*before, *after)]
    assert seen == [
        ("0", usage_pb2.PRICE_SOURCE_UNLISTED_TOOL),
        ("0.015", usage_pb2.PRICE_SOURCE_PRICE_CARD),
        ("0", usage_pb2.PRICE_SOURCE_PRICE_CARD),
        ("0.3", usage_pb2.PRICE_SOURCE_CALLER_COST),
        ("0", usage_pb2.PRICE_SOURCE_UNLISTED_TOOL),
        ("0", usage_pb2.PRICE_SOURCE_UNPRICED),
    ]
    answer = await ledger.stub().GetRunStatement(pb.GetRunStatementRequest(run_id=run_id))
    assert (answer.statement.unit_count, answer.statement.unpriced_unit_count) == (6, 1)


async def test_cards_are_listed_newest_first_and_read_back_whole(ledger: Ledger) -> None:
    request = card(model(), display_name="standard", tool_prices=[{"name": "t", "price": "1.0"}])
    first = await ledger.stub().CreatePriceCard(request)
    again = await ledger.stub().CreatePriceCard(request)
    second = await ledger.stub().CreatePriceCard(card())

    listed = await ledger.stub().ListPriceCards(pb.ListPriceCardsRequest(page_size=1))
    rest = await ledger.stub().ListPriceCards(
        pb.ListPriceCardsRequest(page_size=1, page_token=listed.next_page_token)
    )
    read = await ledger.stub().GetPriceCard(
        pb.GetPriceCardRequest(price_card_id=first.price_card.price_card_id)
    )

    assert first == again
    assert [each.version for each in (*listed.price_cards, *rest.price_cards)] == [2, 1]
    assert listed.price_cards[0].price_card_id == second.price_card.price_card_id
    assert read.price_card == first.price_card
    assert read.price_card.tool_prices[0].price == "1"


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("price_card.model_prices[0].token_prices[0].price", card(model(input="-1"))),
        ("price_card.model_prices[0].token_prices[0].price", card(model(input="NaN"))),
        ("price_card.model_prices", card(model(), model())),
        ("price_card.markup", card(markup="-1")),
        ("price_card.tool_prices[0].name", card(tool_prices=[{"price": "1"}])),
        (
            "price_card.model_prices[0].call_price.asset",
            card(price_card_pb2.ModelPrice(model="m", call_price={"asset": "EUR", "value": "1"})),
        ),
        (
            "price_card.model_prices[0].call_price.value",
            card(price_card_pb2.ModelPrice(model="m", call_price=usd(f"0.{'0' * 30}1"))),
        ),
        (
            "price_card.effective_time",
            card(model(), effective_time=Timestamp(seconds=253402300799, nanos=999_999_999)),
        ),
    ],
)
async def test_a_bad_card_is_refused_by_its_field(
    ledger: Ledger, field: str, request_: pb.CreatePriceCardRequest
) -> None:
    refusal = await refused(ledger.stub().CreatePriceCard(request_))

    assert refusal.reason == "INVALID_REQUEST"
    assert field in refusal.message


async def test_a_card_is_never_in_force_before_it_was_made(ledger: Ledger) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=1)
    request = card(model())
    request.price_card.effective_time.FromDatetime(long_ago)

    made = await ledger.stub().CreatePriceCard(request)

    assert made.price_card.effective_time == made.price_card.create_time


async def test_another_tenants_card_looks_like_none(ledger: Ledger) -> None:
    made = await ledger.stub("other").CreatePriceCard(card(model()))
    await ledger.account(tenant="other")
    account_id = await ledger.account("1")

    request = pb.GetPriceCardRequest(price_card_id=made.price_card.price_card_id)
    refusal = await refused(ledger.stub().GetPriceCard(request))
    outcomes = await record(ledger.executor(), unit(account_id, "0.5"))

    assert refusal.reason == "NOT_FOUND"
    assert outcomes[0].charge.amount.value == usd("0.5").value
