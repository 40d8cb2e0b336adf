"""github_app: a GitHub App's installation; each lease can be cut down to repositories and
permissions.

https://docs.github.com/en/rest/apps/apps#create-an-installation-access-token-for-an-app: tokens
live an hour and can be minted at any time from the app's private key, which the operator keeps:
a connection only names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydantic import Field, field_validator

from cogni.egress_rules import origin_of
from services.connections.credential import BearerCredential
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
    get,
    json_object,
    post_json,
    raise_for_trouble,
    retry_after,
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

_WHO = "GitHub"
# GitHub refuses app tokens of more than ten minutes, and clocks differ.
_JWT_LIFETIME = timedelta(minutes=9)
_CLOCK_SKEW = timedelta(minutes=1)
_LEVELS = ("read", "write", "admin")
_PERMISSION = re.compile(r"(?P<name>[a-z_]{1,64}):(?P<level>read|write|admin)")
_REPOSITORY = re.compile(r"[A-Za-z0-9-]{1,39}/(?P<name>[A-Za-z0-9._-]{1,100})")


class GitHubAppSettings(ProviderSettings):
    """Which app, which installation, and which of the operator's keys."""

    secret_bound: ClassVar[frozenset[str]] = frozenset()

    app_id: str = Field(
        pattern=r"^[A-Za-z0-9._-]{1,64}$", description="The app's id, or its client id."
    )
    installation_id: str = Field(
        pattern=r"^[0-9]{1,20}$", description="The installation, from its settings page's address."
    )
    private_key: str = Field(
        pattern=r"^[A-Za-z0-9._-]{1,63}$",
        description="The name of the app's private key among the operator's keys.",
    )
    api_url: str = Field(
        default="https://api.github.com",
        max_length=512,
        description="GitHub's API; another for GitHub Enterprise Server.",
    )

    @field_validator("api_url")
    @classmethod
    def _is_a_url(cls, value: str) -> str:
        origin_of(value)
        return value.rstrip("/")

    def urls(self) -> dict[str, str]:
        """The API."""
        return {"api_url": self.api_url}


class GitHubAppSessions:
    """Installation access tokens: minted, never refreshed."""

    def __init__(self, private_keys: Mapping[str, str]) -> None:
        """`private_keys` are PEM texts by name."""
        self._private_keys = private_keys
        self._parsed: dict[str, RSAPrivateKey] = {}

    async def begin(self, material: Material, http: Http, now: datetime) -> Session:
        """Mint a token with everything the installation has."""
        return await self._mint(material, {}, http, now)

    async def renew(self, material: Material, http: Http, now: datetime) -> Session:
        """Mint the next one."""
        return await self._mint(material, {}, http, now)

    async def narrow(
        self, material: Material, wish: LeaseWish, http: Http, now: datetime
    ) -> Session:
        """Mint a token that can do what a tool asked for and no more."""
        return await self._mint(material, narrowed(wish), http, now)

    async def _mint(
        self, material: Material, body: Mapping[str, Any], http: Http, now: datetime
    ) -> Session:
        settings: GitHubAppSettings = material.settings
        url = f"{settings.api_url}/app/installations/{settings.installation_id}/access_tokens"
        answer = await http.send(post_json(url, body, bearer=self._app_token(settings, now)))
        return _session(answer, settings, now)

    def _app_token(self, settings: GitHubAppSettings, now: datetime) -> str:
        if settings.private_key not in self._private_keys:
            raise answer_invalid(
                f"The operator has no private key named {settings.private_key!r}.",
                maybe_done=False,
            )
        claims = {
            "iat": int((now - _CLOCK_SKEW).timestamp()),
            "exp": int((now + _JWT_LIFETIME - _CLOCK_SKEW).timestamp()),
            "iss": settings.app_id,
        }
        try:
            return jwt.encode(claims, self._key(settings.private_key), algorithm="RS256")
        except (jwt.PyJWTError, UnsupportedAlgorithm, ValueError, TypeError):
            raise answer_invalid(
                f"The private key {settings.private_key!r} is not an RSA key in PEM.",
                maybe_done=False,
            ) from None

    def _key(self, name: str) -> RSAPrivateKey:
        """Raises ValueError, TypeError or UnsupportedAlgorithm when it is no RSA key in PEM."""
        # Parsed once for all leases: checking an RSA key's numbers takes tens of milliseconds,
        # in which the server does nothing else.
        if name not in self._parsed:
            key = load_pem_private_key(self._private_keys[name].encode(), password=None)
            if not isinstance(key, RSAPrivateKey):
                raise TypeError(f"{type(key).__name__} is no RSA key")
            self._parsed[name] = key
        return self._parsed[name]


