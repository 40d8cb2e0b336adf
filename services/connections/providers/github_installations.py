"""What GitHub says to an app about itself: its proof of identity, and where it is installed.

https://docs.github.com/en/rest/apps/apps#list-installations-for-the-authenticated-app
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydantic import Field, field_validator

from cogni.egress_rules import origin_of
from services.connections.installation import Installation
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
    optional_text,
    raise_for_trouble,
    retry_after,
)
from services.connections.providers.provider import ProviderSettings
from services.runtime.errors import denied

WHO = "GitHub"
GITHUB_API = "https://api.github.com"
# GitHub refuses app tokens of more than ten minutes, and clocks differ.
_JWT_LIFETIME = timedelta(minutes=9)
_CLOCK_SKEW = timedelta(minutes=1)
#: What GitHub gives at most.
PAGE_SIZE_MAX = 100
#: "issues:write"
PERMISSION = re.compile(r"(?P<name>[a-z_]{1,64}):(?P<level>read|write|admin)")


@dataclass(frozen=True, slots=True)
class AppKey:
    """A private key of the operator's, the tenants that may act with it (None for every), and the
    GitHub that it is for: what it proves is shown to no other host."""

    pem: str
    tenants: frozenset[str] | None = None
    api_url: str = GITHUB_API

    def __repr__(self) -> str:
        return f"AppKey(tenants={self.tenants!r}, api_url={self.api_url!r})"


def checked_api_url(value: str) -> str:
    """The URL as it is compared. Raises ValueError with what is wrong with it."""
    origin_of(value)
    return value.rstrip("/")


class GitHubAppKeySettings(ProviderSettings):
    """Which app, and which of the operator's keys proves it."""

    # Or whoever may edit a connection could have the app's live token sent to another host.
    secret_bound: ClassVar[frozenset[str]] = frozenset(
        {"app_id", "private_key", "api_url", "installation_id"}
    )

    app_id: str = Field(
        pattern=r"^[A-Za-z0-9._-]{1,64}$", description="The app's id, or its client id."
    )
    private_key: str = Field(
        pattern=r"^[A-Za-z0-9._-]{1,63}$",
        description="The name of the app's private key among the operator's keys.",
    )
    api_url: str = Field(
        default=GITHUB_API,
        max_length=512,
        description=(
            "GitHub's API; another for GitHub Enterprise Server, as the operator wrote it beside "
            "the key."
        ),
    )

    @field_validator("api_url")
    @classmethod
    def _is_a_url(cls, value: str) -> str:
        return checked_api_url(value)

    def urls(self) -> dict[str, str]:
        """The API."""
        return {"api_url": self.api_url}


class AppKeys:
    """The operator's keys: who may use which, and what they prove."""

    def __init__(self, keys: Mapping[str, AppKey]) -> None:
        self._keys = keys
        self._parsed: dict[str, RSAPrivateKey] = {}

    def check_tenant(self, tenant_id: str, settings: Any) -> None:
        """Raise APP_KEY_NOT_ALLOWED when the operator keeps the key for others, or for another
        GitHub: whoever may use an app's key, or is shown what it proves, reaches every account
        that installed the app."""
        key = self._keys.get(settings.private_key)
        if key is None:
            return
        named = {"private_key": settings.private_key}
        if key.tenants is not None and tenant_id not in key.tenants:
            raise denied(
                "APP_KEY_NOT_ALLOWED",
                "The operator does not let this tenant act with that private key.",
                metadata=named,
            )
        if settings.api_url != key.api_url:
            raise denied(
                "APP_KEY_NOT_ALLOWED",
                f"That private key is for {key.api_url}: give this as api_url, or another key.",
                metadata=named | {"api_url": key.api_url},
            )

    def proof(self, settings: GitHubAppKeySettings, now: datetime) -> str:
        """A short-lived token by which the app proves itself. Raises ProviderError."""
        key = self._keys.get(settings.private_key)
        if key is None:
            raise answer_invalid(
                f"The operator has no private key named {settings.private_key!r}.",
                maybe_done=False,
            )
        # Connections outlive the operator's settings: what was allowed once is checked each time.
        if settings.api_url != key.api_url:
            raise answer_invalid(
                f"The private key {settings.private_key!r} is for another GitHub than this one.",
                maybe_done=False,
            )
        claims = {
            "iat": int((now - _CLOCK_SKEW).timestamp()),
            "exp": int((now + _JWT_LIFETIME - _CLOCK_SKEW).timestamp()),
            "iss": settings.app_id,
        }
        try:
            return jwt.encode(claims, self._key(settings.private_key, key.pem), algorithm="RS256")
        except (jwt.PyJWTError, UnsupportedAlgorithm, ValueError, TypeError):
            raise answer_invalid(
                f"The private key {settings.private_key!r} is not an RSA key in PEM.",
                maybe_done=False,
            ) from None

    def _key(self, name: str, pem: str) -> RSAPrivateKey:
        """Raises ValueError, TypeError or UnsupportedAlgorithm when it is no RSA key in PEM."""
        # Parsed once for all leases: checking an RSA key's numbers takes tens of milliseconds,
        # in which the server does nothing else.
        if name not in self._parsed:
            key = load_pem_private_key(pem.encode(), password=None)
            if not isinstance(key, RSAPrivateKey):
                raise TypeError(f"{type(key).__name__} is no RSA key")
            self._parsed[name] = key
        return self._parsed[name]


