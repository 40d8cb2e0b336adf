"""Publishes price cards and shows them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from services.ledger.assets import Asset
from services.ledger.canonical import canonical_line, fingerprint, format_time
from services.ledger.commands import request_key
from services.ledger.store import keys, price_cards
from services.ledger.store.price_cards import StoredCard
from services.runtime.caller import Caller
from services.runtime.database import Database
from services.runtime.errors import not_found, reused_request_id


@dataclass(frozen=True, slots=True)
class NewCard:
    """What a caller asks for; `prices` are its facts in canonical decimals."""

    request_id: str
    display_name: str
    asset: Asset
    effective_time: datetime | None
    markup: str
    prices: dict[str, Any]

    def content_hash(self) -> bytes:
        """Return the hash by which a repeat of the request is told from another one."""
        return fingerprint(
            {
                "display_name": self.display_name,
                "asset": self.asset.code,
                "effective_time": format_time(self.effective_time) if self.effective_time else "",
                "markup": self.markup,
                "prices": self.prices,
            }
        )


class PriceList:
    """What CreatePriceCard, GetPriceCard and ListPriceCards do."""

    def __init__(self, database: Database, new_id: Callable[[], str]) -> None:
        self._database = database
        self._new_id = new_id

    async def create(self, caller: Caller, wanted: NewCard) -> StoredCard:
        """Append the next version, or return what an earlier identical request appended."""
        tenant_id, card_id = caller.tenant_id, self._new_id()
        key = request_key(tenant_id, "CreatePriceCard", wanted.request_id)
        content_hash = wanted.content_hash()
        async with self._database.raw_tenant(tenant_id) as tx:
            used = await keys.claim(tx, key, content_hash, card_id)
            if used is None:
                return await price_cards.insert(
                    tx,
                    tenant_id,
                    card_id,
                    asset=wanted.asset.code,
                    display_name=wanted.display_name,
                    effective_time=wanted.effective_time,
                    markup=wanted.markup,
                    prices=canonical_line(wanted.prices).decode(),
                    creator=caller.owner,
                )
            if used.payload_hash != content_hash:
                raise reused_request_id(wanted.request_id)
            card = await price_cards.read(tx, tenant_id, used.subject_id or "")
        assert card is not None, "a key names the card it was claimed for"
        return card

    async def read(self, tenant_id: str, card_id: str) -> StoredCard:
        """Return one version with its prices; raises NOT_FOUND."""
        async with self._database.raw_tenant(tenant_id) as tx:
            card = await price_cards.read(tx, tenant_id, card_id)
        if card is None:
            raise not_found("price_card", card_id)
        return card

    async def list_page(
        self,
        tenant_id: str,
        *,
        asset: str,
        before: tuple[datetime, str] | None,
        limit: int,
    ) -> list[StoredCard]:
        """Return up to `limit` versions before the given one, the newest first."""
        async with self._database.raw_tenant(tenant_id) as tx:
            return await price_cards.list_page(
                tx, tenant_id, asset=asset, before=before, limit=limit
            )


def prices_of(card: StoredCard) -> dict[str, Any]:
    """Return the facts of a card's prices."""
    prices: dict[str, Any] = json.loads(card.prices)
    return prices
