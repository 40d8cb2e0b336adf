"""Signed tree heads as text: C2SP checkpoints in C2SP signed notes, with Ed25519."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

#: C2SP signed-note: the first byte of an Ed25519 key and of what its id hashes.
_ED25519 = b"\x01"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A signed head: the note, and the key that verifies it."""

    origin: str
    tree_size: int
    root_hash: bytes
    note: str
    verifier_key: str


class LogSigner:
    """Signs the heads of all tenants' logs, each under its own name, with one key."""

    def __init__(self, key: Ed25519PrivateKey, origin: str) -> None:
        """`origin` is what the names of the logs begin with, without a slash at its end."""
        self._key = key
        self._origin = origin
        self._public = key.public_key().public_bytes_raw()

    @classmethod
    def from_pem(cls, pem: str, origin: str) -> LogSigner:
        """Read the key; raises ValueError when it is no Ed25519 private key in PEM."""
        key = load_pem_private_key(pem.encode(), None)
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError("it is not an Ed25519 key")  # noqa: TRY004
        return cls(key, origin)

    def sign(self, tenant_id: str, tree_size: int, root_hash: bytes) -> Checkpoint:
        """Return the signed head of a tenant's log."""
        name = f"{self._origin}/{tenant_id}"
        body = f"{name}\n{tree_size}\n{_base64(root_hash)}\n"
        key_id = self._key_id(name)
        signature = _base64(key_id + self._key.sign(body.encode()))
        return Checkpoint(
            name,
            tree_size,
            root_hash,
            f"{body}\n\N{EM DASH} {name} {signature}\n",
            f"{name}+{key_id.hex()}+{_base64(_ED25519 + self._public)}",
        )

    def _key_id(self, name: str) -> bytes:
        return hashlib.sha256(f"{name}\n".encode() + _ED25519 + self._public).digest()[:4]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
