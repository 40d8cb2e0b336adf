"""Verifies the three kinds of bearer tokens: of callers, of services, of runs."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import jwt

from services.runtime.caller import Caller
from services.runtime.settings import AuthSettings, SettingsError
from services.runtime.tokens.claims import (
    CLOCK_SKEW,
    RUN_SIGNER,
    RUN_TYPE,
    SERVICE_AUDIENCE_PREFIX,
    expired_token,
    invalid_token,
    run_caller,
    service_audience,
    service_caller,
    user_caller,
)
from services.runtime.tokens.keys import (
    CALLER_ALGORITHMS,
    SERVICE_ALGORITHMS,
    FileKeys,
    KeysError,
    KeySource,
    SecretKey,
    UrlKeys,
)

#: How far an identity provider's clock may differ from ours.
CALLER_LEEWAY = timedelta(seconds=30)
TOKEN_LENGTH_MAX = 8 * 1024
#: The year 9999, in seconds since 1970.
_EXPIRE_TIME_MAX = 253_402_300_799

#: Verifying costs about 130 µs (HS256) to 300 µs (EdDSA) of one core, a token seen before 2 µs.
CACHE_ENTRIES_MAX = 10_000
#: A cached token is verified anew after this long, so that keys withdrawn at a URL die.
CACHE_SECONDS_MAX = 300.0


@dataclass(frozen=True, slots=True)
class _Verified:
    caller: Caller
    expire_time: float
    recheck_time: float
    generations: tuple[int, int]


class TokenVerifier:
    """Turns a bearer token into a Caller, for one service.

    Which keys apply is chosen by the token's audience alone: tokens for "cogni:<service>" are
    verified with the trusted services' keys and nothing else, all others with the callers' keys
    and nothing else.
    """

    def __init__(
        self,
        service: str,
        callers: KeySource,
        services: KeySource | None = None,
        *,
        audience: str = "cogni",
        issuer: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`services` None trusts no service. Raises ValueError for an ambiguous audience."""
        if audience.startswith(SERVICE_AUDIENCE_PREFIX):
            raise ValueError("the callers' audience must not begin with 'cogni:'")
        self._own_audience = service_audience(service)
        self._callers = callers
        self._services = services
        self._audience = audience
        self._issuer = issuer
        self._clock = clock
        self._cache: OrderedDict[bytes, _Verified] = OrderedDict()

    @classmethod
    def from_settings(cls, settings: AuthSettings, service: str) -> TokenVerifier:
        """Raises SettingsError, in sentences, when the configured keys cannot be used."""
        problems: list[str] = []
        callers: KeySource | None = None
        services: KeySource | None = None
        try:
            callers = _caller_keys(settings)
        except KeysError as error:
            problems.append(f"COGNI_AUTH_JWKS_FILE: {error}.")
        try:
            if settings.trusted_keys_file is not None:
                services = FileKeys(settings.trusted_keys_file, SERVICE_ALGORITHMS)
        except KeysError as error:
            problems.append(f"COGNI_TRUSTED_KEYS_FILE: {error}.")
        if settings.auth_audience.startswith(SERVICE_AUDIENCE_PREFIX):
            problems.append("COGNI_AUTH_AUDIENCE must not begin with 'cogni:'.")
        if problems or callers is None:
            raise SettingsError(problems or ["Nothing says how caller tokens are checked."])
        return cls(
            service,
            callers,
            services,
            audience=settings.auth_audience,
            issuer=settings.auth_issuer,
        )

    async def verify(self, token: str) -> Caller:
        """Raises UNAUTHENTICATED (TOKEN_INVALID, TOKEN_EXPIRED); UNAVAILABLE without any keys."""
        if len(token) > TOKEN_LENGTH_MAX:
            raise invalid_token("The token is too long.")
        digest = hashlib.sha256(token.encode()).digest()
        now = self._clock()
        generations = self._generations()
        known = self._cache.get(digest)
        if known is not None and known.generations == generations and now < known.recheck_time:
            if now >= known.expire_time:
                raise expired_token()
            self._cache.move_to_end(digest)
            return known.caller
        caller, expire_time = await self._verify(token)
        # With the generations from before: keys that changed meanwhile make the entry worthless.
        self._remember(digest, _Verified(caller, expire_time, now + CACHE_SECONDS_MAX, generations))
        return caller

    def _generations(self) -> tuple[int, int]:
        services = self._services.generation() if self._services is not None else 0
        return self._callers.generation(), services

    def _remember(self, digest: bytes, verified: _Verified) -> None:
        self._cache[digest] = verified
        self._cache.move_to_end(digest)
        if len(self._cache) > CACHE_ENTRIES_MAX:
            self._cache.popitem(last=False)

    async def _verify(self, token: str) -> tuple[Caller, float]:
        header, claims = _peek(token)
        if _is_for_a_service(claims):
            return await self._verify_service_or_run(token, header)
        return await self._verify_user(token, header)

    async def _verify_user(self, token: str, header: Mapping[str, Any]) -> tuple[Caller, float]:
        allowed = CALLER_ALGORITHMS | {"HS256"}
        key, algorithm = await _key_for(self._callers, header, allowed)
        claims = _decode(token, key, algorithm, self._audience, CALLER_LEEWAY, self._issuer)
        return user_caller(claims), claims["exp"] + CALLER_LEEWAY.total_seconds()

    async def _verify_service_or_run(
        self, token: str, header: Mapping[str, Any]
    ) -> tuple[Caller, float]:
        if self._services is None:
            raise invalid_token("This server trusts no service keys.")
        kid = header.get("kid")
        if not isinstance(kid, str):
            raise invalid_token("The token does not name its key.")
        key, algorithm = await _key_for(self._services, header, SERVICE_ALGORITHMS)
        # The issuer must be the key's name: a key speaks for the one service it is named after.
        claims = _decode(token, key, algorithm, self._own_audience, CLOCK_SKEW, issuer=kid)
        if claims.get("typ") == RUN_TYPE:
            return self._run_caller(kid, claims)
        if "typ" in claims:
            raise invalid_token("The token is of an unknown type.")
        return service_caller(kid, claims), claims["exp"] + CLOCK_SKEW.total_seconds()

    def _run_caller(self, kid: str, claims: Mapping[str, Any]) -> tuple[Caller, float]:
        if kid != RUN_SIGNER:
            raise invalid_token("Run tokens are signed by the Executor alone.")
        # No leeway on the expiry: an old attempt's token must be dead when a new attempt begins.
        if self._clock() >= claims["exp"]:
            raise expired_token()
        return run_caller(claims), float(claims["exp"])


