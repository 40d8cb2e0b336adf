"""An OAuth authorization under way: its single-use state, its proof, and what it will make."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from services.connections.connection_requests import NewConnectionWanted
from services.connections.vault import Binding, Envelope
from services.runtime.errors import ErrorKind, ServiceError
from services.runtime.jsonvalues import canonical_json

LIFETIME = timedelta(minutes=15)
KIND = "authorization"


@dataclass(frozen=True, slots=True)
class Proof:
    """What only we know of an authorization: the state, the PKCE verifier, a caller's own client
    secret."""

    state: str = field(repr=False)
    code_verifier: str = field(repr=False)
    client_secret: str = field(default="", repr=False)

    @classmethod
    def fresh(cls, client_secret: str) -> Proof:
        """A proof of 256 random bits each."""
        return cls(secrets.token_urlsafe(32), secrets.token_urlsafe(48), client_secret)

    @property
    def code_challenge(self) -> str:
        """S256 of the verifier (RFC 7636 §4.2)."""
        digest = hashlib.sha256(self.code_verifier.encode()).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()

    def to_bytes(self) -> bytes:
        """The proof as it is sealed."""
        parts = [self.state, self.code_verifier, self.client_secret]
        return json.dumps(parts, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Proof:
        """The proof that was sealed."""
        return cls(*json.loads(content))


def state_hash(state: str) -> bytes:
    """What is stored of a state, so that a reader of the table cannot complete it."""
    return hashlib.sha256(state.encode("utf-8", "surrogatepass")).digest()


@dataclass(frozen=True, slots=True)
class BeginWanted:
    """What a caller asks to authorise: an existing connection, or a new one."""

    request_id: str
    connection_id: str
    new: NewConnectionWanted | None
    scopes: tuple[str, ...]
    redirect_uri: str
    return_uri: str

    def hash(self) -> bytes:
        """Stands for the request, its client secret left out."""
        new = self.new
        content = {
            "connection_id": self.connection_id,
            "new": new.to_json() if new else None,
            "scopes": list(self.scopes),
            "redirect_uri": self.redirect_uri,
            "return_uri": self.return_uri,
        }
        return hashlib.sha256(canonical_json(content)).digest()


@dataclass(frozen=True, slots=True)
class Authorization:
    """One authorization as stored; `plan` is the new connection's part without its secret."""

    tenant_id: str
    authorization_id: str
    request_hash: bytes
    subject: str
    provider: str
    connection_id: str | None
    issuer: str
    redirect_uri: str
    return_uri: str
    scopes: tuple[str, ...]
    plan: Mapping[str, Any]
    envelope: Envelope
    expire_time: datetime

    @property
    def binding(self) -> Binding:
        """The row its envelope belongs to."""
        return binding_of(self.tenant_id, self.authorization_id, self.provider)


def binding_of(tenant_id: str, authorization_id: str, provider: str) -> Binding:
    """The row that an authorization's envelope belongs to."""
    return Binding(tenant_id, authorization_id, provider, KIND, 1)


def authorization_invalid() -> ServiceError:
    """One answer for unknown, used, expired and foreign states, and for another issuer's answer:
    they must not be told apart."""
    return ServiceError(
        ErrorKind.FAILED_PRECONDITION,
        "AUTHORIZATION_INVALID",
        "This authorization is unknown, used or over, it was begun by somebody else, or the answer "
        "does not name the connection's issuer; begin again.",
    )