class GitHubInstallations:
    """Where an app is installed."""

    settings: type[ProviderSettings] = GitHubAppKeySettings

    def __init__(self, keys: AppKeys) -> None:
        self._keys = keys

    async def page(
        self, settings: Any, number: int, size: int, http: Http, now: datetime
    ) -> tuple[list[Installation], bool]:
        """A page, counted from 1, and whether there is another. Raises ProviderError."""
        size = min(size, PAGE_SIZE_MAX)
        url = f"{settings.api_url}/app/installations?per_page={size}&page={number}"
        answer = await http.send(get(url, bearer=self._keys.proof(settings, now)))
        raise_for_limits(answer, now)
        try:
            found = json.loads(answer.body)
        except (ValueError, RecursionError):
            found = None
        raise_for_refusal(answer)
        if answer.status != 200 or not isinstance(found, list):
            raise answer_invalid("GitHub answered with no list of installations.")
        listed = [_installation(each) for each in found[:size]]
        return listed, 'rel="next"' in answer.headers.get("link", "")

    async def get(
        self, settings: Any, installation_id: str, http: Http, now: datetime
    ) -> Installation:
        """One installation that works. Raises ProviderError: a verdict for one that was removed or
        suspended."""
        url = f"{settings.api_url}/app/installations/{installation_id}"
        answer = await http.send(get(url, bearer=self._keys.proof(settings, now)))
        raise_for_limits(answer, now)
        content = json_object(answer, who=WHO)
        raise_for_refusal(answer)
        if answer.status != 200:
            raise answer_invalid(f"GitHub answered {answer.status}.")
        found = _installation(content)
        if found.suspend_time is not None:
            raise rejected(
                "The installation is suspended at GitHub; unsuspend it there.",
                Cause.ACCOUNT_SUSPENDED,
            )
        return found


def raise_for_limits(answer: Answer, now: datetime) -> None:
    """Raise ProviderError for what says nothing about the app."""
    # https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api: 403 or 429.
    if answer.status == 403 and (
        answer.headers.get("x-ratelimit-remaining") == "0" or "retry-after" in answer.headers
    ):
        raise ProviderError(
            FailureKind.RATE_LIMITED,
            "GitHub limits how often this may be done.",
            retry_after=retry_after(answer, now=now),
        )
    raise_for_trouble(answer, who=WHO, now=now)


def raise_for_refusal(answer: Answer) -> None:
    """Raise ProviderError when GitHub refuses the app, or knows no such installation of it."""
    if answer.status == 401:
        raise answer_invalid(
            "GitHub refuses the app's key; check app_id and private key.", maybe_done=False
        )
    if answer.status in (403, 404):
        raise rejected(
            "GitHub knows no such installation of the app, or it is suspended.",
            Cause.WITHDRAWN_AT_PROVIDER,
            # Who installs the app again gets another installation.
            for_good=answer.status == 404,
        )


def scopes_of(permissions: Any) -> tuple[str, ...]:
    """GitHub's permissions, as "issues:write"; what is not of that form is left out."""
    if not isinstance(permissions, dict):
        return ()
    named = (f"{name}:{level}" for name, level in permissions.items())
    return tuple(sorted(each for each in named if PERMISSION.fullmatch(each)))


def _installation(content: Any) -> Installation:
    if not isinstance(content, dict) or type(content.get("id")) is not int:
        raise answer_invalid("GitHub answered with an installation that has no id.")
    account = content.get("account")
    account = account if isinstance(account, dict) else {}
    uri = optional_text(content, "html_url")
    return Installation(
        installation_id=str(content["id"]),
        account_id=str(account["id"]) if type(account.get("id")) is int else "",
        # An enterprise has a name instead.
        account_name=optional_text(account, "login") or optional_text(account, "slug"),
        scopes=scopes_of(content.get("permissions")),
        all_repositories=content.get("repository_selection") == "all",
        suspend_time=_time(content.get("suspended_at")),
        uri=uri if uri.startswith("https://") else "",
    )


def _time(stated: Any) -> datetime | None:
    if stated is None:
        return None
    try:
        moment = datetime.fromisoformat(stated)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, TypeError, OverflowError) as error:
        raise answer_invalid("GitHub answered with a 'suspended_at' that is no time.") from error
