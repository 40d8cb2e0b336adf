"""oauth2: any OAuth 2.0 server, described by the connection's settings."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from cogni.egress_rules import origin_of
from services.connections.credential import BearerCredential
from services.connections.providers.oauth import ClientAuth, OAuth, OAuthServer
from services.connections.providers.provider import (
    LeaseWish,
    Material,
    Provider,
    ProviderSettings,
    RefreshPolicy,
)
from services.connections.secret import AuthKind


class OAuth2Settings(ProviderSettings):
    """The server, our registration there, and the API that its tokens are for."""

    secret_bound: ClassVar[frozenset[str]] = frozenset(
        {"token_endpoint", "client_id", "base_url", "client_auth"}
    )

    authorization_endpoint: str = Field(
        max_length=2048, description="Where a person authorises the connection."
    )
    token_endpoint: str = Field(
        max_length=2048, description="Where codes and refresh tokens are exchanged."
    )
    base_url: str = Field(
        max_length=2048, description="The API the access token is for; it goes nowhere else."
    )
    client_id: str = Field(
        min_length=1, max_length=512, pattern=r"^[\x21-\x7e]+$", description="Our registration."
    )
    client_auth: ClientAuth = Field(
        default="client_secret_basic",
        description="How the client proves itself; none for public clients.",
    )
    issuer: str = Field(
        default="",
        max_length=2048,
        description=(
            "The identifier by which the server names itself in its answers (iss, RFC 9207): "
            "given, answers of others, and answers that name nobody, are refused. Leave it out for "
            "a server that sends no iss."
        ),
    )
    scopes: tuple[str, ...] = Field(
        default=(), max_length=64, description="The scopes asked for unless a request says more."
    )
    refresh_policy: Literal["STRICT", "GRACE", "REUSABLE"] = Field(
        default="STRICT",
        description="STRICT: refresh tokens work once. GRACE: the old one works for a while. "
        "REUSABLE: they are not replaced. When unsure, STRICT.",
    )

    @field_validator("authorization_endpoint", "token_endpoint", "base_url")
    @classmethod
    def _is_a_url(cls, value: str) -> str:
        origin_of(value)
        return value

    def urls(self) -> dict[str, str]:
        """What this service and its tools call."""
        return {"token_endpoint": self.token_endpoint, "base_url": self.base_url}


def _server(settings: OAuth2Settings) -> OAuthServer:
    return OAuthServer(
        authorization_endpoint=settings.authorization_endpoint,
        token_endpoint=settings.token_endpoint,
        client_id=settings.client_id,
        client_auth=settings.client_auth,
        issuer=settings.issuer,
        scopes=settings.scopes,
    )


def _lend(material: Material, wish: LeaseWish) -> BearerCredential:
    assert material.session is not None
    return BearerCredential(material.session.values["access_token"], material.settings.base_url)


_OAUTH = OAuth(_server)

OAUTH2 = Provider(
    id="oauth2",
    display_name="OAuth 2.0",
    description="Any API behind an OAuth 2.0 server with the authorization code flow and PKCE.",
    documentation_uri="https://datatracker.ietf.org/doc/html/rfc6749",
    auth_kinds=(AuthKind.OAUTH2,),
    settings=OAuth2Settings,
    lend=_lend,
    refresh_policy=RefreshPolicy.STRICT,
    sessions=_OAUTH,
    oauth=_OAUTH,
)
