"""github_oauth: a person's account at GitHub, through a GitHub App's expiring user tokens.

https://docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app/
refreshing-user-access-tokens: 8 hours, refresh tokens 6 months and once. What such a token may do
is the app's permissions, so there are no scopes to ask for; but it can be exchanged for one that is
cut down to permissions and repositories of one account:
https://docs.github.com/en/rest/apps/apps#create-a-scoped-access-token
"""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import datetime, timedelta

from services.connections.credential import BearerCredential
from services.connections.providers.failures import answer_invalid, rejected
from services.connections.providers.github_app import narrowed
from services.connections.providers.github_installations import (
    GITHUB_API,
    WHO,
    raise_for_limits,
)
from services.connections.providers.http import Http, Request, json_object, token_field
from services.connections.providers.oauth import OAuth, OAuthClient, OAuthServer
from services.connections.providers.provider import (
    LeaseWish,
    Material,
    Provider,
    ProviderSettings,
    RefreshPolicy,
)
from services.connections.secret import AuthKind, Session


class GitHubOAuthSettings(ProviderSettings):
    """Nothing to set."""


def _lend(material: Material, wish: LeaseWish) -> BearerCredential:
    assert material.session is not None
    return BearerCredential(material.session.values["access_token"], GITHUB_API)


class ScopedTokens:
    """A person's tokens, cut down."""

    def __init__(self, client: OAuthClient, api: str) -> None:
        self._client = client
        self._api = api

    async def narrow(
        self, material: Material, wish: LeaseWish, http: Http, now: datetime
    ) -> Session:
        """Exchange the token for one that can do what a tool asked for and no more. Without a
        repository there is no account to cut it down to: then it is as it is."""
        assert material.session is not None
        body = narrowed(wish)
        owners = {each.partition("/")[0] for each in wish.resources}
        if not owners:
            return material.session
        if len(owners) > 1:
            raise rejected("A person's token is cut down to one account's repositories.")
        token = material.session.values["access_token"]
        content = json.dumps({**body, "access_token": token, "target": owners.pop()})
        url = f"{self._api}/applications/{self._client.client_id}/token/scoped"
        answer = await http.send(Request("POST", url, self._headers(), content.encode()))
        raise_for_limits(answer, now)
        given = json_object(answer, who=WHO)
        if answer.status in (403, 404, 422):
            raise rejected("The person's token does not reach that repository, or may not do that.")
        if answer.status != 200:
            raise answer_invalid(f"GitHub answered {answer.status}.")
        values = {"access_token": token_field(given, "token", who=WHO)}
        return replace(material.session, values=values, scopes=wish.scopes)

    def _headers(self) -> dict[str, str]:
        pair = f"{self._client.client_id}:{self._client.client_secret}"
        return {
            "accept": "application/json",
            "content-type": "application/json",
            "authorization": f"Basic {base64.b64encode(pair.encode()).decode()}",
        }


def github_oauth(
    client: OAuthClient | None, *, site: str = "https://github.com", api: str = GITHUB_API
) -> Provider:
    """GitHub with the operator's app; not configured without one."""
    server = OAuthServer(
        authorization_endpoint=f"{site}/login/oauth/authorize",
        token_endpoint=f"{site}/login/oauth/access_token",
        client_id=client.client_id if client else "",
        client_secret=client.client_secret if client else "",
        client_auth="client_secret_post",
        # An app without expiring tokens answers without expires_in.
        tokens_expire=False,
    )
    oauth = OAuth(lambda settings: server)
    return Provider(
        id="github_oauth",
        display_name="GitHub (as a person)",
        description="Acts at GitHub as the person who connects, within the app's permissions.",
        documentation_uri="https://docs.github.com/en/apps/creating-github-apps",
        auth_kinds=(AuthKind.OAUTH2,),
        settings=GitHubOAuthSettings,
        lend=_lend,
        refresh_policy=RefreshPolicy.STRICT,
        sessions=oauth,
        oauth=oauth,
        narrow=ScopedTokens(client, api).narrow if client else None,
        # GitHub does not tell what a person's token may do; it refuses when it is cut down or used.
        missing_scopes=None,
        supports_downscoping=True,
        renew_before=timedelta(minutes=20),
        credential_lifetime=timedelta(hours=8),
        configured=client is not None,
    )
