"""Makes the tokens Cogni signs itself: who this service is, and what one attempt may do."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydantic import SecretStr

from services.runtime.caller import RunClaims
from services.runtime.settings import SettingsError
from services.runtime.tokens.claims import RUN_SIGNER, RUN_TYPE, service_audience

#: Long enough that signing costs nothing per call, short enough that a stolen token is soon dead.
SERVICE_TOKEN_LIFETIME = timedelta(minutes=5)
#: A cached token is replaced this long before it ends, so that none expires on its way.
_RENEW_SECONDS_BEFORE_END = 60.0
#: One token per callee, tenant and person; the oldest is dropped and made again when needed.
_CACHE_ENTRIES_MAX = 4096
#: The services that verify run tokens.
_RUN_TOKEN_AUDIENCES = (service_audience("connections"), service_audience("ledger"))


def load_service_key(pem: SecretStr | None) -> Ed25519PrivateKey:
    """The process's identity; raises SettingsError with a sentence when it is none."""
    if pem is None:
        raise SettingsError(["COGNI_SERVICE_KEY_FILE is required: this process calls others."])
    try:
        key = load_pem_private_key(pem.get_secret_value().encode(), password=None)
    except (ValueError, TypeError):
        raise SettingsError(["COGNI_SERVICE_KEY_FILE holds no readable PEM private key."]) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SettingsError(["COGNI_SERVICE_KEY_FILE must hold an Ed25519 key."])
    return key


class ServiceTokens:
    """Makes the short-lived tokens by which this service shows others who it is."""

    def __init__(
        self,
        key: Ed25519PrivateKey,
        service: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._key = key
        self._service = service
        self._clock = clock
        self._cache: OrderedDict[tuple[str, str, str | None], tuple[str, float]] = OrderedDict()

    def token(self, audience: str, tenant_id: str, on_behalf_of: str | None = None) -> str:
        """A token for one callee (`audience` is its name, as in "ledger") and one tenant.

        Tenant "*" is for watch streams across tenants. Safe to call from any thread.
        """
        wanted = (audience, tenant_id, on_behalf_of)
        now = self._clock()
        known = self._cache.get(wanted)
        if known is not None and now < known[1] - _RENEW_SECONDS_BEFORE_END:
            return known[0]
        expire_time = now + SERVICE_TOKEN_LIFETIME.total_seconds()
        claims: dict[str, Any] = {
            "iss": self._service,
            "sub": f"service:{self._service}",
            "aud": service_audience(audience),
            "tenant": tenant_id,
            "iat": int(now),
            "exp": int(expire_time),
        }
        if on_behalf_of is not None:
            claims["on_behalf_of"] = on_behalf_of
        token = jwt.encode(claims, self._key, algorithm="EdDSA", headers={"kid": self._service})
        self._cache[wanted] = (token, expire_time)
        while len(self._cache) > _CACHE_ENTRIES_MAX:
            self._cache.popitem(last=False)
        return token


def mint_run_token(key: Ed25519PrivateKey, run: RunClaims, now: datetime) -> str:
    """Signs what one attempt may do until `run.expire_time`, which is never past its lease.

    `key` is the Executor's. The expiry is rounded down to a second: never longer than asked.
    """
    claims: dict[str, Any] = {
        "iss": RUN_SIGNER,
        "sub": f"run:{run.run_id}",
        "aud": list(_RUN_TOKEN_AUDIENCES),
        "typ": RUN_TYPE,
        "tenant": run.tenant_id,
        "run_id": run.run_id,
        "epoch": run.epoch,
        "grant_id": run.grant_id,
        "connection_ids": list(run.connection_ids),
        "account_id": run.account_id,
        "iat": int(now.timestamp()),
        "exp": int(run.expire_time.timestamp()),
    }
    if run.owner:
        claims["on_behalf_of"] = run.owner
    return jwt.encode(claims, key, algorithm="EdDSA", headers={"kid": RUN_SIGNER})
