"""Seals a key into an opaque string that opens only for the list or stream it was made for."""

import base64
import binascii
import hashlib
import json
from typing import Any

_VERSION = b"1"
_DIGEST_BYTES = 9
_TEXT_LENGTH_MAX = 2048


def seal(key: list[Any], *, bound_to: object) -> str:
    """Return `key` as an opaque string bound to `bound_to` (both plain JSON values).

    The digest guards against damage and mix-ups, not against forgery: whoever uses the key must
    stay within the caller's tenant anyway.
    """
    payload = _json(key)
    return base64.urlsafe_b64encode(_VERSION + _digest(payload, bound_to) + payload).decode()


def unseal(text: str, *, bound_to: object) -> list[Any] | None:
    """Return the sealed key, or None when it is damaged or bound to something else."""
    if len(text) > _TEXT_LENGTH_MAX:
        return None
    try:
        raw = base64.b64decode(text, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    digest, payload = raw[1 : 1 + _DIGEST_BYTES], raw[1 + _DIGEST_BYTES :]
    if raw[:1] != _VERSION or digest != _digest(payload, bound_to):
        return None
    try:
        key = json.loads(payload)
    except ValueError:
        return None
    return key if isinstance(key, list) else None


def _digest(payload: bytes, bound_to: object) -> bytes:
    return hashlib.sha256(_json(bound_to) + b"\0" + payload).digest()[:_DIGEST_BYTES]


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
