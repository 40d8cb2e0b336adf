"""github_app: a GitHub App's installation; each lease can be cut down to repositories and
permissions.

https://docs.github.com/en/rest/apps/apps#create-an-installation-access-token-for-an-app: tokens
live an hour and can be minted at any time from the app's private key, which the operator keeps:
a connection only names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import Field

from services.connections.credential import BearerCredential
from services.connections.providers.failures import Cause, answer_invalid, rejected
from services.connections.providers.github_installations import (
    PERMISSION,
    WHO,
    AppKey,
    AppKeys,
    GitHubAppKeySettings,
    GitHubInstallations,
    raise_for_limits,
    raise_for_refusal,
    scopes_of,
)
from services.connections.providers.http import (
    Answer,
    Http,
    get,
    json_object,
    optional_text,
    post_json,
    raise_for_trouble,
    text_field,
    token_field,
)
from services.connections.providers.provider import (
    LeaseWish,
    Material,
    Provider,
    RefreshPolicy,
)
from services.connections.secret import AuthKind, Session

_LEVELS = ("read", "write", "admin")
_REPOSITORY = re.compile(r"[A-Za-z0-9-]{1,39}/(?P<name>[A-Za-z0-9._-]{1,100})")


class GitHubAppSettings(GitHubAppKeySettings):
    """Which app, which installation, and which of the operator's keys."""

    installation_id: str = Field(
        pattern=r"^[0-9]{1,20}$", description="The installation: ListInstallations has its id."
    )


class GitHubAppSessions:
    """Installation access tokens: minted, never refreshed."""

    def __init__(self, keys: AppKeys, installations: GitHubInstallations) -> None:
        self._keys = keys
        self._installations = installations

    async def begin(self, material: Material, http: Http, now: datetime) -> Session:
        """Mint a token with everything the installation has.

        GitHub is asked about the installation first, so that its account's name, and that it was
        suspended or removed, are known here as they are there.
        """
        settings: GitHubAppSettings = material.settings
        found = await self._installations.get(settings, settings.installation_id, http, now)
        session = await self._mint(material, LeaseWish(), http, now)
        return replace(session, account_name=found.account_name or session.account_name)

    async def renew(self, material: Material, http: Http, now: datetime) -> Session:
        """Mint the next one."""
        return await self.begin(material, http, now)

    async def narrow(
        self, material: Material, wish: LeaseWish, http: Http, now: datetime
    ) -> Session:
        """Mint a token that can do what a tool asked for and no more."""
        return await self._mint(material, wish, http, now)

    async def _mint(
        self, material: Material, wish: LeaseWish, http: Http, now: datetime
    ) -> Session:
        body = narrowed(wish)
        settings: GitHubAppSettings = material.settings
        url = f"{settings.api_url}/app/installations/{settings.installation_id}/access_tokens"
        proof = self._keys.proof(settings, now)
        answer = await http.send(post_json(url, body, bearer=proof))
        session = _session(answer, settings, now)
        _check_repositories(json_object(answer, who=WHO), wish.resources)
        return session


def narrowed(wish: LeaseWish) -> dict[str, Any]:
    """What GitHub is asked for instead of everything. Raises ProviderError for other spellings."""
    body: dict[str, Any] = {}
    if wish.scopes:
        permissions: dict[str, str] = {}
        for scope in wish.scopes:
            match = PERMISSION.fullmatch(scope)
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
        if (match := PERMISSION.fullmatch(scope))
    }
    return sorted(
        scope
        for scope in wanted
        if (match := PERMISSION.fullmatch(scope)) is None
        or held.get(match["name"], -1) < _LEVELS.index(match["level"])
    )


def _session(answer: Answer, settings: GitHubAppSettings, now: datetime) -> Session:
    raise_for_limits(answer, now)
    content = json_object(answer, who=WHO)
    raise_for_refusal(answer)
    if answer.status == 422:
        raise rejected("The installation lacks a repository or permission that was asked for.")
    if answer.status != 201:
        raise answer_invalid(f"GitHub answered {answer.status}.")
    return Session(
        {"access_token": token_field(content, "token", who=WHO)},
        _expiry(text_field(content, "expires_at", who=WHO), now),
        scopes=scopes_of(content.get("permissions")),
        account_id=settings.installation_id,
        account_name=f"installation {settings.installation_id}",
    )


def _check_repositories(content: Mapping[str, Any], wanted: tuple[str, ...]) -> None:
    """GitHub is given names without their owner: what it gives must be the owner's that was meant.

    Raises ProviderError.
    """
    if not wanted:
        return
    given = content.get("repositories")
    given = given if isinstance(given, list) else []
    names = {optional_text(each, "full_name").lower() for each in given if isinstance(each, dict)}
    if names != {each.lower() for each in wanted}:
        raise rejected(f"The installation does not reach {', '.join(wanted)}.")


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
    raise_for_trouble(answer, who=WHO, now=now)
    content = json_object(answer, who=WHO)
    if answer.status != 200:
        raise rejected("GitHub no longer honours this token.", Cause.WITHDRAWN_AT_PROVIDER)
    count = content.get("total_count")
    return f"Reaches {count} repositories." if isinstance(count, int) else "It is accepted."


def _lend(material: Material, wish: LeaseWish) -> BearerCredential:
    assert material.session is not None
    return BearerCredential(material.session.values["access_token"], material.settings.api_url)


def github_app(app_keys: Mapping[str, AppKey]) -> Provider:
    """GitHub Apps whose private keys the operator has given."""
    keys = AppKeys(app_keys)
    installations = GitHubInstallations(keys)
    sessions = GitHubAppSessions(keys, installations)
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
        configured=bool(app_keys),
        installations=installations,
        check_tenant=keys.check_tenant,
    )