def narrowed(wish: LeaseWish) -> dict[str, Any]:
    """What GitHub is asked for instead of everything. Raises ProviderError for other spellings."""
    body: dict[str, Any] = {}
    if wish.scopes:
        permissions: dict[str, str] = {}
        for scope in wish.scopes:
            match = _PERMISSION.fullmatch(scope)
            if match is None:
                raise rejected(f"{scope!r} is no permission like issues:write.")
            permissions[match["name"]] = match["level"]
        body["permissions"] = permissions
    if wish.resources:
        names = []
        for resource in wish.resources:
            match = _REPOSITORY.fullmatch(resource)
            if match is None:
                raise rejected(f"{resource!r} is no repository like owner/name.")
            names.append(match["name"])
        body["repositories"] = names
    return body


def missing_permissions(granted: tuple[str, ...], wanted: tuple[str, ...]) -> list[str]:
    """The wanted permissions that no granted one of the same or a higher level covers."""
    held = {
        match["name"]: _LEVELS.index(match["level"])
        for scope in granted
        if (match := _PERMISSION.fullmatch(scope))
    }
    return sorted(
        scope
        for scope in wanted
        if (match := _PERMISSION.fullmatch(scope)) is None
        or held.get(match["name"], -1) < _LEVELS.index(match["level"])
    )


def _session(answer: Answer, settings: GitHubAppSettings, now: datetime) -> Session:
    if answer.status == 403 and answer.headers.get("x-ratelimit-remaining") == "0":
        raise ProviderError(
            FailureKind.RATE_LIMITED,
            "GitHub limits how often this may be done.",
            retry_after=retry_after(answer, now=now),
        )
    raise_for_trouble(answer, who=_WHO, now=now)
    content = json_object(answer, who=_WHO)
    if answer.status == 401:
        raise answer_invalid(
            "GitHub refuses the app's key; check app_id and private key.", maybe_done=False
        )
    if answer.status in (403, 404):
        raise rejected(
            "GitHub knows no such installation of the app, or it is suspended.",
            Cause.WITHDRAWN_AT_PROVIDER,
        )
    if answer.status == 422:
        raise rejected("The installation lacks a repository or permission that was asked for.")
    if answer.status != 201:
        raise answer_invalid(f"GitHub answered {answer.status}.")
    permissions = content.get("permissions")
    scopes = (
        tuple(sorted(filter(_PERMISSION.fullmatch, map(":".join, _texts(permissions)))))
        if isinstance(permissions, dict)
        else ()
    )
    return Session(
        {"access_token": token_field(content, "token", who=_WHO)},
        _expiry(text_field(content, "expires_at", who=_WHO), now),
        scopes=scopes,
        account_id=settings.installation_id,
        account_name=f"installation {settings.installation_id}",
    )


def _texts(permissions: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, level) for name, level in permissions.items() if isinstance(level, str)]


def _expiry(stated: str, now: datetime) -> datetime:
    try:
        moment = datetime.fromisoformat(stated)
        moment = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise answer_invalid("GitHub answered with an 'expires_at' that is no time.") from error
    return min(max(moment, now), now + timedelta(hours=1))


async def _probe(material: Material, http: Http, now: datetime) -> str:
    assert material.session is not None
    url = f"{material.settings.api_url}/installation/repositories?per_page=1"
    answer = await http.send(get(url, bearer=material.session.values["access_token"]))
    raise_for_trouble(answer, who=_WHO, now=now)
    content = json_object(answer, who=_WHO)
    if answer.status != 200:
        raise rejected("GitHub no longer honours this token.", Cause.WITHDRAWN_AT_PROVIDER)
    count = content.get("total_count")
    return f"Reaches {count} repositories." if isinstance(count, int) else "It is accepted."


def _lend(material: Material, wish: LeaseWish) -> BearerCredential:
    assert material.session is not None
    return BearerCredential(material.session.values["access_token"], material.settings.api_url)


def github_app(private_keys: Mapping[str, str]) -> Provider:
    """GitHub Apps whose private keys the operator has given."""
    sessions = GitHubAppSessions(private_keys)
    return Provider(
        id="github_app",
        display_name="GitHub App",
        description=(
            "Acts at GitHub as an app's installation. Needs the app's id, the installation's id, "
            "and a private key that the operator has put in place."
        ),
        documentation_uri="https://docs.github.com/en/apps",
        auth_kinds=(AuthKind.GITHUB_APP,),
        settings=GitHubAppSettings,
        lend=_lend,
        refresh_policy=RefreshPolicy.REMINT,
        sessions=sessions,
        narrow=sessions.narrow,
        missing_scopes=missing_permissions,
        probe=_probe,
        credential_lifetime=timedelta(hours=1),
        supports_downscoping=True,
        configured=bool(private_keys),
    )
