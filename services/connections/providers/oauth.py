"""OAuth 2.0 with PKCE, as every provider that speaks it needs: pages, codes, refreshes.

RFC 6749 and 7636; the issuer of an answer is checked as RFC 9207 says.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from urllib.parse import quote, urlencode, urlsplit

from services.connections.providers.failures import (
    Cause,
    FailureKind,
    ProviderError,
    answer_invalid,
    rejected,
)
from services.connections.providers.http import (
    Answer,
    Http,
    Request,
    json_object,
    optional_text,
    optional_token,
    post_form,
    raise_for_trouble,
    token_field,
)
from services.connections.providers.provider import (
    AuthorizationAsk,
    AuthorizationGrant,
    Material,
)
from services.connections.secret import Session

ClientAuth = Literal["client_secret_basic", "client_secret_post", "none"]

_WHO = "The OAuth server"
_LIFETIME_SECONDS_MAX = 10 * 365 * 86_400
# A token without a stated end is looked at again after this long.
_LIFETIME_ASSUMED = timedelta(hours=1)
# The grant is over. GitHub answers its own names, and with 200.
_DEAD_GRANT = {"invalid_grant", "bad_refresh_token", "bad_verification_code", "expired_token"}
_BAD_CLIENT = {"invalid_client", "unauthorized_client", "incorrect_client_credentials"}
_OTHER_ERRORS = {"invalid_request", "unsupported_grant_type", "invalid_target"}
_BUSY = {"temporarily_unavailable", "server_error", "slow_down"}


@dataclass(frozen=True, slots=True)
class OAuthClient:
    """The operator's registration at a provider; a public client has no secret."""

    client_id: str
    client_secret: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class OAuthServer:
    """Everything about the server and our registration there; the client's secret is apart
    unless the operator configured it."""

    authorization_endpoint: str
    token_endpoint: str
    client_id: str
    client_auth: ClientAuth = "client_secret_basic"
    client_secret: str = field(default="", repr=False)
    issuer: str = ""
    scopes: tuple[str, ...] = ()
    extra_parameters: Mapping[str, str] = field(default_factory=dict)
    tokens_expire: bool = True


class OAuth:
    """One provider's OAuth: its flow and its sessions."""

    def __init__(self, server: Callable[[Any], OAuthServer]) -> None:
        """`server` reads the server from a connection's settings."""
        self._server = server

    def authorization_url(self, settings: Any, ask: AuthorizationAsk) -> str:
        """The page to send the person to."""
        server = self._server(settings)
        query = {
            **server.extra_parameters,
            "response_type": "code",
            "client_id": server.client_id,
            "redirect_uri": ask.redirect_uri,
            "scope": " ".join(ask.scopes or server.scopes),
            "state": ask.state,
            "code_challenge": ask.code_challenge,
            "code_challenge_method": "S256",
        }
        joint = "&" if urlsplit(server.authorization_endpoint).query else "?"
        return f"{server.authorization_endpoint}{joint}{urlencode(query, quote_via=quote)}"

    def issuer(self, settings: Any) -> str:
        """Who must have answered."""
        return self._server(settings).issuer

    async def exchange(
        self, material: Material, grant: AuthorizationGrant, http: Http, now: datetime
    ) -> Session:
        """Exchange the code."""
        return await self._ask(
            material,
            {
                "grant_type": "authorization_code",
                "code": grant.code,
                "redirect_uri": grant.redirect_uri,
                "code_verifier": grant.code_verifier,
            },
            http,
            now,
        )

    async def begin(self, material: Material, http: Http, now: datetime) -> Session:
        """The session of imported tokens; asks nobody."""
        values = material.secret.values if material.secret else {}
        access_token = values.get("access_token", "")
        refresh_token = values.get("refresh_token", "")
        if not access_token and not refresh_token:
            raise rejected("There are no tokens here: a person must authorise the connection.")
        stated = values.get("expire_time", "")
        # Nothing to use yet: over at once, so that the first use renews it.
        expiry = now if not access_token else None
        if stated and access_token:
            expiry = datetime.fromisoformat(stated).astimezone(UTC)
        return Session({"access_token": access_token, "refresh_token": refresh_token}, expiry)

    async def renew(self, material: Material, http: Http, now: datetime) -> Session:
        """Exchange the refresh token."""
        assert material.session is not None
        refresh_token = material.session.values.get("refresh_token", "")
        if not refresh_token:
            raise rejected("The access token is over and cannot be renewed.", Cause.EXPIRED)
        return await self._ask(
            material, {"grant_type": "refresh_token", "refresh_token": refresh_token}, http, now
        )

    async def _ask(
        self, material: Material, form: Mapping[str, str], http: Http, now: datetime
    ) -> Session:
        server = self._server(material.settings)
        answer = await http.send(_token_request(server, material, form))
        return _session(answer, server, material.session, now)


