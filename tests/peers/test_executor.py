"""An ordinary LangGraph project, written for nobody in particular, runs here unchanged."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from bench.embedded import Embedded, embedded
from cogni.client import AsyncClient, from_json_message
from cogni.executor.v1.executor_service_pb2 import GetGraphRequest
from cogni.executor.v1.grant_pb2 import ToolPermission
from cogni.executor.v1.grant_service_pb2 import CreateGrantRequest
from cogni.executor.v1.run_event_pb2 import RunEvent
from cogni.executor.v1.run_pb2 import RunState
from cogni.ledger.v1.account_pb2 import AccountKind
from cogni.ledger.v1.ledger_service_pb2 import CreateAccountRequest, TransferRequest
from cogni.type.v1.amount_pb2 import Amount

# As LangGraph's own documentation writes one: a prebuilt agent, plain tools, no checkpointer. Its
# model is the one thing that is ours.
AGENT = '''
import os

from langchain_core.tools import tool
from langgraph.prebuilt import create_react_agent

from cogni.graph import chat_model


@tool
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@tool
def multiply(a: int, b: int) -> int:
    """Multiplies two numbers."""
    return a * b


model = chat_model("openai/gpt-4o-mini", api_base=os.environ["MODEL_URL"], api_key="none")
agent = create_react_agent(model, tools=[add, multiply], prompt="You calculate.")
'''
USAGE = {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25}


@dataclass
class Provider:
    """Asks for the sum of 19 and 23 first, and says what the tool answered then."""

    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        self.requests.append(request)
        last = request["messages"][-1]
        if last["role"] == "tool":
            return {"role": "assistant", "content": f"It is {last['content']}."}
        function = {"name": "add", "arguments": '{"a": 19, "b": 23}'}
        call = {"index": 0, "id": "call_1", "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    provider = Provider()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            message = provider.answer(request)
            finish = "tool_calls" if "tool_calls" in message else "stop"
            common = {"id": f"c-{uuid.uuid4()}", "created": 1, "model": "gpt-4o-mini"}
            self.send_response(200)
            if not request.get("stream"):
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                choice = {"index": 0, "message": message, "finish_reason": finish}
                whole = {"object": "chat.completion", "choices": [choice], "usage": USAGE}
                self.wfile.write(json.dumps({**common, **whole}).encode())
                return
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for choices, usage in (
                ([{"index": 0, "delta": message, "finish_reason": None}], None),
                ([{"index": 0, "delta": {}, "finish_reason": finish}], None),
                ([], USAGE),
            ):
                chunk = {**common, "object": "chat.completion.chunk", "choices": choices}
                body = chunk | ({"usage": usage} if usage else {})
                self.wfile.write(f"data: {json.dumps(body)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")

        def log_message(self, *arguments: object) -> None:
            """Says nothing: the requests are kept."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    provider.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield provider
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def stack(provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    project = tmp_path_factory.mktemp("project")
    (project / "agent.py").write_text(AGENT)
    (project / ".env").write_text(f"MODEL_URL={provider.url}\n")
    (project / "langgraph.json").write_text(
        json.dumps({"dependencies": ["."], "graphs": {"agent": "./agent.py:agent"}, "env": ".env"})
    )
    with embedded(project / "langgraph.json") as stack:
        yield stack


@pytest.fixture
async def client(stack: Embedded) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(stack.settings("peers")) as client:
        yield client


async def _account(client: AsyncClient) -> str:
    made = {}
    for kind in (AccountKind.ACCOUNT_KIND_FUNDING, AccountKind.ACCOUNT_KIND_SPENDING):
        request = CreateAccountRequest(
            request_id=str(uuid.uuid4()), display_name="peers", asset="USD", kind=kind
        )
        made[kind] = (await client.ledger.CreateAccount(request)).account.account_id
    await client.ledger.Transfer(
        TransferRequest(
            request_id=str(uuid.uuid4()),
            debit_account_id=made[AccountKind.ACCOUNT_KIND_FUNDING],
            credit_account_id=made[AccountKind.ACCOUNT_KIND_SPENDING],
            amount=Amount(asset="USD", value="10"),
        )
    )
    return made[AccountKind.ACCOUNT_KIND_SPENDING]


async def _asked(client: AsyncClient, *tools: str) -> list[RunEvent]:
    """The events of a run of the agent under a grant for these tools."""
    granted = await client.grants.CreateGrant(
        CreateGrantRequest(
            request_id=str(uuid.uuid4()),
            graphs=["graph:execute:agent"],
            tools=[ToolPermission(tool=each) for each in tools],
            account_id=await _account(client),
        )
    )
    question = {"messages": [{"role": "user", "content": "What is 19 and 23?"}]}
    run = await client.start_run("agent", granted.grant.grant_id, question)
    return [event async for event in client.watch_run(run.run_id)]


async def test_its_graph_is_published_with_its_tools(client: AsyncClient) -> None:
    graph = (await client.executor.GetGraph(GetGraphRequest(graph_id="agent"))).graph

    assert {tool.tool for tool in graph.tools} == {"add", "multiply"}


async def test_the_agent_calls_its_model_and_its_tool_and_each_call_is_metered(
    client: AsyncClient, provider: Provider
) -> None:
    provider.requests.clear()

    events = await _asked(client, "add")

    finished = events[-1].finished
    assert finished.state == RunState.RUN_STATE_SUCCEEDED, finished.error
    assert from_json_message(finished.output)["messages"][-1]["content"] == "It is 42."
    usage = [event.usage for event in events if event.usage.model]
    assert len(usage) == len(provider.requests) == 2
    assert {(each.input_tokens, each.output_tokens) for each in usage} == {(20, 5)}
    assert [e.tool_allowed.tool for e in events if e.HasField("tool_allowed")] == ["add"]


async def test_a_plain_tool_is_denied_when_the_grant_does_not_name_it(
    client: AsyncClient,
) -> None:
    events = await _asked(client, "multiply")

    assert [e.tool_denied.tool for e in events if e.HasField("tool_denied")] == ["add"]
    assert not any(event.HasField("tool_allowed") for event in events)
