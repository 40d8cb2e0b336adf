"""bluesky: an account at an AT Protocol server, connected with an app password.

A lease carries a session's access token, never the app password. Sessions are kept and refreshed,
since createSession is limited to 30 per 5 minutes and 300 per day for an account; a refresh token
stays good for 2 hours after its use (the reference server's REFRESH_GRACE_MS).
"""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from pydantic import Field, field_validator

from cogni.egress_rules import origin_of
from services.connections.credential import BlueskyCredential
from services.connections.providers.failures import Cause, ProviderError, answer_invalid, rejected
from services.connections.providers.http import (
    Answer,
    Http,
    get,
    json_object,
    optional_text,
    post_empty,
    post_json,
    raise_for_trouble,
    text_field,
    token_field,
)
from services.connections.providers.provider import (
    LeaseWish,
    Material,
    Provider,
    ProviderSettings,
    RefreshPolicy,
)
from services.connections.secret import AuthKind, Session

_WHO = "The AT Protocol server"
# What the reference server gives; taken where a token does not say itself.
_ACCESS_LIFETIME = timedelta(hours=2)
_TAKEN_DOWN = ("AccountTakedown", "AccountDeactivated", "AccountSuspended")


class BlueskySettings(ProviderSettings):
    """Which server holds the account."""

    secret_bound: ClassVar[frozenset[str]] = frozenset({"service_url"})

    service_url: str = Field(
        default="https://bsky.social",
        max_length=512,
        description="The AT Protocol server that holds the account.",
    )

    @field_validator("service_url")
    @classmethod
    def _is_an_origin(cls, value: str) -> str:
        origin_of(value)
        return value.rstrip("/")

    def urls(self) -> dict[str, str]:
        """The server."""
        return {"service_url": self.service_url}


class BlueskySessions:
    """com.atproto.server.createSession and refreshSession."""

    async def begin(self, material: Material, http: Http, now: datetime) -> Session:
        """Sign in with the app password."""
        assert material.secret is not None
        values = material.secret.values
        answer = await http.send(
            post_json(
                _xrpc(material, "com.atproto.server.createSession"),
                {"identifier": values["identifier"], "password": values["password"]},
            )
        )
        return _session(answer, now, refusal="The server refused this identifier and app password.")

    async def renew(self, material: Material, http: Http, now: datetime) -> Session:
        """Exchange the refresh token."""
        assert material.session is not None
        answer = await http.send(
            post_empty(
                _xrpc(material, "com.atproto.server.refreshSession"),
                bearer=material.session.values["refresh_jwt"],
            )
        )
        return _session(answer, now, refusal="The server no longer honours this session.")


async def _probe(material: Material, http: Http, now: datetime) -> str:
    assert material.session is not None
    access_jwt = material.session.values["access_jwt"]
    url = _xrpc(material, "com.atproto.server.getSession")
    answer = await http.send(get(url, bearer=access_jwt))
    raise_for_trouble(answer, who=_WHO, now=now)
    content = json_object(answer, who=_WHO)
    if answer.status != 200:
        refusal = "The server no longer honours this session."
        raise _refusal(answer.status, optional_text(content, "error"), refusal)
    return f"Signed in as {text_field(content, 'handle', who=_WHO)}."


def _xrpc(material: Material, method: str) -> str:
    return f"{material.settings.service_url}/xrpc/{method}"


def _session(answer: Answer, now: datetime, *, refusal: str) -> Session:
    raise_for_trouble(answer, who=_WHO, now=now)
    content = json_object(answer, who=_WHO)
    if answer.status != 200:
        raise _refusal(answer.status, optional_text(content, "error"), refusal)
    access_jwt = token_field(content, "accessJwt", who=_WHO)
    did = text_field(content, "did", who=_WHO)
    if not did.startswith("did:"):
        raise answer_invalid(f"{_WHO} answered with a 'did' that is none.")
    if content.get("active") is False:
        raise rejected("The account is not active.", Cause.ACCOUNT_SUSPENDED)
    return Session(
        values={
            "access_jwt": access_jwt,
            "refresh_jwt": token_field(content, "refreshJwt", who=_WHO),
        },
        expire_time=_expiry(access_jwt, now),
        account_id=did,
        account_name=optional_text(content, "handle"),
    )


def _refusal(status: int, error: str, refusal: str) -> ProviderError:
    if error in _TAKEN_DOWN:
        return rejected("The account is suspended or deactivated.", Cause.ACCOUNT_SUSPENDED)
    if error == "AuthFactorTokenRequired":
        return rejected("This is the account's main password; make an app password instead.")
    if status in (400, 401, 403):
        return rejected(refusal)
    return answer_invalid(f"{_WHO} answered {status}; check the service URL.")


def _expiry(access_jwt: str, now: datetime) -> datetime:
    """When the token says it ends, read without trusting it: never beyond a day from now."""
    latest = now + timedelta(days=1)
    try:
        payload = access_jwt.split(".")[1]
        claims: Any = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        stated = datetime.fromtimestamp(int(claims["exp"]), UTC)
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, OSError, RecursionError):
        return now + _ACCESS_LIFETIME
    return min(max(stated, now), latest)


def _lend(material: Material, wish: LeaseWish) -> BlueskyCredential:
    assert material.session is not None
    return BlueskyCredential(
        access_jwt=material.session.values["access_jwt"],
        did=material.session.account_id,
        handle=material.session.account_name,
        service_url=material.settings.service_url,
    )


BLUESKY = Provider(
    id="bluesky",
    display_name="Bluesky",
    description=(
        "Posts, replies and reads as an account at Bluesky or any other AT Protocol server. "
        "Needs the handle and an app password (Settings, Privacy and security, App passwords)."
    ),
    documentation_uri="https://docs.bsky.app/docs/get-started",
    auth_kinds=(AuthKind.APP_PASSWORD,),
    settings=BlueskySettings,
    lend=_lend,
    refresh_policy=RefreshPolicy.GRACE,
    sessions=BlueskySessions(),
    restarts=True,
    probe=_probe,
    renew_before=timedelta(minutes=10),
    credential_lifetime=_ACCESS_LIFETIME,
)
