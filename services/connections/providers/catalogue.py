"""The providers this server knows, by id."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from services.connections.providers.api_key import API_KEY
from services.connections.providers.bluesky import BLUESKY
from services.connections.providers.github_app import github_app
from services.connections.providers.github_installations import AppKey
from services.connections.providers.github_oauth import github_oauth
from services.connections.providers.mcp import MCP
from services.connections.providers.oauth import OAuthClient
from services.connections.providers.oauth2 import OAUTH2
from services.connections.providers.provider import Provider
from services.connections.providers.twitter import twitter
from services.runtime.errors import ErrorKind, ServiceError

_SERVER_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def built_in(
    oauth_clients: Mapping[str, OAuthClient] | None = None,
    github_keys: Mapping[str, AppKey] | None = None,
) -> tuple[Provider, ...]:
    """Every provider, with what the operator configured for them."""
    clients = oauth_clients or {}
    return (
        API_KEY,
        BLUESKY,
        MCP,
        OAUTH2,
        github_app(github_keys or {}),
        github_oauth(clients.get("github_oauth")),
        twitter(clients.get("twitter")),
    )


class Catalogue:
    """Finds providers. One whose id ends in ":" stands for many: "mcp:" for "mcp:linear"."""

    def __init__(self, providers: Iterable[Provider] | None = None) -> None:
        self._providers: Mapping[str, Provider] = {
            each.id: each for each in (built_in() if providers is None else providers)
        }

    def all(self) -> list[Provider]:
        """Every provider, by id."""
        return [self._providers[id] for id in sorted(self._providers)]

    def get(self, name: str) -> Provider:
        """The provider that `name` belongs to. Raises ServiceError PROVIDER_UNKNOWN."""
        family, colon, server = name.partition(":")
        found = self._providers.get(family + colon)
        if found is None or (colon and _SERVER_NAME.fullmatch(server) is None):
            raise ServiceError(
                ErrorKind.INVALID_ARGUMENT,
                "PROVIDER_UNKNOWN",
                f"There is no provider {name!r}; there are {', '.join(sorted(self._providers))}.",
                metadata={"provider": name},
            )
        return found
