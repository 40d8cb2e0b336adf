"""twitter: an account at X, through OAuth 2.0 with PKCE and refresh tokens that work once.

https://docs.x.com/resources/fundamentals/authentication: access tokens live two hours, refresh
tokens come with the scope offline.access, and using one twice ends the whole authorization.
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
    Scope,
)
from services.connections.secret import AuthKind

_API = "https://api.x.com"

_SCOPES = (
    Scope("tweet.read", "Read posts.", requested_by_default=True),
    Scope("tweet.write", "Post, reply and delete.", requested_by_default=True),
    Scope("users.read", "Read profiles.", requested_by_default=True),
    Scope("offline.access", "Stay connected longer than two hours.", requested_by_default=True),
    Scope("media.write", "Upload media."),
    Scope("dm.read", "Read direct messages."),
    Scope("dm.write", "Send direct messages."),
    Scope("like.write", "Like and unlike."),
)


class TwitterSettings(ProviderSettings):
    """Nothing to set."""


def _lend(material: Material, wish: LeaseWish) -> BearerCredential:
    assert material.session is not None
    return BearerCredential(material.session.values["access_token"], _API)


def twitter(client: OAuthClient | None, *, api: str = _API) -> Provider:
    """X with the operator's OAuth client; not configured without one."""
    server = OAuthServer(
        authorization_endpoint="https://x.com/i/oauth2/authorize",
        token_endpoint=f"{api}/2/oauth2/token",
        client_id=client.client_id if client else "",
        client_secret=client.client_secret if client else "",
        client_auth="client_secret_basic" if client and client.client_secret else "none",
        scopes=tuple(scope.name for scope in _SCOPES if scope.requested_by_default),
    )
    oauth = OAuth(lambda settings: server)
    return Provider(
        id="twitter",
        display_name="X (Twitter)",
        description="Posts, replies and reads as an account at X.",
        documentation_uri="https://docs.x.com/resources/fundamentals/authentication",
        auth_kinds=(AuthKind.OAUTH2,),
        settings=TwitterSettings,
        lend=_lend,
        scopes=_SCOPES,
        refresh_policy=RefreshPolicy.STRICT,
        sessions=oauth,
        oauth=oauth,
        # A product that renewed at every look lost its grants: late and once is safest.
        renew_before=timedelta(minutes=5),
        credential_lifetime=timedelta(hours=2),
        configured=client is not None,
    )
