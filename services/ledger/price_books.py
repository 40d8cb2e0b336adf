"""Keeps each tenant's price cards at hand, and notices when one was added."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from services.ledger.assets import Asset
from services.ledger.pricing import CardVersion, ModelPrice, PriceCard, card_in_force
from services.ledger.store import Transaction, price_cards
from services.ledger.store.price_cards import StoredCard

_TENANTS_MAX = 1_000
_CARDS_MAX = 200


@dataclass(frozen=True, slots=True)
class _Book:
    epoch: int
    versions: tuple[CardVersion, ...]


class NotAtHandError(Exception):
    """Raised when a card would have to be read first."""


class PriceBooks:
    """The price cards of recently seen tenants. Cards never change, so only their list can age."""

    def __init__(self) -> None:
        self._books: OrderedDict[str, _Book] = OrderedDict()
        self._cards: OrderedDict[tuple[str, str], PriceCard] = OrderedDict()

    async def in_force(
        self, tx: Transaction, tenant_id: str, epoch: int, asset: Asset, moment: datetime
    ) -> PriceCard | None:
        """Return the card that prices what occurred at `moment`; `epoch` as this batch read it."""
        book = self._books.get(tenant_id)
        if book is None or book.epoch != epoch:
            book = _Book(epoch, tuple(await price_cards.versions(tx, tenant_id)))
            self._books[tenant_id] = book
            if len(self._books) > _TENANTS_MAX:
                self._books.popitem(last=False)
        version = card_in_force(book.versions, asset, moment)
        return None if version is None else await self._card(tx, tenant_id, version)

    def at_hand(
        self, tenant_id: str, epoch: int, asset: Asset, moment: datetime
    ) -> PriceCard | None:
        """Return what `in_force` does without reading; raises NotAtHandError where it would."""
        book = self._books.get(tenant_id)
        if book is None or book.epoch != epoch:
            raise NotAtHandError
        version = card_in_force(book.versions, asset, moment)
        if version is None:
            return None
        card = self._cards.get((tenant_id, version.price_card_id))
        if card is None:
            raise NotAtHandError
        return card

    async def _card(self, tx: Transaction, tenant_id: str, version: CardVersion) -> PriceCard:
        key = (tenant_id, version.price_card_id)
        card = self._cards.get(key)
        if card is None:
            stored = await price_cards.read(tx, tenant_id, version.price_card_id)
            assert stored is not None, "a listed card is never deleted"
            card = card_of(stored, version)
            self._cards[key] = card
            if len(self._cards) > _CARDS_MAX:
                self._cards.popitem(last=False)
        return card


def card_of(stored: StoredCard, version: CardVersion) -> PriceCard:
    """Return the card that its stored JSON describes."""
    prices: dict[str, Any] = json.loads(stored.prices)
    return PriceCard(
        of=version,
        markup=Decimal(stored.markup),
        models={
            (each["model"], each.get("provider", "")): ModelPrice(
                _decimals(each["tokens"]), Decimal(each.get("call", "0"))
            )
            for each in prices.get("models", ())
        },
        tools=_decimals(prices.get("tools", {})),
        compute=_decimals(prices.get("compute", {})),
        custom=_decimals(prices.get("custom", {})),
    )


def _decimals(prices: Mapping[str, str]) -> dict[str, Decimal]:
    return {name: Decimal(price) for name, price in prices.items()}
