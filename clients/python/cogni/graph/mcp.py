"""The tools of MCP servers that a run's grant names, as LangChain tools.

They are made from what the grant has pinned, never from the server: a graph needs no credential to
know its tools, and a server cannot talk to a model before a person has granted what it says.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from langchain_core.tools import BaseTool, ToolException

from cogni.graph import portal
from cogni.graph.egress import Egress, EgressError, EgressLimits
from cogni.graph.invocation import Credential, invocation_id, prepared
from cogni.graph.policy import Effect, ToolPolicy, with_policy
from cogni.mcp.result import is_failure, text_of
from cogni.mcp.session import Incoming, McpError, Outgoing, Send, Session

#: How long a server may take to take us in and list its tools, all pages of them.
OPEN_SECONDS_MAX = 20.0
#: How long a tool may take.
CALL_SECONDS_MAX = 60.0
_END_SECONDS_MAX = 2.0
_INVOCATION_ID = "cogni.dev/invocationId"


@dataclass(frozen=True)
class GrantedTool:
    """A tool of an MCP server as a grant names it."""

    #: What the grant, the graph and models call it.
    tool: str
    #: "mcp:<server>".
    provider: str
    description: str
    input_schema: Mapping[str, Any]
    effects: Effect = Effect.OUTWARD
    idempotent: bool = False


@dataclass(frozen=True)
class OpenedTool:
    """A session in which the server has said how it defines the tool now."""

    name: str
    #: None: the server has no tool of that name.
    digest: str | None
    _session: Session = field(repr=False)
    _credential: Credential = field(repr=False)

    async def call(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Call the tool and end the session.

        Raises ToolException, and EgressError when nobody knows whether it was done.
        """
        meta = {_INVOCATION_ID: invocation_id()}
        limits = EgressLimits(total_seconds=CALL_SECONDS_MAX)
        async with Egress(limits) as egress:
            send = _sender(egress, self._credential)
            try:
                return await self._session.call(send, self.name, arguments, meta)
            except EgressError as error:
                if error.maybe_done:
                    raise
                raise ToolException(str(error)) from None
            except McpError as error:
                raise ToolException(_told(error)) from None
            finally:
                await self._end(send)

    async def close(self) -> None:
        """End the session without a call."""
        async with Egress() as egress:
            await self._end(_sender(egress, self._credential))

    async def _end(self, send: Send) -> None:
        # Whether the server has heard it changes nothing.
        with contextlib.suppress(EgressError, TimeoutError):
            async with asyncio.timeout(_END_SECONDS_MAX):
                await self._session.end(send)


async def open_tool(name: str, credential: Credential) -> OpenedTool:
    """Begin a session at the credential's server and look at its tool. Raises ToolException."""
    session = Session()
    try:
        async with asyncio.timeout(OPEN_SECONDS_MAX), Egress() as egress:
            send = _sender(egress, credential)
            await session.begin(send)
            tools = await session.tools(send)
    except TimeoutError:
        raise ToolException("The MCP server takes too long to list its tools.") from None
    except (EgressError, McpError) as error:
        # Not what the server says of it: this refusal is ours, and is not marked as its output.
        raise ToolException(str(error)) from None
    digest = next((each.digest for each in tools if each.name == name), None)
    return OpenedTool(name, digest, session, credential)


class McpTool(BaseTool):
    """One tool of an MCP server. The guard opens it; without a guard it cannot be used."""

    granted: GrantedTool
    handle_tool_error: bool | str | Any = True

    async def _arun(self, /, **arguments: Any) -> str:
        opened = prepared()
        if not isinstance(opened, OpenedTool):
            raise ToolException(f"{self.name} works in a run only: its guard has not opened it")
        try:
            result = await opened.call(arguments)
        except EgressError as error:
            if self.granted.effects is not Effect.NONE:
                # Nobody knows what became of it: that is no answer to give to a model.
                raise
            raise ToolException(str(error)) from None
        text = text_of(result)
        if is_failure(result):
            raise ToolException(text or f"{self.name} failed and does not say why")
        return text

    def _run(self, /, **arguments: Any) -> str:
        return portal.call(self._arun(**arguments), None)

    def _filter_injected_args(self, tool_input: dict[str, Any]) -> dict[str, Any]:
        # LangChain hides arguments named like its own ("callbacks"); here the server gets every
        # one of them, so the guard must see every one.
        return tool_input


_granted: ContextVar[Sequence[GrantedTool]] = ContextVar("cogni_granted_mcp_tools", default=())


@contextmanager
def mcp_tools_granted(tools: Sequence[GrantedTool]) -> Iterator[None]:
    """Let the graph inside have these tools. The runner does so with what the grant names."""
    token = _granted.set(tools)
    try:
        yield
    finally:
        _granted.reset(token)


def mcp_tools(provider: str) -> list[BaseTool]:
    """The tools of this MCP server ("mcp:tickets") that the run's grant names, in its order.

    Call it while a run is under way: in a node, or in a graph's factory. Anywhere else, and under
    a grant that names none, there are none.
    """
    return [_tool(each) for each in _granted.get() if each.provider == provider]


def _tool(granted: GrantedTool) -> BaseTool:
    made = McpTool(
        name=granted.tool,
        description=granted.description,
        args_schema=dict(granted.input_schema),
        granted=granted,
    )
    policy = ToolPolicy(granted.effects, granted.idempotent, granted.provider, untrusted=True)
    return with_policy(made, policy)


def _sender(egress: Egress, credential: Credential) -> Send:
    ours = {
        name.removeprefix("headers.").lower(): credential[name]
        for name in credential
        if name.startswith("headers.")
    }

    async def send(outgoing: Outgoing) -> Incoming:
        # The protocol's headers win: a connection's settings cannot speak for us.
        headers = ours | dict(outgoing.headers)
        url = credential["server_url"]
        answer = await egress.exchange(outgoing.method, url, headers, outgoing.body)
        return Incoming(answer.status, answer.headers, answer.body)

    return send


def _told(error: McpError) -> str:
    return f"{error} It says: {error.said}" if error.said else str(error)
