"""Makes identifiers: time-ordered ones for new things, derived ones for repeatable things."""

import json
import os
import time
from uuid import UUID, uuid5

_NAMESPACE = UUID("5f0c6a52-3b1e-5d52-9d2c-6b1f0e7c0a11")


def new_uuid() -> UUID:
    """Return a new UUIDv7 (RFC 9562 §5.7, sub-millisecond time in rand_a).

    Ids made by one process sort by creation to about a quarter of a microsecond, so rows
    inserted together land on neighbouring index pages.
    """
    return UUID(int=_new_value())


def new_id() -> str:
    """Return a new UUIDv7 as its canonical string."""
    # Without a UUID between: 2 µs against 3, and each row and most requests take one.
    digits = f"{_new_value():032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _new_value() -> int:
    milliseconds, rest = divmod(time.time_ns(), 1_000_000)
    fraction = (rest << 12) // 1_000_000
    value = (milliseconds & ((1 << 48) - 1)) << 80
    value |= 0x7 << 76 | fraction << 64
    return value | 0b10 << 62 | int.from_bytes(os.urandom(8)) >> 2


def derive_id(namespace: str, *parts: str | int) -> str:
    """Return the UUIDv5 that stands for `parts` within `namespace`, the same on every call.

    The parts are joined as a JSON array, so ("a", "bc") and ("ab", "c") differ.
    """
    name = json.dumps([namespace, *parts], ensure_ascii=False, separators=(",", ":"))
    return str(uuid5(_NAMESPACE, name))
