"""What our tokens say: the names both sides agree on, and verified claims turned into callers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from services.runtime.caller import ALL_TENANTS, Caller, CallerKind, RunClaims
from services.runtime.errors import ServiceError, unauthenticated

#: How far the clocks of our own machines may differ. A run token counts as dead this long after
#: its expiry, so whoever claims a run again waits at least this long.
CLOCK_SKEW = timedelta(seconds=5)
#: A service token that lives longer was not made by our code.
SERVICE_TOKEN_LIFETIME_MAX = timedelta(minutes=15)
#: The service whose key signs run tokens; a runner never holds it.
RUN_SIGNER = "executor"
#: The `typ` claim of run tokens; service tokens have none.
RUN_TYPE = "run"
#: Audiences that begin so belong to services, all others to callers.
SERVICE_AUDIENCE_PREFIX = "cogni:"

_TENANT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_TEXT_LENGTH_MAX = 255
_UNFIT = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
#: Subjects that name our own identities; a caller token with one would mislead an auditor.
_RESERVED_SUBJECTS = ("service:", "run:")


def service_audience(service: str) -> str:
    """The `aud` of tokens that are shown to a service: "cogni:ledger" for "ledger"."""
    return f"{SERVICE_AUDIENCE_PREFIX}{service}"


def user_caller(claims: Mapping[str, Any]) -> Caller:
    """Raises TOKEN_INVALID for claims that name no subject, no tenant, or malformed scopes."""
    subject = _text(claims, "sub")
    if subject.startswith(_RESERVED_SUBJECTS):
        raise invalid_token("The token's subject is reserved for Cogni itself.")
    scope = claims.get("scope", "")
    if not isinstance(scope, str):
        raise invalid_token("The token's scope must be one text, its scopes separated by spaces.")
    return Caller(
        kind=CallerKind.USER,
        subject=subject,
        tenant_id=_tenant(claims),
        scopes=frozenset(scope.split()),
    )


def service_caller(kid: str, claims: Mapping[str, Any]) -> Caller:
    """Raises TOKEN_INVALID unless the key `kid` speaks as its owner, and not for long."""
    lifetime = claims["exp"] - claims.get("iat", 0)
    if lifetime > SERVICE_TOKEN_LIFETIME_MAX.total_seconds():
        raise invalid_token("Service tokens must be short-lived.")
    if claims["sub"] != f"service:{kid}":
        raise invalid_token("The token's subject is not the owner of its key.")
    on_behalf_of = None
    if "on_behalf_of" in claims:
        on_behalf_of = _text(claims, "on_behalf_of")
    return Caller(
        kind=CallerKind.SERVICE,
        subject=claims["sub"],
        tenant_id=ALL_TENANTS if claims.get("tenant") == ALL_TENANTS else _tenant(claims),
        service=kid,
        on_behalf_of=on_behalf_of,
    )


def run_caller(claims: Mapping[str, Any]) -> Caller:
    """Raises TOKEN_INVALID for malformed claims of a run token."""
    run = _run_claims(claims)
    return Caller(
        kind=CallerKind.RUN,
        subject=f"run:{run.run_id}",
        tenant_id=run.tenant_id,
        on_behalf_of=run.owner or None,
        run=run,
    )


def _run_claims(claims: Mapping[str, Any]) -> RunClaims:
    epoch, connection_ids = claims.get("epoch"), claims.get("connection_ids")
    if not isinstance(epoch, int) or isinstance(epoch, bool) or epoch < 1:
        raise invalid_token("The run token's epoch is malformed.")
    if not isinstance(connection_ids, list) or not all(
        isinstance(each, str) for each in connection_ids
    ):
        raise invalid_token("The run token's connections are malformed.")
    return RunClaims(
        run_id=_text(claims, "run_id"),
        epoch=epoch,
        tenant_id=_tenant(claims),
        grant_id=_text(claims, "grant_id"),
        connection_ids=tuple(connection_ids),
        account_id=_text(claims, "account_id", empty=True),
        expire_time=datetime.fromtimestamp(claims["exp"], UTC),
        owner=_text(claims, "on_behalf_of") if "on_behalf_of" in claims else "",
    )


def _tenant(claims: Mapping[str, Any]) -> str:
    tenant = claims.get("tenant")
    if not isinstance(tenant, str) or _TENANT.fullmatch(tenant) is None:
        raise invalid_token("The token names no valid tenant.")
    return tenant


def _text(claims: Mapping[str, Any], name: str, *, empty: bool = False) -> str:
    value = claims.get(name)
    # Control characters would break lines of logs, lone surrogates fit in no column.
    usable = (
        isinstance(value, str) and len(value) <= _TEXT_LENGTH_MAX and _UNFIT.search(value) is None
    )
    if not usable or not (value or empty):
        raise invalid_token(f"The token's claim {name!r} is malformed.")
    return str(value)


def invalid_token(message: str) -> ServiceError:
    """The token proves nothing; `message` says why, for people."""
    return unauthenticated("TOKEN_INVALID", message)


def expired_token() -> ServiceError:
    """The token was good once."""
    return unauthenticated("TOKEN_EXPIRED", "The token has expired; fetch a new one and retry.")
