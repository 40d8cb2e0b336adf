"""Seals secrets into envelopes that open only for the row they were made for.

Each envelope has a data key of its own, wrapped by a key-encryption key of the ring. The data key
is never used directly: HKDF makes an encryption key and a commitment tag of it, because AES-GCM
alone lets one ciphertext open under two keys (key commitment, as in the AWS Encryption SDK).
"""

from __future__ import annotations

import hmac
import json
import os
from dataclasses import dataclass, replace

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from services.connections.keyring import DATA_KEY_BYTES, KeyEncryption, UnwrappableError

VERSION = 1
NONCE_BYTES = 12
COMMITMENT_BYTES = 32
PLAINTEXT_BYTES_MAX = 256 * 1024
# json.dumps makes an encoder in each call, a third of what it takes.
_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True).encode


class UnreadableError(Exception):
    """An envelope that does not open. The text says why and holds nothing of the content."""


@dataclass(frozen=True, slots=True)
class Binding:
    """Which row an envelope belongs to; moved to any other, it does not open.

    `kind` says what is inside ("secret", "session", ...), `generation` counts its replacements,
    so that an older envelope of the same row does not open either.
    """

    tenant_id: str
    connection_id: str
    provider: str
    kind: str
    generation: int

    def associated_data(self) -> bytes:
        """The binding as bytes; JSON keeps ("a", "bc") and ("ab", "c") apart."""
        parts = [
            f"cogni-vault-v{VERSION}",
            self.tenant_id,
            self.connection_id,
            self.provider,
            self.kind,
            self.generation,
        ]
        return _encode(parts).encode()


@dataclass(frozen=True, slots=True)
class Envelope:
    """What is stored instead of a secret."""

    key_id: str
    wrapped_key: bytes
    nonce: bytes
    ciphertext: bytes
    commitment: bytes


async def seal(plaintext: bytes, binding: Binding, keys: KeyEncryption) -> Envelope:
    """Return an envelope of `plaintext` under the ring's active key.

    Raises ValueError for more than PLAINTEXT_BYTES_MAX bytes.
    """
    if len(plaintext) > PLAINTEXT_BYTES_MAX:
        raise ValueError(f"a secret has at most {PLAINTEXT_BYTES_MAX} bytes")
    data_key = os.urandom(DATA_KEY_BYTES)
    associated = binding.associated_data()
    encryption_key, commitment = _derive(data_key)
    nonce = os.urandom(NONCE_BYTES)
    ciphertext = AESGCM(encryption_key).encrypt(nonce, plaintext, associated)
    key_id, wrapped = await keys.wrap(data_key, associated)
    return Envelope(key_id, wrapped, nonce, ciphertext, commitment)


async def unseal(envelope: Envelope, binding: Binding, keys: KeyEncryption) -> bytes:
    """Return what was sealed. Raises UnreadableError unless everything is as it was sealed."""
    if len(envelope.nonce) != NONCE_BYTES or len(envelope.commitment) != COMMITMENT_BYTES:
        raise UnreadableError("the envelope is damaged")
    associated = binding.associated_data()
    data_key = await _unwrap(envelope, associated, keys)
    encryption_key, commitment = _derive(data_key)
    if not hmac.compare_digest(commitment, envelope.commitment):
        raise UnreadableError("the envelope was sealed with another data key")
    try:
        return AESGCM(encryption_key).decrypt(envelope.nonce, envelope.ciphertext, associated)
    except (InvalidTag, ValueError) as error:
        raise UnreadableError("the ciphertext was changed or is of another row") from error


async def rewrap(envelope: Envelope, binding: Binding, keys: KeyEncryption) -> Envelope:
    """Return the envelope with its data key wrapped by the active key; the content stays sealed.

    The commitment is checked first, so that a damaged row is not given a fresh, valid-looking
    wrapping. Raises UnreadableError.
    """
    associated = binding.associated_data()
    data_key = await _unwrap(envelope, associated, keys)
    _, commitment = _derive(data_key)
    if not hmac.compare_digest(commitment, envelope.commitment):
        raise UnreadableError("the envelope was sealed with another data key")
    key_id, wrapped = await keys.wrap(data_key, associated)
    return replace(envelope, key_id=key_id, wrapped_key=wrapped)


async def _unwrap(envelope: Envelope, associated: bytes, keys: KeyEncryption) -> bytes:
    try:
        data_key = await keys.unwrap(envelope.key_id, envelope.wrapped_key, associated)
    except UnwrappableError as error:
        raise UnreadableError(str(error)) from error
    if len(data_key) != DATA_KEY_BYTES:
        raise UnreadableError("the data key has the wrong size")
    return data_key


def _derive(data_key: bytes) -> tuple[bytes, bytes]:
    """Return the encryption key and the commitment tag of a data key."""
    expanded = HKDF(
        algorithm=SHA256(),
        length=DATA_KEY_BYTES + COMMITMENT_BYTES,
        salt=None,
        info=b"cogni-vault-v1 encrypt+commit",
    ).derive(data_key)
    return expanded[:DATA_KEY_BYTES], expanded[DATA_KEY_BYTES:]
