"""Pins the tools of MCP servers that a grant names to their servers' present definitions."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from cogni.mcp.definition import may_be_of
from services.executor.grants import GrantRequest, McpServer, ToolPermission
from services.runtime.caller import Caller
from services.runtime.errors import (
    ErrorKind,
    PeerError,
    ServiceError,
    Violation,
    failed_precondition,
    invalid,
    limit,
    unavailable,
)
from services.runtime.jsonvalues import canonical_json

#: What all pinned definitions of a grant may measure together: each decision reads them.
PINNED_BYTES_MAX = 256 * 1024


class ToolLists(Protocol):
    """Who knows the tools of MCP servers. Raises PeerError."""

    async def mcp_tools(self, tenant_id: str, subject: str, connection_id: str) -> McpServer | None:
        """The tools of the connection's MCP server; None when it is to something else."""


async def pin_tools(
    lists: ToolLists, caller: Caller, request: GrantRequest
) -> tuple[ToolPermission, ...]:
    """Return the requested permissions, those of MCP servers' tools with their definitions.

    Each server is asked once, and only when the grant names tools at all. Raises TOOL_CHANGED.
    """
    servers: list[McpServer] = []
    if request.tools:
        for connection_id in dict.fromkeys(request.connection_ids):
            server = await _listed(lists, caller, connection_id)
            if server is not None:
                servers.append(server)
    pinned = tuple(
        _pinned(index, permission, servers) for index, permission in enumerate(request.tools)
    )
    _check_size(pinned)
    return pinned


async def _listed(lists: ToolLists, caller: Caller, connection_id: str) -> McpServer | None:
    try:
        return await lists.mcp_tools(caller.tenant_id, caller.owner, connection_id)
    except PeerError as error:
        raise _of_the_server(error, connection_id) from error


def _pinned(index: int, permission: ToolPermission, servers: Sequence[McpServer]) -> ToolPermission:
    found = [each.tools[permission.tool] for each in servers if permission.tool in each.tools]
    if len(found) > 1:
        raise invalid(
            Violation(
                f"tools[{index}].tool",
                f"{permission.tool!r} is a tool of several connections that the grant names",
            )
        )
    if found:
        if permission.reviewed_digest not in ("", found[0].digest):
            raise _changed(permission.tool, "is defined otherwise now than it was when reviewed")
        return replace(permission, mcp_tool=found[0])
    if any(may_be_of(permission.tool, each.provider) for each in servers):
        raise _changed(permission.tool, "is not among its server's tools")
    if permission.effect is not None or permission.reviewed_digest:
        field = "effect" if permission.effect is not None else "mcp_tool"
        raise invalid(
            Violation(
                f"tools[{index}].{field}",
                "is for tools of MCP servers whose connection the grant names",
            )
        )
    return permission


def _check_size(pinned: Sequence[ToolPermission]) -> None:
    size = sum(
        len(canonical_json(each.mcp_tool.input_schema)) + len(each.mcp_tool.description)
        for each in pinned
        if each.mcp_tool is not None
    )
    if size > PINNED_BYTES_MAX:
        raise limit(
            "pinned tool definitions",
            f"the definitions of a grant's MCP tools may measure {PINNED_BYTES_MAX} bytes "
            f"together, and these have {size}. Grant fewer tools, or several grants.",
        )


def _changed(tool: str, how: str) -> ServiceError:
    return failed_precondition(
        "TOOL_CHANGED",
        f"The tool {tool!r} {how}. Look at the server's tools again (ListConnectionTools).",
        metadata={"tool": tool},
    )


def _of_the_server(error: PeerError, connection_id: str) -> Exception:
    """What Connections says of the caller's MCP server is for the caller to know."""
    match error.kind:
        case ErrorKind.UNAVAILABLE if error.reason.startswith("PROVIDER_"):
            return ServiceError(
                error.kind, error.reason, error.message, retry_after=error.retry_after
            )
        case ErrorKind.FAILED_PRECONDITION | ErrorKind.PERMISSION_DENIED if error.reason:
            return ServiceError(
                error.kind, error.reason, error.message, metadata={"id": connection_id}
            )
        case ErrorKind.RESOURCE_EXHAUSTED | ErrorKind.DEADLINE_EXCEEDED:
            return unavailable("The MCP server does not list its tools at present; retry.")
        case _:
            return error
