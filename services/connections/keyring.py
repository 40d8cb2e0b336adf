"""Holds the key-encryption keys: wraps data keys with the active one, unwraps with any."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

DATA_KEY_BYTES = 32
_KEY_BYTES = 32
_NONCE_BYTES = 12
_KEYS_MAX = 64
_KEY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class UnwrappableError(Exception):
    """A data key that this ring cannot unwrap. The text names the key id and no key."""


class KeyRingError(Exception):
    """A key ring that cannot be used; the text says what to change."""


class KeyEncryption(Protocol):
    """What the vault needs of whatever keeps the key-encryption keys: a file, or a KMS.

    `context` is authenticated with the wrapped key: unwrapping with another one fails.
    """

    @property
    def active_key_id(self) -> str:
        """The key that new data keys are wrapped with."""
        ...

    async def wrap(self, data_key: bytes, context: bytes) -> tuple[str, bytes]:
        """Return the active key's id and the wrapped data key."""
        ...

    async def unwrap(self, key_id: str, wrapped: bytes, context: bytes) -> bytes:
        """Return the data key. Raises UnwrappableError."""
        ...


class KeyRing:
    """Key-encryption keys held in this process's memory.

    Random nonces bound one key to 2^32 wrappings (NIST SP 800-38D §8.3): rotate long before.
    """

    def __init__(self, active: str, keys: Mapping[str, bytes]) -> None:
        """Raises KeyRingError for ids or sizes that cannot be right."""
        if not 1 <= len(keys) <= _KEYS_MAX:
            raise KeyRingError(f"the key ring needs 1 to {_KEYS_MAX} keys, it has {len(keys)}")
        for key_id, key in keys.items():
            if not _KEY_ID.fullmatch(key_id):
                raise KeyRingError(f"key id {key_id!r} must match {_KEY_ID.pattern}")
            if len(key) != _KEY_BYTES:
                raise KeyRingError(f"key {key_id!r} must have {_KEY_BYTES} bytes in base64")
        if active not in keys:
            raise KeyRingError(f"the active key {active!r} is not among the keys")
        self._active = active
        self._ciphers = {key_id: AESGCM(key) for key_id, key in keys.items()}

    def __repr__(self) -> str:
        return f"KeyRing(active={self._active!r}, keys={sorted(self._ciphers)})"

    @property
    def active_key_id(self) -> str:
        """The key that new data keys are wrapped with."""
        return self._active

    def holds(self, key_id: str) -> bool:
        """Whether the ring has this key."""
        return key_id in self._ciphers

    async def wrap(self, data_key: bytes, context: bytes) -> tuple[str, bytes]:
        """Return the active key's id and nonce + AES-GCM ciphertext of the data key."""
        nonce = os.urandom(_NONCE_BYTES)
        associated = _wrap_context(self._active, context)
        sealed = self._ciphers[self._active].encrypt(nonce, data_key, associated)
        return self._active, nonce + sealed

    async def unwrap(self, key_id: str, wrapped: bytes, context: bytes) -> bytes:
        """Return the data key. Raises UnwrappableError for unknown keys and changed bytes."""
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise UnwrappableError(f"key {key_id!r} is not in the ring")
        nonce, sealed = wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:]
        try:
            return cipher.decrypt(nonce, sealed, _wrap_context(key_id, context))
        except (InvalidTag, ValueError) as error:
            raise UnwrappableError(
                f"a data key wrapped by {key_id!r} was changed or moved"
            ) from error


def _wrap_context(key_id: str, context: bytes) -> bytes:
    return b"wrap " + key_id.encode() + b"\0" + context


def read_key_ring(path: Path) -> KeyRing:
    """Read the ring from a JSON file. Raises KeyRingError with what to change."""
    try:
        text = path.read_text()
    except OSError as error:
        raise KeyRingError(f"the key ring {path} cannot be read: {error.strerror}") from error
    return parse_key_ring(text, source=str(path))


def parse_key_ring(text: str, *, source: str) -> KeyRing:
    """Parse {"active": "k1", "keys": {"k1": "<base64 of 32 bytes>"}}. Raises KeyRingError."""
    try:
        content: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise KeyRingError(f"{source} is not JSON") from error
    shape_error = KeyRingError(
        f'{source} must look like {{"active": "k1", "keys": {{"k1": "<base64 of 32 bytes>"}}}}'
    )
    if not isinstance(content, dict) or set(content) != {"active", "keys"}:
        raise shape_error
    active, encoded = content["active"], content["keys"]
    if not isinstance(active, str) or not isinstance(encoded, dict):
        raise shape_error
    return KeyRing(active, {key_id: _decode(key_id, key) for key_id, key in encoded.items()})


def _decode(key_id: str, encoded: Any) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise KeyRingError(f"key {key_id!r} is not base64") from error
