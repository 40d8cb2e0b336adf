"""The assets the Ledger keeps, and how finely it keeps each of them."""

from __future__ import annotations

from dataclasses import dataclass

from services.runtime.errors import ErrorKind, ServiceError


@dataclass(frozen=True, slots=True)
class Asset:
    """A kind of money. One minor unit is 10 ** -scale of it."""

    code: str
    scale: int


# A cached token of a cheap model costs 2.5e-8 USD, so ten digits are the least that can price a
# single token; twelve leave room for markups. A scale can never change once entries exist.
_SCALE = 12

ASSETS = {code: Asset(code, _SCALE) for code in ("USD", "EUR", "CREDIT", "USDC")}


def asset_of(code: str) -> Asset:
    """Return the asset; raises INVALID_ARGUMENT ASSET_UNKNOWN for a code the Ledger lacks."""
    asset = ASSETS.get(code)
    if asset is None:
        raise ServiceError(
            ErrorKind.INVALID_ARGUMENT,
            "ASSET_UNKNOWN",
            f"The asset {code!r} is not known; use one of {', '.join(sorted(ASSETS))}.",
            metadata={"asset": code},
        )
    return asset
