"""A session at an MCP server over streamable HTTP: what to send, and what the answers mean.

Both who pins a tool's definition (Connections) and who holds the server to it (a runner) read it
with this code, at the same protocol version: two readers could differ about what a tool is.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cogni.mcp.definition import DefinitionError, ToolDefinition, definition_of

#: What we offer: the newest revision that is reached by `initialize`.
PROTOCOL_VERSION = "2025-11-25"
#: What we take in its place: the same messages, over the same transport.
_VERSIONS = (PROTOCOL_VERSION, "2025-06-18", "2025-03-26")
TOOLS_MAX = 200
_PAGES_MAX = 20
_CURSOR_LENGTH_MAX = 4096
_SESSION_ID_LENGTH_MAX = 1024
_MESSAGE_LENGTH_MAX = 500


class McpError(Exception):
    """Raised when a server does not do as the protocol says; the text is ours.

    `said` is what the server itself gave as the reason, which nobody should trust.
    """

    def __init__(self, message: str, said: str = "") -> None:
        super().__init__(message)
        self.said = said


@dataclass(frozen=True)
class Outgoing:
    """A request to the server's endpoint."""

    method: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True)
class Incoming:
    """Its answer, whole; header names in lower case."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


#: Sends to the endpoint, with the connection's own headers. Bounds time and size.
Send = Callable[[Outgoing], Awaitable[Incoming]]


class Session:
    """One session, usable with any `send` that reaches the same server."""

    def __init__(self) -> None:
        self._id = ""
        self._version = ""
        self._requests = 0

    @property
    def begun(self) -> bool:
        """Whether the server has taken us in."""
        return bool(self._version)

    async def begin(self, send: Send, *, client_version: str = "1") -> None:
        """Shake hands. Raises McpError."""
        params = {
            "protocolVersion": PROTOCOL_VERSION,
            # None: a server cannot ask our models or our people for anything.
            "capabilities": {},
            "clientInfo": {"name": "cogni", "version": client_version},
        }
        answer, incoming = await self._ask(send, "initialize", params)
        version = answer.get("protocolVersion")
        if version not in _VERSIONS:
            raise McpError(f"The MCP server speaks none of the revisions {', '.join(_VERSIONS)}.")
        session_id = incoming.headers.get("mcp-session-id", "")
        # The specification: visible ASCII.
        if len(session_id) > _SESSION_ID_LENGTH_MAX or not all("!" <= c <= "~" for c in session_id):
            raise McpError("The MCP server's session id is not what the protocol allows.")
        self._id, self._version = session_id, str(version)
        told = await send(self._post({"method": "notifications/initialized"}))
        _check_status(told)

    async def tools(self, send: Send) -> list[ToolDefinition]:
        """Every tool of the server, by name. Raises McpError."""
        found: dict[str, ToolDefinition] = {}
        cursor: str | None = None
        for _ in range(_PAGES_MAX):
            answer, _ = await self._ask(send, "tools/list", {"cursor": cursor} if cursor else {})
            for each in _list(answer.get("tools")):
                try:
                    definition = definition_of(each)
                except DefinitionError as error:
                    raise McpError(
                        f"The MCP server's list of tools is unusable: {error}."
                    ) from None
                if definition.name in found:
                    raise McpError("The MCP server names two tools alike.")
                found[definition.name] = definition
                if len(found) > TOOLS_MAX:
                    raise McpError(f"The MCP server has more than {TOOLS_MAX} tools.")
            cursor = answer.get("nextCursor")
            if not cursor:
                return [found[name] for name in sorted(found)]
            if not isinstance(cursor, str) or len(cursor) > _CURSOR_LENGTH_MAX:
                break
        raise McpError("The MCP server's list of tools does not end.")

    async def call(
        self, send: Send, name: str, arguments: Mapping[str, Any], meta: Mapping[str, str]
    ) -> dict[str, Any]:
        """What a tool answers, a CallToolResult. Raises McpError."""
        params = {"name": name, "arguments": dict(arguments), "_meta": dict(meta)}
        answer, _ = await self._ask(send, "tools/call", params)
        return answer

    async def end(self, send: Send) -> None:
        """Tell the server that we come no more; whatever it answers is fine."""
        if self._id:
            await send(Outgoing("DELETE", self._headers(), b""))

    async def _ask(
        self, send: Send, method: str, params: Mapping[str, Any]
    ) -> tuple[dict[str, Any], Incoming]:
        self._requests += 1
        request_id = self._requests
        incoming = await send(self._post({"id": request_id, "method": method, "params": params}))
        message = _answer_to(request_id, incoming)
        if message is None:
            _check_status(incoming)
            raise McpError("The MCP server's answer does not answer the request.")
        if isinstance(error := message.get("error"), dict):
            raise McpError("The MCP server refused the request.", said=_said(error))
        result = message.get("result")
        if not isinstance(result, dict):
            raise McpError("The MCP server's answer has no result.")
        return result, incoming

    def _post(self, message: Mapping[str, Any]) -> Outgoing:
        body = json.dumps({"jsonrpc": "2.0", **message}, ensure_ascii=False)
        return Outgoing("POST", self._headers(), body.encode("utf-8", "replace"))

    def _headers(self) -> dict[str, str]:
        headers = {
            "accept": "application/json, text/event-stream",
            "content-type": "application/json",
        }
        if self._id:
            headers["mcp-session-id"] = self._id
        if self._version:
            headers["mcp-protocol-version"] = self._version
        return headers


def _check_status(incoming: Incoming) -> None:
    """Raise McpError for an HTTP answer that is no success."""
    status = incoming.status
    if status in (401, 403):
        raise McpError(f"The MCP server does not take the connection's key (HTTP {status}).")
    if 300 <= status < 400:
        raise McpError("The MCP server answers with a redirect; connect with the URL it leads to.")
    if status >= 400:
        raise McpError(f"The MCP server answered HTTP {status}.")


def _answer_to(request_id: int, incoming: Incoming) -> dict[str, Any] | None:
    """The response to our request, out of a JSON body or of an event stream; None without one.

    Anything else in the stream (progress, logs, what the server would ask us) is passed over.
    """
    kind = incoming.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "text/event-stream":
        texts = _event_data(incoming.body)
    elif kind == "application/json":
        texts = [incoming.body.decode("utf-8", "replace")]
    else:
        return None
    for text in texts:
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(message, dict) and _answers(message, request_id):
            return message
    return None


def _answers(message: Mapping[str, Any], request_id: int) -> bool:
    if "result" not in message and "error" not in message:
        return False
    # A server that refuses before it reads the id answers with null.
    return message.get("id") == request_id or (message.get("id") is None and "error" in message)


def _event_data(body: bytes) -> list[str]:
    """The data of each server-sent event (https://html.spec.whatwg.org, "text/event-stream")."""
    found: list[str] = []
    lines: list[str] = []
    text = body.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
    for line in text.split("\n"):
        if line.startswith("data:"):
            lines.append(line[5:].removeprefix(" "))
        elif not line and lines:
            found.append("\n".join(lines))
            lines = []
    return found


def _said(error: Mapping[str, Any]) -> str:
    message = error.get("message")
    return message[:_MESSAGE_LENGTH_MAX] if isinstance(message, str) else ""


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise McpError("The MCP server's answer has no list of tools.")
    return value
