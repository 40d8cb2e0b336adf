"""The guard's place: every path to a tool meets it, in tools that never heard of it."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.tools import tool as langchain_tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

from cogni.graph import (
    Credential,
    Effect,
    ToolDenied,
    credential,
    invocation_id,
    policy_of,
    tool,
)
from cogni.graph.guarding import Recorded, ToolRequest, guard_every_tool, guarded_by
from cogni.graph.invocation import Invocation


class RecordingGuard:
    """Allows what it is told to, and remembers what it was asked."""

    def __init__(self, allowed: set[str], recorded: Any = None) -> None:
        self.loop = asyncio.get_running_loop()
        self.allowed = allowed
        self.recorded = recorded
        self.seen: list[tuple[str, dict[str, Any], str | None]] = []
        self.outcomes: list[Any] = []

    async def admit(self, request: ToolRequest) -> Any:
        self.seen.append((request.tool.name, dict(request.arguments), request.tool_call_id))
        if request.tool.name not in self.allowed:
            raise ToolDenied(f"{request.tool.name} is not granted")
        if self.recorded is not None:
            return Recorded(self.recorded)
        return Invocation("inv-1", Credential("bearer", {"access_token": "canary"}))

    async def answered(self, request: Any, question: Any, answer: Any) -> Any:
        raise AssertionError

    async def finished(self, invocation: Invocation, outcome: Any) -> Any:
        self.outcomes.append(outcome)
        return outcome

    async def failed(self, invocation: Invocation, failure: BaseException) -> BaseException:
        self.outcomes.append(failure)
        return ValueError("scrubbed")


@langchain_tool
def plain(text: str) -> str:
    """Say it."""
    return f"{text} by {invocation_id()} with {credential()['access_token']}"


@langchain_tool
async def awaited(text: str) -> str:
    """Say it later."""
    return f"{text} by {invocation_id()}"


@langchain_tool
def broken(text: str) -> str:
    """Fail."""
    raise RuntimeError(credential()["access_token"])


def _graph(tools: list[Any], name: str) -> Any:
    def ask(state: Any) -> Any:
        call = {"name": name, "args": {"text": "hi"}, "id": "c1"}
        return {"messages": [AIMessage(content="", tool_calls=[call])]}

    graph = StateGraph(MessagesState)
    graph.add_node("ask", ask)
    graph.add_node("tools", ToolNode(tools))
    graph.add_edge(START, "ask")
    graph.add_edge("ask", "tools")
    graph.add_edge("tools", END)
    return graph.compile()


@pytest.mark.parametrize("name", ["plain", "awaited"])
async def test_a_tool_node_meets_the_guard_for_blocking_and_async_tools(name: str) -> None:
    guard = RecordingGuard({name})
    with guard_every_tool(), guarded_by(guard):
        state = await _graph([plain, awaited], name).ainvoke({"messages": []})

    assert state["messages"][-1].content.startswith("hi by inv-1")
    assert guard.seen == [(name, {"text": "hi"}, "c1")]
    assert len(guard.outcomes) == 1


async def test_a_denied_tool_does_not_run_and_the_model_reads_why() -> None:
    guard = RecordingGuard(set())
    with guard_every_tool(), guarded_by(guard):
        state = await _graph([broken], "broken").ainvoke({"messages": []})

    message = state["messages"][-1]
    assert (message.status, message.tool_call_id) == ("error", "c1")
    assert "not granted" in message.content
    assert guard.outcomes == []


async def test_a_tool_invoked_by_code_is_denied_by_an_exception() -> None:
    with guard_every_tool(), guarded_by(RecordingGuard(set())):
        with pytest.raises(ToolDenied):
            await plain.ainvoke({"text": "x"})
        with pytest.raises(ToolDenied):
            await asyncio.to_thread(plain.invoke, {"text": "x"})


async def test_a_recorded_outcome_is_handed_out_without_running_the_tool() -> None:
    guard = RecordingGuard({"broken"}, recorded="as before")
    with guard_every_tool(), guarded_by(guard):
        assert await broken.ainvoke({"text": "x"}) == "as before"


async def test_what_a_failing_tool_raises_is_replaced_by_what_the_guard_hands_back() -> None:
    guard = RecordingGuard({"broken"})
    with (
        guard_every_tool(),
        guarded_by(guard),
        pytest.raises(ValueError, match=r"^scrubbed$") as caught,
    ):
        await broken.ainvoke({"text": "x"})

    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


async def test_a_runners_process_refuses_tools_and_models_outside_a_run() -> None:
    from cogni.graph import chat_model

    with guard_every_tool():
        with pytest.raises(RuntimeError, match="outside any run"):
            await awaited.ainvoke({"text": "x"})
        with pytest.raises(RuntimeError, match="outside any run"):
            await chat_model("x", mock_response="y").ainvoke("hi")
    assert await asyncio.to_thread(len, "ok") == 2


def test_a_tool_that_declares_nothing_is_outward_and_not_repeatable() -> None:
    assert policy_of(plain).effects is Effect.OUTWARD
    assert not policy_of(plain).idempotent


def test_a_declared_policy_is_read_back_and_a_wrong_one_refused() -> None:
    @tool(effects="none", idempotent=True, connection="bluesky")
    def look(text: str) -> str:
        """Look."""
        return text

    policy = policy_of(look)
    assert (policy.effects, policy.idempotent, policy.connection) == ("none", True, "bluesky")
    with pytest.raises(ValueError, match="sideways"):
        tool(effects="sideways")


def test_a_credential_prints_no_secret_and_cannot_be_stored() -> None:
    leased = Credential("bearer", {"access_token": "canary"})

    assert "canary" not in repr(leased)
    with pytest.raises(TypeError):
        pickle.dumps(leased)
