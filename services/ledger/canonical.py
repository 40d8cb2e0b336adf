"""The one spelling of a fact: canonical JSON, its times and its hash."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

_encode = json.JSONEncoder(
    ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False
).encode


def canonical_line(fact: dict[str, Any]) -> bytes:
    """Return `fact` as one line of UTF-8 JSON: sorted keys, no spaces, no line breaks.

    Values are texts, whole numbers below 2**53, true, lists and objects: every JSON reader gives
    back the same ones.
    """
    return _encode(fact).encode()


def fingerprint(fact: dict[str, Any]) -> bytes:
    """Return the SHA-256 of the canonical form: equal for equal content, whatever the wire had."""
    return hashlib.sha256(canonical_line(fact)).digest()


def format_time(moment: datetime) -> str:
    """Return an aware time as RFC 3339 in UTC with microseconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_time(text: str) -> datetime:
    """Return the time that `format_time` wrote."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