def _token_request(server: OAuthServer, material: Material, form: Mapping[str, str]) -> Request:
    secret = server.client_secret
    if material.secret is not None:
        secret = material.secret.values.get("client_secret", "") or secret
    if server.client_auth == "client_secret_basic" and secret:
        # RFC 6749 §2.3.1: each half is form-encoded before it is joined.
        pair = f"{quote(server.client_id, safe='')}:{quote(secret, safe='')}"
        basic = base64.b64encode(pair.encode()).decode()
        return post_form(server.token_endpoint, form, {"authorization": f"Basic {basic}"})
    named = {**form, "client_id": server.client_id}
    if server.client_auth == "client_secret_post" and secret:
        named["client_secret"] = secret
    return post_form(server.token_endpoint, named)


def _session(answer: Answer, server: OAuthServer, before: Session | None, now: datetime) -> Session:
    raise_for_trouble(answer, who=_WHO, now=now)
    content = json_object(answer, who=_WHO)
    error = optional_text(content, "error")
    if error or answer.status != 200:
        raise _refusal(answer.status, error)
    refresh_token = optional_token(content, "refresh_token", who=_WHO)
    try:
        access_token = _bearer(content)
    except ProviderError as failure:
        if before is not None and refresh_token:
            # What was presented is used up: only with the next one can the grant go on.
            values = {**before.values, "refresh_token": refresh_token}
            failure.rotated = replace(before, values=values)
        raise
    scope = optional_text(content, "scope")
    if before is not None:
        # RFC 6749 §6: what a refresh leaves out stays as it was.
        refresh_token = refresh_token or before.values.get("refresh_token", "")
    scopes = tuple(scope.replace(",", " ").split()) if scope else ()
    return Session(
        {"access_token": access_token, "refresh_token": refresh_token},
        _expiry(content, server, refresh_token, now),
        scopes=scopes or (before.scopes if before else ()),
        account_id=before.account_id if before else "",
        account_name=before.account_name if before else "",
    )


def _bearer(content: Mapping[str, Any]) -> str:
    token_type = optional_text(content, "token_type") or "bearer"
    if token_type.lower() != "bearer":
        raise answer_invalid(f"{_WHO} gives tokens that are not bearer tokens; no others work.")
    return token_field(content, "access_token", who=_WHO)


def _expiry(
    content: Mapping[str, Any], server: OAuthServer, refresh_token: str, now: datetime
) -> datetime | None:
    stated = content.get("expires_in")
    if isinstance(stated, str) and stated.isdecimal() and len(stated) < 12:
        stated = int(stated)
    if isinstance(stated, int | float) and not isinstance(stated, bool) and stated == stated:
        return now + timedelta(seconds=min(max(stated, 0), _LIFETIME_SECONDS_MAX))
    if not server.tokens_expire or not refresh_token:
        return None
    return now + _LIFETIME_ASSUMED


def _refusal(status: int, error: str) -> ProviderError:
    if error in _DEAD_GRANT:
        return rejected("The OAuth server no longer honours this authorization.")
    if error in _BAD_CLIENT or status == 401:
        # Not the grant's fault: it works again once the operator has put the client right.
        return answer_invalid(
            f"{_WHO} refuses our client; check the client id and secret.", maybe_done=False
        )
    if error in _BUSY:
        return ProviderError(FailureKind.UNAVAILABLE, f"{_WHO} is busy.", maybe_done=True)
    if error in ("invalid_scope", "access_denied"):
        return rejected(f"{_WHO} refused: {error}.")
    # An unknown code is not repeated: an answer may hold what was sent.
    named = error if error in _OTHER_ERRORS else "an error of its own"
    return answer_invalid(f"{_WHO} answered {status} with {named}.")
