"""Exact sums: decimal text outside, whole minor units inside, one rounding per charge."""

from __future__ import annotations

import re
from decimal import (
    ROUND_HALF_EVEN,
    Clamped,
    Context,
    Decimal,
    DivisionByZero,
    Inexact,
    InvalidOperation,
    Overflow,
    Rounded,
    Underflow,
)
from functools import lru_cache

from services.ledger.assets import Asset

#: What NUMERIC(38,0) can hold; a sum outside is refused before PostgreSQL sees it.
MINOR_MAX = 10**38 - 1
#: Fractional digits of a price or quantity. Bounds the digits of every product below.
DECIMAL_PLACES_MAX = 30

_DECIMAL = re.compile(r"(-?)([0-9]{1,38})(?:\.([0-9]{1,38}))?")
# A quantity, its price and a markup have up to 68 digits each, so their product has at most 204;
# if a sum ever had more than these, the trap stops it instead of rounding it silently.
_DIGITS = 250
EXACT = Context(
    prec=_DIGITS,
    rounding=ROUND_HALF_EVEN,
    traps=[Inexact, Rounded, InvalidOperation, DivisionByZero, Overflow, Underflow, Clamped],
)
_ROUNDING = Context(prec=_DIGITS, rounding=ROUND_HALF_EVEN)


class MoneyError(ValueError):
    """Raised when a text is no sum of the asset; its message tells the caller what to change."""


def parse_minor(value: str, asset: Asset) -> int:
    """Return the sum in minor units.

    Raises MoneyError when `value` is no plain decimal number, is finer than the asset's scale
    (trailing zeros are no digits), or is too large to be kept.
    """
    match = _DECIMAL.fullmatch(value)
    if match is None:
        raise MoneyError("must be a plain decimal number such as 12.5, with no exponent")
    sign, whole, fraction = match.group(1), match.group(2), (match.group(3) or "").rstrip("0")
    if len(fraction) > asset.scale:
        raise MoneyError(f"{asset.code} has at most {asset.scale} fractional digits")
    minor = int(whole + fraction.ljust(asset.scale, "0"))
    if minor > MINOR_MAX:
        raise MoneyError(f"is more than the Ledger can keep in {asset.code}")
    return -minor if sign else minor


def format_minor(minor: int, asset: Asset) -> str:
    """Return the sum as the shortest plain decimal number: "0", "12.5", "-0.000003"."""
    digits = str(abs(minor)).rjust(asset.scale + 1, "0")
    whole, fraction = digits[: -asset.scale], digits[-asset.scale :].rstrip("0")
    text = f"{whole}.{fraction}" if fraction else whole
    return f"-{text}" if minor < 0 else text


# A unit's cost is read when it is judged, hashed and priced. Errors are not remembered.
@lru_cache(maxsize=4096)
def parse_decimal(value: str) -> Decimal:
    """Return a price, markup or quantity; raises MoneyError unless it is plain and not negative."""
    match = _DECIMAL.fullmatch(value)
    if match is None:
        raise MoneyError("must be a plain decimal number such as 0.0000025, with no exponent")
    if len(match.group(3) or "") > DECIMAL_PLACES_MAX:
        raise MoneyError(f"must have at most {DECIMAL_PLACES_MAX} fractional digits")
    if match.group(1):
        raise MoneyError("must not be negative")
    return Decimal(value)


def format_decimal(value: Decimal) -> str:
    """Return the shortest plain decimal number that equals `value`."""
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def minor_to_decimal(minor: int, asset: Asset) -> Decimal:
    """Return the exact sum in whole units of the asset."""
    return Decimal(minor).scaleb(-asset.scale, EXACT)


def round_to_minor(exact: Decimal, asset: Asset) -> tuple[int, Decimal]:
    """Round a charge, half to even, and return it with what rounding left over.

    The remainder is in minor units, exact, between -0.5 and 0.5: `exact` in minor units is the
    rounded sum plus the remainder.
    """
    minor = exact.scaleb(asset.scale, EXACT)
    rounded = minor.to_integral_value(rounding=ROUND_HALF_EVEN, context=_ROUNDING)
    return int(rounded), EXACT.subtract(minor, rounded)
