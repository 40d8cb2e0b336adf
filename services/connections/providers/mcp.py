"""mcp:<server>: an MCP server that is open, or that takes a key in a header."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, field_validator

from cogni.egress_rules import origin_of
from services.connections.credential import McpServerCredential
from services.connections.providers.provider import (
    LeaseWish,
    Material,
    Provider,
    ProviderSettings,
)
from services.connections.secret import AuthKind


class McpSettings(ProviderSettings):
    """Where the server is and how it takes the key."""

    secret_bound: ClassVar[frozenset[str]] = frozenset({"server_url"})

    server_url: str = Field(max_length=2048, description="The server's streamable HTTP endpoint.")
    header_name: str = Field(
        default="Authorization",
        pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}$",
        description="The header that carries the key.",
    )
    header_prefix: str = Field(
        default="Bearer ",
        max_length=64,
        pattern=r"^[\x20-\x7e]*$",
        description="What stands before the key.",
    )

    @field_validator("server_url")
    @classmethod
    def _is_a_url(cls, value: str) -> str:
        origin_of(value)
        return value

    def urls(self) -> dict[str, str]:
        """The server."""
        return {"server_url": self.server_url}


def _lend(material: Material, wish: LeaseWish) -> McpServerCredential:
    settings: McpSettings = material.settings
    headers = {}
    if material.secret is not None:
        key = material.secret.values["key"]
        headers[settings.header_name] = f"{settings.header_prefix}{key}"
    return McpServerCredential(settings.server_url, headers)


MCP = Provider(
    id="mcp:",
    display_name="MCP server",
    description=(
        "The tools of an MCP server, as mcp:<name>. Its tools and what they return are not "
        "trusted: they are granted one by one, as they were when they were granted."
    ),
    documentation_uri="https://modelcontextprotocol.io",
    auth_kinds=(AuthKind.NONE, AuthKind.API_KEY),
    settings=McpSettings,
    lend=_lend,
)
