"""What one invocation gets to act with. No text form of these shows a secret."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ApiKeyCredential:
    """A key, where to put it, and the origins it may go to."""

    key: str = field(repr=False)
    header_name: str
    header_prefix: str
    query_name: str
    allowed_origins: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BearerCredential:
    """A bearer token and the API it is for."""

    access_token: str = field(repr=False)
    base_url: str


@dataclass(frozen=True, slots=True)
class BlueskyCredential:
    """A session's access token at the AT Protocol server that holds the account."""

    access_jwt: str = field(repr=False)
    did: str
    handle: str
    service_url: str


@dataclass(frozen=True, slots=True)
class McpServerCredential:
    """An MCP server's endpoint and the headers to send with every call."""

    server_url: str
    headers: Mapping[str, str] = field(repr=False)
    key: str = field(default="", repr=False)


Credential = ApiKeyCredential | BearerCredential | BlueskyCredential | McpServerCredential
