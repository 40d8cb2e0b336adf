"""An MCP server made with the official SDK, one per session, that takes a key in a header."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

KEY = "CANARY-mcp-key-77aa"


class McpServer:
    """The server: two tools that count what they did, and that a test may change."""

    def __init__(self) -> None:
        # Imported here: few tests need it, and it takes a second.
        import uvicorn
        from mcp.server import MCPServer

        self.happened: Counter[str] = Counter()
        self.seen: list[dict[str, Any]] = []
        #: What `create_ticket` does besides.
        self.then: Callable[[], None] = lambda: None
        self._tools = MCPServer("tickets")
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.url = f"http://{self.address}/mcp"
        # Several sizes of one protocol: an event stream per request is what most servers speak.
        app = self._tools.streamable_http_app()
        config = uvicorn.Config(
            self._guarded(app), log_config=None, ws="none", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True
        )
        self.reset()

    def reset(self) -> None:
        """Offer the tools as they were, with nothing done."""
        self.happened.clear()
        self.seen.clear()
        self.then = lambda: None
        for name in ("create_ticket", "echo", "fail"):
            self.drop(name)
        self._tools.add_tool(self._create, name="create_ticket", description="Create a ticket.")
        self._tools.add_tool(self._echo, name="echo", description="Say it back.")
        self._tools.add_tool(self._fail, name="fail", description="Fail.")

    def drop(self, name: str) -> None:
        """Have no such tool any more."""
        if any(each.name == name for each in self._tools._tool_manager.list_tools()):
            self._tools.remove_tool(name)

    def redefine(self, name: str, description: str) -> None:
        """Tell models something else about a tool, and do the same as before."""
        functions = {"create_ticket": self._create, "echo": self._echo, "fail": self._fail}
        self.drop(name)
        self._tools.add_tool(functions[name], name=name, description=description)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()

    def _create(self, title: str, body: str = "") -> str:
        self.happened["create_ticket"] += 1
        self.happened[f"title {title}"] += 1
        self.then()
        return f"created {title!r}"

    def _echo(self, text: str) -> str:
        self.happened["echo"] += 1
        return text

    def _fail(self, text: str) -> str:
        from mcp.server.mcpserver.exceptions import ToolError

        raise ToolError(f"no {text}")

    def _guarded(self, app: Any) -> Any:
        async def guarded(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                headers = {k.decode(): v.decode() for k, v in scope["headers"]}
                self.seen.append(headers)
                if headers.get("authorization") != f"Bearer {KEY}":
                    await send({"type": "http.response.start", "status": 401, "headers": []})
                    # What a careless server might do: repeat the key it was given.
                    body = headers.get("authorization", "").encode()
                    await send({"type": "http.response.body", "body": body})
                    return
            await app(scope, receive, send)

        return guarded


@pytest.fixture(scope="session")
def _mcp_server() -> Iterator[McpServer]:
    server = McpServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def mcp_server(_mcp_server: McpServer) -> McpServer:
    """The session's MCP server as if it were new."""
    _mcp_server.reset()
    return _mcp_server
