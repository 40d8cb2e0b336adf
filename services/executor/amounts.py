"""An exact sum of one asset, as the Executor handles it."""

from dataclasses import dataclass
from decimal import Decimal


@dataclass(frozen=True, slots=True)
class Amount:
    """`value` of `asset`. Never a float."""

    asset: str
    value: Decimal

    @classmethod
    def of(cls, asset: str | None, value: Decimal | None) -> "Amount | None":
        """Return the amount of two columns that are both null or both set."""
        if asset is None or value is None:
            return None
        return cls(asset, value)

    @property
    def plain(self) -> str:
        """The value as the contract writes it: no exponent, no trailing zeros."""
        text = format(self.value, "f")
        return text.rstrip("0").rstrip(".") if "." in text else text
