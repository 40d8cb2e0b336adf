"""Identities for tests: real keys and secrets, and tokens of every kind, right and wrong."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from jwt.algorithms import OKPAlgorithm

from services.runtime.access import Access
from services.runtime.caller import RunClaims
from services.runtime.ids import new_id
from services.runtime.tokens import (
    FileKeys,
    SecretKey,
    ServiceTokens,
    TokenVerifier,
    mint_run_token,
)
from services.runtime.tokens.keys import SERVICE_ALGORITHMS

SECRET = "a secret of the embedded stack, long enough"
SERVICES = ("executor", "scheduler", "connections", "ledger", "runner")


def write_jwks(path: Path, keys: dict[str, Ed25519PrivateKey]) -> None:
    """Writes the public halves as a JWKS whose kids are the names."""
    entries = [
        {**OKPAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": name, "alg": "EdDSA"}
        for name, key in keys.items()
    ]
    path.write_text(json.dumps({"keys": entries}))


def pem(key: Ed25519PrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@dataclass(frozen=True)
class Identities:
    """The keys of one imaginary installation."""

    folder: Path
    keys: dict[str, Ed25519PrivateKey]

    @classmethod
    def create(cls, folder: Path) -> Identities:
        keys = {name: Ed25519PrivateKey.generate() for name in SERVICES}
        write_jwks(folder / "trusted.json", keys)
        (folder / "secret").write_text(SECRET)
        for name, key in keys.items():
            (folder / f"{name}.pem").write_text(pem(key))
        return cls(folder, keys)

    def environ(self) -> dict[str, str]:
        """The auth settings of a process of this installation."""
        return {
            "COGNI_AUTH_HS256_SECRET_FILE": str(self.folder / "secret"),
            "COGNI_TRUSTED_KEYS_FILE": str(self.folder / "trusted.json"),
        }

    def verifier(self, service: str) -> TokenVerifier:
        trusted = FileKeys(self.folder / "trusted.json", SERVICE_ALGORITHMS)
        return TokenVerifier(service, SecretKey(SECRET), trusted)

    def user_token(
        self,
        tenant: str = "acme",
        subject: str = "alice",
        scopes: Iterable[str] = (),
        *,
        secret: str = SECRET,
        **claims: Any,
    ) -> str:
        """A caller token good for an hour; keyword arguments replace claims, None removes one."""
        now = int(time.time())
        payload = {
            "sub": subject,
            "tenant": tenant,
            "scope": " ".join(sorted(scopes)),
            "aud": "cogni",
            "iat": now,
            "exp": now + 3600,
            **claims,
        }
        given = {name: value for name, value in payload.items() if value is not None}
        return jwt.encode(given, secret, algorithm="HS256")

    def service_tokens(self, service: str) -> ServiceTokens:
        return ServiceTokens(self.keys[service], service)

    def service_token(
        self, service: str, audience: str, tenant: str = "acme", on_behalf_of: str | None = None
    ) -> str:
        return self.service_tokens(service).token(audience, tenant, on_behalf_of)

    def run_claims(self, tenant: str = "acme", **changes: Any) -> RunClaims:
        """The claims of an imaginary attempt; keyword arguments replace them."""
        claims = {
            "run_id": new_id(),
            "epoch": 1,
            "tenant_id": tenant,
            "grant_id": new_id(),
            "connection_ids": (new_id(),),
            "account_id": new_id(),
            "expire_time": datetime.now(UTC) + timedelta(minutes=1),
            **changes,
        }
        return RunClaims(**claims)

    def run_token(self, claims: RunClaims | None = None) -> str:
        run = claims or self.run_claims()
        return mint_run_token(self.keys["executor"], run, datetime.now(UTC))

    def allowed(
        self, service: str, access: Access, scopes: Iterable[str], tenant: str = "acme"
    ) -> str:
        """A token whose bearer the entry admits: a person's if it admits people."""
        if access.users:
            return self.user_token(tenant, scopes=scopes)
        if access.services:
            return self.service_token(sorted(access.services)[0], service, tenant)
        return self.run_token(self.run_claims(tenant))
