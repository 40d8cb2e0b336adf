"""Translates price cards between messages and the facts that are stored."""

from __future__ import annotations

from typing import Any

from cogni.ledger.v1 import ledger_service_pb2, price_card_pb2, usage_pb2
from cogni.type.v1.amount_pb2 import Amount
from services.ledger.assets import asset_of
from services.ledger.convert.scalars import moment_of, timestamp
from services.ledger.money import format_decimal, parse_decimal
from services.ledger.price_list import NewCard
from services.ledger.store.price_cards import StoredCard

_KIND_PREFIX = "TOKEN_KIND_"
_UNIT_LISTS = {"tools": "tool_prices", "compute": "compute_prices", "custom": "custom_prices"}


def new_card(request: ledger_service_pb2.CreatePriceCardRequest) -> NewCard:
    """Return what a valid request asks for, its decimals in their one spelling."""
    card = request.price_card
    return NewCard(
        request_id=request.request_id,
        display_name=card.display_name,
        asset=asset_of(card.asset),
        effective_time=moment_of(card.effective_time) if card.HasField("effective_time") else None,
        markup=_plain(card.markup or "1"),
        prices=_prices(card),
    )


def card_message(card: StoredCard, prices: dict[str, Any]) -> price_card_pb2.PriceCard:
    """Return the message of a stored card; a list shows it without prices."""
    message = price_card_pb2.PriceCard(
        price_card_id=card.price_card_id,
        display_name=card.display_name,
        version=card.version,
        asset=card.asset,
        effective_time=timestamp(card.effective_time),
        markup=card.markup,
        create_time=timestamp(card.create_time),
        creator=card.creator,
    )
    for each in prices.get("models", ()):
        model = message.model_prices.add(model=each["model"], provider=each.get("provider", ""))
        for kind, price in each["tokens"].items():
            number = usage_pb2.TokenKind.Value(f"{_KIND_PREFIX}{kind}")
            model.token_prices.add(kind=number, price=price)
        if "call" in each:
            model.call_price.CopyFrom(Amount(asset=card.asset, value=each["call"]))
    for name, field in _UNIT_LISTS.items():
        for unit, price in prices.get(name, {}).items():
            getattr(message, field).add(name=unit, price=price)
    return message


def _prices(card: price_card_pb2.PriceCard) -> dict[str, Any]:
    prices: dict[str, Any] = {}
    if card.model_prices:
        prices["models"] = [_model(each) for each in card.model_prices]
    for name, field in _UNIT_LISTS.items():
        listed = getattr(card, field)
        if listed:
            prices[name] = {each.name: _plain(each.price) for each in listed}
    return prices


def _model(price: price_card_pb2.ModelPrice) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "model": price.model,
        "tokens": {
            usage_pb2.TokenKind.Name(each.kind).removeprefix(_KIND_PREFIX): _plain(each.price)
            for each in price.token_prices
        },
    }
    if price.provider:
        facts["provider"] = price.provider
    if price.HasField("call_price"):
        facts["call"] = _plain(price.call_price.value)
    return facts


def _plain(value: str) -> str:
    return format_decimal(parse_decimal(value))
