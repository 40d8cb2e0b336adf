"""Reads and appends versions of price cards."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from services.ledger.assets import ASSETS
from services.ledger.pricing import CardVersion
from services.ledger.store import Transaction

_VERSIONS = """
SELECT price_card_id, version, asset, effective_time FROM price_cards WHERE tenant_id = $1
"""

# Raising the epoch locks the tenant's head, so that versions are handed out one at a time.
_RAISE_EPOCH = "UPDATE log_heads SET price_epoch = price_epoch + 1 WHERE tenant_id = $1"

_ENSURE_HEAD = "INSERT INTO log_heads (tenant_id) VALUES ($1) ON CONFLICT DO NOTHING"

_INSERT = """
INSERT INTO price_cards (tenant_id, price_card_id, asset, version, display_name, effective_time,
                         markup, prices, creator, create_time)
SELECT $1, $2, $3, 1 + coalesce(max(version), 0), $4,
       greatest(coalesce($5, cogni_now()), cogni_now()), $6, $7, $8, cogni_now()
FROM price_cards WHERE tenant_id = $1 AND asset = $3
RETURNING *
"""

_READ = "SELECT * FROM price_cards WHERE tenant_id = $1 AND price_card_id = $2"

_LIST = """
SELECT tenant_id, price_card_id, asset, version, display_name, effective_time, markup,
       '{}' AS prices, creator, create_time
FROM price_cards
WHERE tenant_id = $1 AND ($2 = '' OR asset = $2)
  AND ($3::timestamptz IS NULL OR (create_time, price_card_id) < ($3, $4::uuid))
ORDER BY create_time DESC, price_card_id DESC
LIMIT $5
"""


@dataclass(frozen=True, slots=True)
class StoredCard:
    """A price card as it is kept; `prices` is its canonical JSON."""

    price_card_id: str
    asset: str
    version: int
    display_name: str
    effective_time: datetime
    markup: str
    prices: str
    creator: str
    create_time: datetime


async def versions(tx: Transaction, tenant_id: str) -> list[CardVersion]:
    """Return all versions of the tenant's cards, without their prices."""
    rows = await tx.fetch(_VERSIONS, tenant_id)
    return [CardVersion(str(row[0]), row[1], ASSETS[row[2]], row[3]) for row in rows]


async def insert(
    tx: Transaction,
    tenant_id: str,
    card_id: str,
    *,
    asset: str,
    display_name: str,
    effective_time: datetime | None,
    markup: str,
    prices: str,
    creator: str,
) -> StoredCard:
    """Append the next version, effective now at the earliest."""
    await tx.execute(_ENSURE_HEAD, tenant_id)
    await tx.execute(_RAISE_EPOCH, tenant_id)
    row = await tx.fetchrow(
        _INSERT, tenant_id, card_id, asset, display_name, effective_time, markup, prices, creator
    )
    return _card(row)


async def read(tx: Transaction, tenant_id: str, card_id: str) -> StoredCard | None:
    """Return one version with its prices."""
    row = await tx.fetchrow(_READ, tenant_id, card_id)
    return None if row is None else _card(row)


async def list_page(
    tx: Transaction,
    tenant_id: str,
    *,
    asset: str,
    before: tuple[datetime, str] | None,
    limit: int,
) -> list[StoredCard]:
    """Return up to `limit` versions before the given one, the newest first, without prices."""
    created, card_id = before or (None, None)
    return [_card(r) for r in await tx.fetch(_LIST, tenant_id, asset, created, card_id, limit)]


def _card(row: Any) -> StoredCard:
    return StoredCard(
        price_card_id=str(row["price_card_id"]),
        asset=row["asset"],
        version=row["version"],
        display_name=row["display_name"],
        effective_time=row["effective_time"],
        markup=row["markup"],
        prices=row["prices"],
        creator=row["creator"],
        create_time=row["create_time"],
    )
