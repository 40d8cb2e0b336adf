"""A real MCP server: connected with a key, looked at, granted, used, changed, granted again."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from bench.embedded import Embedded, embedded
from cogni.client import AsyncClient, CogniError, from_json_message
from cogni.connections.v1 import connections_service_pb2 as connections
from cogni.connections.v1.credential_pb2 import ApiKeySecret, ConnectionSecret
from cogni.executor.v1.grant_pb2 import McpTool, ToolPermission
from cogni.executor.v1.grant_service_pb2 import CreateGrantRequest, RevokeGrantRequest
from cogni.executor.v1.run_event_pb2 import RunEvent
from cogni.executor.v1.run_pb2 import RunState
from cogni.type.v1.error_reason_pb2 import ErrorReason
from tests.peers.node_servers import free_port, node_server

PACKAGES = {"@modelcontextprotocol/server-everything": "2026.8.31"}
KEY = f"key-{uuid.uuid4()}"

# An agent without a model: it asks for the tool and the arguments that it is given.
AGENT = """
import json

from langchain_core.messages import AIMessage
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

from cogni.graph import mcp_tools


def ask(state):
    name, _, arguments = state["messages"][-1].text.partition(" ")
    call = {"name": name, "args": json.loads(arguments), "id": "call_1"}
    return {"messages": [AIMessage(content="", tool_calls=[call])]}


def agent():
    graph = StateGraph(MessagesState)
    graph.add_node("ask", ask)
    graph.add_node("tools", ToolNode(mcp_tools("mcp:everything")))
    graph.add_edge(START, "ask")
    graph.add_edge("ask", "tools")
    graph.add_edge("tools", END)
    return graph
"""


@dataclass
class Everything:
    """The server, behind its proxy."""

    address: str

    @property
    def url(self) -> str:
        return f"http://{self.address}/mcp"

    def change(self) -> None:
        httpx.post(f"http://{self.address}/louder").raise_for_status()


@pytest.fixture(scope="module")
def everything() -> Iterator[Everything]:
    port, inner = free_port(), free_port()
    with node_server("everything", PACKAGES, "everything.mjs", str(port), str(inner), KEY):
        yield Everything(f"127.0.0.1:{port}")


@pytest.fixture(scope="module")
def stack(everything: Everything, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    project = tmp_path_factory.mktemp("project")
    (project / "agent.py").write_text(AGENT)
    named = {"dependencies": ["."], "graphs": {"agent": "./agent.py:agent"}}
    (project / "langgraph.json").write_text(json.dumps(named))
    allowed = {
        "COGNI_CONNECTIONS_EGRESS_ALLOW": everything.address,
        "COGNI_RUNNER_EGRESS_ALLOW": everything.address,
    }
    with embedded(project / "langgraph.json", settings=allowed) as stack:
        yield stack


@pytest.fixture
async def client(stack: Embedded) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(stack.settings("peers")) as client:
        yield client


async def connect(client: AsyncClient, everything: Everything, key: str) -> str:
    request = connections.CreateConnectionRequest(
        request_id=str(uuid.uuid4()),
        provider="mcp:everything",
        secret=ConnectionSecret(api_key=ApiKeySecret(key=key)),
    )
    request.settings["server_url"] = everything.url
    made = (await client.connections.CreateConnection(request)).connection
    return str(made.connection_id)


async def listed(client: AsyncClient, connection_id: str) -> dict[str, Any]:
    request = connections.ListConnectionToolsRequest(connection_id=connection_id)
    tools = (await client.connections.ListConnectionTools(request)).tools
    return {each.tool: each for each in tools}


async def granted(client: AsyncClient, connection_id: str, *tools: ToolPermission) -> str:
    request = CreateGrantRequest(
        request_id=str(uuid.uuid4()),
        graphs=["graph:execute:agent"],
        tools=tools,
        connection_ids=[connection_id],
    )
    return str((await client.grants.CreateGrant(request)).grant.grant_id)


async def asked(client: AsyncClient, grant_id: str, text: str) -> list[RunEvent]:
    messages = {"messages": [{"role": "user", "content": text}]}
    run = await client.start_run("agent", grant_id, messages)
    return [event async for event in client.watch_run(run.run_id)]


def told(events: list[RunEvent]) -> str:
    finished = events[-1].finished
    assert finished.state == RunState.RUN_STATE_SUCCEEDED, finished.error
    return str(from_json_message(finished.output)["messages"][-1]["content"])


async def test_its_tools_are_granted_used_denied_when_they_change_and_granted_again(
    client: AsyncClient, everything: Everything
) -> None:
    connection_id = await connect(client, everything, KEY)
    tools = await listed(client, connection_id)
    echo = tools["everything__echo"]
    reviewed = ToolPermission(tool=echo.tool, mcp_tool=McpTool(digest=echo.digest))
    image = ToolPermission(tool="everything__get-tiny-image")
    grant_id = await granted(client, connection_id, reviewed, image)

    said = await asked(client, grant_id, f'everything__echo {{"message": "hello {KEY}"}}')
    shown = await asked(client, grant_id, "everything__get-tiny-image {}")
    other = await asked(client, grant_id, 'everything__get-sum {"a": 1, "b": 2}')
    everything.change()
    changed = await asked(client, grant_id, 'everything__echo {"message": "again"}')
    stale = await refusal(granted(client, connection_id, reviewed))
    again = await granted(client, connection_id, ToolPermission(tool=echo.tool))
    then = await asked(client, again, 'everything__echo {"message": "again"}')

    assert "Echo: hello [credential]" in told(said)
    assert told(said).startswith("[untrusted output of everything__echo")
    assert "[image, image/png," in told(shown)
    assert "not a valid tool" in told(other)
    (denied,) = [event.tool_denied for event in changed if event.HasField("tool_denied")]
    assert denied.reason == ErrorReason.ERROR_REASON_TOOL_CHANGED
    assert stale == "TOOL_CHANGED"
    assert "Echo: again" in told(then)

    await client.grants.RevokeGrant(RevokeGrantRequest(grant_id=again))
    assert await refusal(client.start_run("agent", again, {"messages": []})) == "GRANT_REVOKED"


async def test_a_key_that_the_server_does_not_take_lists_and_grants_nothing(
    client: AsyncClient, everything: Everything
) -> None:
    connection_id = await connect(client, everything, "another-key-altogether")

    assert await refusal(listed(client, connection_id)) == "CREDENTIAL_REJECTED"
    wanted = ToolPermission(tool="everything__echo")
    assert await refusal(granted(client, connection_id, wanted)) == "CREDENTIAL_REJECTED"


async def refusal(call: Any) -> str:
    """The reason for which the call is refused."""
    with pytest.raises(CogniError) as caught:
        await call
    return str(caught.value.reason)
