"""mcp:<server>: an MCP server that is open, or that takes a key in a header."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import datetime
from typing import ClassVar

from pydantic import Field, field_validator

from cogni.egress_rules import origin_of
from cogni.mcp.definition import ToolDefinition
from cogni.mcp.session import Incoming, McpError, Outgoing, Session
from services.connections.credential import McpServerCredential
from services.connections.providers.failures import (
    FailureKind,
    ProviderError,
    answer_invalid,
    rejected,
)
from services.connections.providers.http import Http, Request, raise_for_trouble
from services.connections.providers.provider import (
    LeaseWish,
    Material,
    Provider,
    ProviderSettings,
    Verbatim,
)
from services.connections.secret import AuthKind

#: How long a server may take over all pages of its list.
LIST_SECONDS_MAX = 20.0

_WHO = "The MCP server"


class McpSettings(ProviderSettings):
    """Where the server is and how it takes the key."""

    secret_bound: ClassVar[frozenset[str]] = frozenset({"server_url"})

    server_url: str = Field(max_length=2048, description="The server's streamable HTTP endpoint.")
    header_name: str = Field(
        default="Authorization",
        pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}$",
        description="The header that carries the key.",
    )
    header_prefix: Verbatim = Field(
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
    if material.secret is None:
        return McpServerCredential(settings.server_url, {})
    key = material.secret.values["key"]
    headers = {settings.header_name: f"{settings.header_prefix}{key}"}
    return McpServerCredential(settings.server_url, headers, key)


async def list_tools(material: Material, http: Http, now: datetime) -> list[ToolDefinition]:
    """The tools of the server, as it defines them now. Raises ProviderError."""
    credential = _lend(material, LeaseWish())

    async def send(outgoing: Outgoing) -> Incoming:
        ours = {name.lower(): value for name, value in credential.headers.items()}
        # The protocol's headers win: a connection's settings cannot speak for us.
        headers = ours | dict(outgoing.headers)
        answer = await http.send(
            Request(outgoing.method, credential.server_url, headers, outgoing.body)
        )
        if answer.status in (401, 403):
            raise rejected(f"{_WHO} does not take the stored key (HTTP {answer.status}).")
        raise_for_trouble(answer, who=_WHO, now=now)
        return Incoming(answer.status, answer.headers, answer.body)

    session = Session()
    try:
        async with asyncio.timeout(LIST_SECONDS_MAX):
            await session.begin(send)
            tools = await session.tools(send)
    except TimeoutError:
        raise ProviderError(
            FailureKind.UNAVAILABLE, f"{_WHO} takes too long to list its tools."
        ) from None
    except McpError as error:
        raise answer_invalid(str(error)) from error
    with contextlib.suppress(ProviderError):
        await session.end(send)
    return tools


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
