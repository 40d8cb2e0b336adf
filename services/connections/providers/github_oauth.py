"""github_oauth: a person's account at GitHub, through a GitHub App's expiring user tokens.

https://docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app/
refreshing-user-access-tokens: 8 hours, refresh tokens 6 months and once. What such a token may do
is the app's permissions, so there are no scopes to ask for.
"""

from __future__ import annotations

from datetime import timedelta

from services.connections.credential import BearerCredential
from services.connections.providers.oauth import OAuth, OAuthClient, OAuthServer
from services.connections.providers.provider import (
    LeaseWish,
    Material,
    Provider,
    ProviderSettings,
    RefreshPolicy,
)
from services.connections.secret import AuthKind

GITHUB_API = "https://api.github.com"


class GitHubOAuthSettings(ProviderSettings):
    """Nothing to set."""


def _lend(material: Material, wish: LeaseWish) -> BearerCredential:
    assert material.session is not None
    return BearerCredential(material.session.values["access_token"], GITHUB_API)


def github_oauth(client: OAuthClient | None, *, site: str = "https://github.com") -> Provider:
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
        renew_before=timedelta(minutes=20),
        credential_lifetime=timedelta(hours=8),
        configured=client is not None,
    )
