"""Price cards: what a unit costs under the card in force, and where the price came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

from services.ledger.assets import Asset
from services.ledger.money import EXACT, format_decimal, parse_decimal
from services.ledger.units import ComputeUsage, CustomUsage, LlmUsage, ToolUsage, UsageUnit

_ONE = Decimal(1)
_ZERO = Decimal(0)


class PriceSource(StrEnum):
    """Where the price of a unit came from."""

    PRICE_CARD = "PRICE_CARD"
    CALLER_COST = "CALLER_COST"
    UNPRICED = "UNPRICED"
    UNLISTED_TOOL = "UNLISTED_TOOL"


@dataclass(frozen=True, slots=True)
class ModelPrice:
    """What a call to one model costs: a price per token by kind, and one per call."""

    tokens: Mapping[str, Decimal]
    call: Decimal = _ZERO


@dataclass(frozen=True, slots=True)
class CardVersion:
    """What decides whether a card is in force, without its prices."""

    price_card_id: str
    version: int
    asset: Asset
    effective_time: datetime


@dataclass(frozen=True, slots=True)
class PriceCard:
    """One version of a tenant's prices in one asset. Models are keyed by (model, provider)."""

    of: CardVersion
    markup: Decimal
    models: Mapping[tuple[str, str], ModelPrice]
    tools: Mapping[str, Decimal]
    compute: Mapping[str, Decimal]
    custom: Mapping[str, Decimal]


@dataclass(frozen=True, slots=True)
class Price:
    """The exact price of a unit, and the facts of it that a receipt freezes."""

    source: PriceSource
    exact: Decimal
    facts: Mapping[str, Any]


def card_in_force(
    cards: Sequence[CardVersion], asset: Asset, moment: datetime
) -> CardVersion | None:
    """Return the newest card of the asset that was effective at `moment`."""
    if not cards:
        return None
    effective = [c for c in cards if c.asset is asset and c.effective_time <= moment]
    return max(effective, key=lambda card: (card.effective_time, card.version), default=None)


def price_unit(unit: UsageUnit, asset: Asset, card: PriceCard | None) -> Price:
    """Price a unit in its account's asset: by the card, else by the caller's cost, else not.

    Zero is a price. A kind of token that the card does not name makes the card no price at all,
    since half a price is a wrong one. A tool call that nobody gave a price to is free.
    """
    if card is not None:
        listed = _listed_price(unit, card)
        if listed is not None:
            base, rates = listed
            facts = _card_facts(PriceSource.PRICE_CARD, card) | {"rates": rates}
            return Price(PriceSource.PRICE_CARD, EXACT.multiply(base, card.markup), facts)
    if unit.cost is not None and unit.cost.asset == asset.code:
        cost = parse_decimal(unit.cost.value)
        if card is None:
            facts = {"source": PriceSource.CALLER_COST.value}
            return Price(PriceSource.CALLER_COST, cost, facts)
        facts = _card_facts(PriceSource.CALLER_COST, card)
        return Price(PriceSource.CALLER_COST, EXACT.multiply(cost, card.markup), facts)
    if isinstance(unit.usage, ToolUsage) and unit.cost is None:
        # Nobody sends a bill for it, as a model's provider does: it costs what the tenant says, and
        # a flag on every harmless tool would hide the calls whose price is really missing. Not so
        # where the reporter did name a cost, in an asset that can't be charged here.
        return Price(PriceSource.UNLISTED_TOOL, _ZERO, {"source": PriceSource.UNLISTED_TOOL.value})
    return Price(PriceSource.UNPRICED, _ZERO, {"source": PriceSource.UNPRICED.value})


def _card_facts(source: PriceSource, card: PriceCard) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "source": source.value,
        "card": card.of.price_card_id,
        "version": card.of.version,
    }
    if card.markup != _ONE:
        facts["markup"] = format_decimal(card.markup)
    return facts


def _listed_price(unit: UsageUnit, card: PriceCard) -> tuple[Decimal, dict[str, str]] | None:
    match unit.usage:
        case LlmUsage() as call:
            return _model_price(call, card)
        case ToolUsage() as call:
            return _times(_ONE, card.tools.get(call.tool))
        case ComputeUsage() as compute:
            return _times(compute.seconds(), card.compute.get(compute.resource))
        case CustomUsage() as custom:
            return _times(parse_decimal(custom.quantity), card.custom.get(custom.unit))
        case None:
            return None


def _model_price(call: LlmUsage, card: PriceCard) -> tuple[Decimal, dict[str, str]] | None:
    price = card.models.get((call.model, call.provider)) or card.models.get((call.model, ""))
    if price is None or not (call.tokens or price.call):
        return None
    total = price.call
    rates = {"call": format_decimal(price.call)} if price.call else {}
    for kind, count in call.tokens.items():
        rate = price.tokens.get(kind)
        if rate is None:
            # A count of zero costs nothing at any price.
            if count == 0:
                continue
            return None
        total = EXACT.add(total, EXACT.multiply(rate, Decimal(count)))
        rates[kind] = format_decimal(rate)
    return total, rates


def _times(quantity: Decimal, rate: Decimal | None) -> tuple[Decimal, dict[str, str]] | None:
    if rate is None:
        return None
    return EXACT.multiply(quantity, rate), {"each": format_decimal(rate)}