def _caller_keys(settings: AuthSettings) -> KeySource | None:
    if settings.auth_hs256_secret is not None:
        return SecretKey(settings.auth_hs256_secret.get_secret_value())
    if settings.auth_jwks_file is not None:
        return FileKeys(settings.auth_jwks_file, CALLER_ALGORITHMS)
    if settings.auth_jwks_url is not None:
        return UrlKeys(settings.auth_jwks_url, CALLER_ALGORITHMS)
    return None


def _peek(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims before any verification: good for choosing keys, for nothing else."""
    try:
        parts = jwt.decode_complete(token, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise invalid_token("The token is not a JWT.") from None
    return parts["header"], parts["payload"]


def _is_for_a_service(claims: Mapping[str, Any]) -> bool:
    audience = claims.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    return any(
        isinstance(each, str) and each.startswith(SERVICE_AUDIENCE_PREFIX) for each in audiences
    )


async def _key_for(
    source: KeySource, header: Mapping[str, Any], allowed: frozenset[str]
) -> tuple[Any, str]:
    algorithm, kid = header.get("alg"), header.get("kid")
    # Read before any proof: the header's values may be of any type.
    usable = kid is None or isinstance(kid, str)
    if not isinstance(algorithm, str) or algorithm not in allowed or not usable:
        raise invalid_token("The token's algorithm is not allowed.")
    key = await source.find(kid, algorithm)
    if key is None:
        raise invalid_token("The token is not signed by a trusted key.")
    return key, algorithm


def _decode(
    token: str, key: Any, algorithm: str, audience: str, leeway: timedelta, issuer: str | None
) -> dict[str, Any]:
    try:
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=audience,
            issuer=issuer,
            leeway=leeway,
            options={"require": ["exp", "sub", "aud"]},
        )
    except jwt.ExpiredSignatureError:
        raise expired_token() from None
    except jwt.ImmatureSignatureError:
        raise invalid_token("The token is not valid yet.") from None
    except jwt.InvalidAudienceError:
        raise invalid_token("The token is for another audience.") from None
    except jwt.InvalidIssuerError:
        raise invalid_token("The token is from another issuer.") from None
    except jwt.MissingRequiredClaimError as error:
        raise invalid_token(f"The token lacks the claim {error.claim!r}.") from None
    except jwt.InvalidSignatureError:
        raise invalid_token("The token is not signed by a trusted key.") from None
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError):
        raise invalid_token("The token is malformed.") from None
    expire_time = claims["exp"]
    # datetime's own bound, which larger numbers would meet later as an error.
    if not isinstance(expire_time, int | float) or expire_time > _EXPIRE_TIME_MAX:
        raise invalid_token("The token is malformed.")
    return claims
