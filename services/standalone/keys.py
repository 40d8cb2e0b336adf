"""The stack's own secrets: made once, kept in files that only this user can read."""

import base64
import json
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from services.standalone.errors import StandaloneError
from services.standalone.private import write_private

IDENTITIES: Final = ("executor", "scheduler", "runner")
AUDIENCE: Final = "cogni"
SECRET_BYTES: Final = 48
KEY_ENCRYPTION_KEY_BYTES: Final = 32
TOKEN_TTL_MAX: Final = timedelta(days=366)


@dataclass(frozen=True)
class Keys:
    """Where each secret of one stack is."""

    directory: Path

    @property
    def caller_secret(self) -> Path:
        """The HS256 secret that callers' tokens are signed with."""
        return self.directory / "caller.secret"

    @property
    def trusted(self) -> Path:
        """The public keys of the services, as a JWKS."""
        return self.directory / "services.jwks.json"

    @property
    def keyring(self) -> Path:
        """The key-encryption keys of Connections."""
        return self.directory / "connections.keyring.json"

    @property
    def ledger_log(self) -> Path:
        """The Ed25519 private key, as PEM, that signs the heads of the tenants' logs."""
        return self.directory / "ledger-log.pem"

    def identity(self, name: str) -> Path:
        """The Ed25519 private key, as PEM, of one of IDENTITIES."""
        return self.directory / f"{name}.pem"

    def ensure(self) -> None:
        """Makes what does not exist yet; what exists is never replaced.

        Losing the keyring would make every stored credential unreadable, so a file that is
        there but broken is for a person to look at.
        """
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self.caller_secret.exists():
            write_private(self.caller_secret, secrets.token_urlsafe(SECRET_BYTES))
        if not self.keyring.exists():
            key = base64.b64encode(secrets.token_bytes(KEY_ENCRYPTION_KEY_BYTES)).decode()
            write_private(self.keyring, json.dumps({"active": "k1", "keys": {"k1": key}}))
        for path in (self.ledger_log, *(self.identity(name) for name in IDENTITIES)):
            if not path.exists():
                write_private(path, _new_private_key())
        public = [_public_jwk(name, self.identity(name)) for name in IDENTITIES]
        write_private(self.trusted, json.dumps({"keys": public}, indent=2))

    def mint_caller_token(
        self, *, subject: str, tenant: str, scopes: tuple[str, ...], ttl: timedelta, now: datetime
    ) -> str:
        """A token that the stack's services accept from a caller.

        Raises StandaloneError when the stack was never started or `ttl` is out of bounds.
        """
        if not timedelta() < ttl <= TOKEN_TTL_MAX:
            raise StandaloneError("A token lives longer than nothing and at most 366 days.")
        try:
            secret = self.caller_secret.read_text(encoding="ascii")
        except FileNotFoundError:
            raise StandaloneError(
                f"{self.directory.parent} holds no stack yet; start one with "
                f"`python -m services.standalone up`, or name another with --data-dir."
            ) from None
        claims = {
            "sub": subject,
            "tenant": tenant,
            "scope": " ".join(scopes),
            "aud": AUDIENCE,
            "iat": now,
            "exp": now + ttl,
        }
        return jwt.encode(claims, secret, algorithm="HS256")


def now_utc() -> datetime:
    """The present moment."""
    return datetime.now(UTC)


def _new_private_key() -> str:
    private = Ed25519PrivateKey.generate()
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def _public_jwk(name: str, path: Path) -> dict[str, str]:
    try:
        private = load_pem_private_key(path.read_bytes(), password=None)
    except ValueError:
        private = None
    if not isinstance(private, Ed25519PrivateKey):
        raise StandaloneError(
            f"{path} is not an Ed25519 private key in PEM; put the right file back, or delete it "
            f"to have a new one made."
        )
    raw = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    encoded = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
    return {
        "kty": "OKP",
        "crv": "Ed25519",
        "x": encoded,
        "kid": name,
        "use": "sig",
        "alg": "EdDSA",
    }
