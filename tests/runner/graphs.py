"""Graphs that the runner's tests carry. What they did is kept in `HAPPENED`."""

from __future__ import annotations

import asyncio
import json
import operator
from collections import Counter
from typing import Annotated, Any, TypedDict

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import ToolException
from langchain_core.tools import tool as langchain_tool
from langgraph.func import entrypoint
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import RetryPolicy, Send, interrupt

from cogni.graph import chat_model, credential, http_request, invocation_id, mcp_tools, portal, tool
from cogni.graph.metering import current_meter

#: Counts what nodes and tools did, and lets tests hold them back.
HAPPENED: Counter[str] = Counter()
PROVIDER: dict[str, str] = {}
#: What the next executions of `flaky` raise, after they have done it.
FAILURES: list[Exception] = []
OUTSIDE_FAILURES = {
    "timeout": TimeoutError("it took too long"),
    "refused": ConnectionRefusedError(111, "nobody listens"),
    "cancelled": asyncio.CancelledError("by itself"),
}
REACHED = asyncio.Event()
RELEASED = asyncio.Event()
CONFIDED = "confided-3b1c"


class Words(TypedDict):
    words: Annotated[list[str], operator.add]


def _chain(*nodes: Any, state: Any = Words, retry: RetryPolicy | None = None) -> Any:
    graph = StateGraph(state)
    names = [node.__name__ for node in nodes]
    for name, node in zip(names, nodes, strict=True):
        graph.add_node(name, node, retry_policy=retry)
    for before, after in zip([START, *names], [*names, END], strict=True):
        graph.add_edge(before, after)
    return graph.compile()


async def first(state: Words) -> Words:
    HAPPENED["first"] += 1
    return {"words": ["first"]}


def second(state: Words) -> Words:
    HAPPENED["second"] += 1
    return {"words": ["second"]}


async def held(state: Words) -> Words:
    HAPPENED["held"] += 1
    REACHED.set()
    await RELEASED.wait()
    return {"words": ["held"]}


async def broken(state: Words) -> Words:
    raise ValueError("it broke")


async def fails_outside(state: Words) -> Words:
    HAPPENED["fails_outside"] += 1
    raise OUTSIDE_FAILURES[state["words"][0]]


async def asks(state: Words) -> Words:
    one = interrupt({"question": "one?"})
    two = interrupt({"question": "two?"})
    return {"words": [str(one), str(two)]}


async def forever(state: Words) -> Words:
    return {"words": ["again"]}


@tool(effects="outward")
async def post(text: str) -> str:
    """Post a text."""
    HAPPENED["post"] += 1
    HAPPENED[f"post {invocation_id()}"] += 1
    return f"posted {text}"


@tool(effects="outward", idempotent=True)
async def put(text: str) -> str:
    """Put a text."""
    HAPPENED["put"] += 1
    return f"put {text}"


@tool(effects="outward", idempotent=True)
async def slow_put(text: str) -> str:
    """Put a text, once it may."""
    HAPPENED["slow_put"] += 1
    REACHED.set()
    await RELEASED.wait()
    return f"put {text}"


@tool(effects="outward")
async def flaky(text: str) -> str:
    """Do it, and then fail as the test says."""
    HAPPENED["flaky"] += 1
    if FAILURES:
        raise FAILURES.pop(0)
    return f"did {text}"


@tool(effects="outward", idempotent=True)
async def flaky_put(text: str) -> str:
    """As `flaky`, for a provider that knows an invocation again."""
    HAPPENED["flaky_put"] += 1
    if FAILURES:
        raise FAILURES.pop(0)
    return f"put {text}"


@tool(effects="outward")
async def refused(text: str) -> str:
    """Do it and be refused, and tell that as an answer."""
    HAPPENED["refused"] += 1
    raise ToolException(f"refused {text}")


refused.handle_tool_error = True


@tool(effects="outward")
async def hand_out(text: str) -> Any:
    """Do it and return what no checkpoint can keep."""
    HAPPENED["hand_out"] += 1
    return object()


@langchain_tool
def plain(text: str) -> str:
    """Say a text, as a tool that never heard of Cogni."""
    HAPPENED["plain"] += 1
    return f"said {text}"


@tool(effects="outward", connection="bluesky")
async def leaky(text: str) -> str:
    """Hand back the credential, every way there is."""
    token = credential()["access_jwt"]
    HAPPENED["leaky"] += 1
    if text == "raise":
        raise RuntimeError(f"refused for {token}")
    return f"done with {token}"


@tool(redact_arguments=("secret",), redact_result=True)
async def confide(secret: str, to: str) -> str:
    """Tell somebody a secret."""
    HAPPENED[f"confided {secret} to {to}"] += 1
    return f"{to} knows {secret}"


def _says_tool(name: str) -> Any:
    def script(messages: Any) -> str | AIMessage:
        if isinstance(messages[-1], HumanMessage):
            call = {"name": name, "args": {"text": messages[-1].text}, "id": "call_1"}
            return AIMessage(content="", tool_calls=[call])
        return f"I was told: {messages[-1].text}"

    return script


def _agent(offered: Any) -> Any:
    model = chat_model("gpt-4o-mini", mock_response=_says_tool(offered.name)).bind_tools([offered])

    async def model_node(state: MessagesState) -> Any:
        return {"messages": [await model.ainvoke(state["messages"])]}

    return _looped(model_node, [offered])


def _scripted(tools: list[Any], script: Any) -> Any:
    """An agent that needs no model, and so no LiteLLM, which takes seconds to import."""

    async def model_node(state: MessagesState) -> Any:
        return {"messages": [script(state["messages"])]}

    return _looped(model_node, tools)


def _looped(model_node: Any, tools: list[Any]) -> Any:
    def route(state: MessagesState) -> str:
        return "tools" if state["messages"][-1].tool_calls else END

    graph = StateGraph(MessagesState)
    graph.add_node("model", model_node)
    graph.add_node("tools", ToolNode(tools))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", route)
    graph.add_edge("tools", "model")
    return graph.compile()


async def twice(state: Words) -> Words:
    """Invoke a tool two times, held between them."""
    one = await post.ainvoke({"text": "one"})
    REACHED.set()
    await RELEASED.wait()
    try:
        two = await post.ainvoke({"text": "two"})
    except Exception as error:
        two = str(error)
    return {"words": [one, two]}


async def posts_then_held(state: Words) -> Words:
    said = await post.ainvoke({"text": "x"})
    REACHED.set()
    await RELEASED.wait()
    return {"words": [said]}


async def tries(state: Words) -> Words:
    chosen = flaky_put if state["words"] == ["idempotent"] else flaky
    return {"words": [await chosen.ainvoke({"text": "x"})]}


async def posts_two_at_once(state: Words) -> Words:
    """Which of the two comes first changes with each execution."""
    HAPPENED["at_once"] += 1
    names = ["a", "b"] if HAPPENED["at_once"] < 3 else ["b", "a"]
    calls = [{"name": "post", "args": {"text": name}, "id": name} for name in names]
    said = await asyncio.gather(*(post.ainvoke({**call, "type": "tool_call"}) for call in calls))
    REACHED.set()
    await RELEASED.wait()
    return {"words": sorted(each.content for each in said)}


async def tries_under_new_ids(state: Words) -> Words:
    """As an agent within one node, whose model asks anew when the node is tried again."""
    HAPPENED["asked"] += 1
    call = {"name": "flaky", "args": {"text": "x"}, "id": f"call_{HAPPENED['asked']}"}
    said = await flaky.ainvoke({**call, "type": "tool_call"})
    return {"words": [said.content]}


async def tries_and_holds(state: Words) -> Words:
    try:
        return {"words": [await flaky.ainvoke({"text": "x"})]}
    except RuntimeError:
        REACHED.set()
        await RELEASED.wait()
        raise


async def hands_out_then_held(state: Words) -> Words:
    said = await hand_out.ainvoke({"text": "x"})
    REACHED.set()
    await RELEASED.wait()
    return {"words": [type(said).__name__]}


async def refused_then_held(state: Words) -> Words:
    call = {"name": "refused", "args": {"text": "x"}, "id": "call_1", "type": "tool_call"}
    said = await refused.ainvoke(call)
    REACHED.set()
    await RELEASED.wait()
    return {"words": [said.status, said.content]}


async def puts(state: Words) -> Words:
    return {"words": [await slow_put.ainvoke({"text": "x"})]}


async def chats(state: Words) -> Words:
    model = chat_model("openai/gpt-4o-mini", api_key="sk-test", **PROVIDER)
    return {"words": [(await model.ainvoke("hi")).text]}


class Stranger(BaseChatModel):
    """A model of another library."""

    reports: bool = True

    @property
    def _llm_type(self) -> str:
        return "stranger"

    def _get_ls_params(self, stop: Any = None, **kwargs: Any) -> Any:
        return {"ls_provider": "openai", "ls_model_name": "gpt-4o-mini", "ls_model_type": "chat"}

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> ChatResult:
        HAPPENED["stranger"] += 1
        usage = {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9}
        message = AIMessage(content="hi", usage_metadata=usage if self.reports else None)
        return ChatResult(generations=[ChatGeneration(message=message)])


async def meets(state: Words) -> Words:
    return {"words": [(await Stranger().ainvoke("a")).text]}


def meets_in_a_thread(state: Words) -> Words:
    return {"words": [Stranger(reports=False).invoke("b").text]}


async def fetches(state: Words) -> Words:
    return {"words": [str(await http_request.ainvoke({"url": PROVIDER["url"]}))]}


strangers = _chain(meets, meets_in_a_thread)
chatting = _chain(chats)
chat_and_ask = _chain(chats, asks)
fetching = _chain(fetches)
noop = _chain(first, second)
hold = _chain(first, held, second)
fails = _chain(first, broken)
unlucky = _chain(fails_outside)
questions = _chain(asks)
posting = _agent(post)
plain_agent = _agent(plain)
leaking = _agent(leaky)
two_posts = _chain(twice)
post_and_hold = _chain(posts_then_held)
putting = _chain(puts)
_at_once = RetryPolicy(
    initial_interval=0.0, max_interval=0.0, jitter=False, max_attempts=3, retry_on=Exception
)
retrying = _chain(tries, retry=_at_once)
retrying_under_new_ids = _chain(tries_under_new_ids, retry=_at_once)
two_at_once = _chain(posts_two_at_once)
failing_and_held = _chain(tries_and_holds)
handing_out_and_held = _chain(hands_out_then_held)
refused_and_held = _chain(refused_then_held)


def _says_ticket(messages: Any) -> AIMessage:
    """Asks for the tool and the arguments that the person spells: "echo {json}"."""
    if isinstance(messages[-1], HumanMessage):
        name, _, spelt = messages[-1].text.partition(" ")
        call = {"name": f"tickets__{name}", "args": json.loads(spelt), "id": "call_1"}
        return AIMessage(content="", tool_calls=[call])
    return AIMessage(content="done")


def ticketing() -> Any:
    """An agent with the tools of an MCP server that the run's grant names, given as a factory."""
    return _scripted(mcp_tools("mcp:tickets"), _says_ticket)


def _says_secret(messages: Any) -> AIMessage:
    if isinstance(messages[-1], HumanMessage):
        call = {"name": "confide", "args": {"secret": CONFIDED, "to": "bea"}, "id": "call_1"}
        return AIMessage(content="", tool_calls=[call])
    return AIMessage(content="done")


def confiding() -> Any:
    """An agent with a tool whose argument and result are nobody's business."""
    return _scripted([confide], _says_secret)


def looping() -> StateGraph:
    """A graph that never ends, given as a factory."""
    graph = StateGraph(Words)
    graph.add_node("forever", forever)
    graph.add_edge(START, "forever")
    graph.add_edge("forever", "forever")
    return graph


def looks_up(state: Words) -> Words:
    """Block a thread until the loop has done what takes it a thread, as LiteLLM does."""
    meter = current_meter()
    assert meter is not None
    return {"words": [portal.call(asyncio.to_thread(str, "found"), meter.loop)]}


def crowding() -> StateGraph:
    """More blocking nodes at once than there are threads for anything."""
    graph = StateGraph(Words)
    graph.add_node("looks_up", looks_up)
    graph.add_conditional_edges(START, lambda state: [Send("looks_up", state)] * 80, ["looks_up"])
    graph.add_edge("looks_up", END)
    return graph


def _gated(**breakpoints: Any) -> Any:
    graph = StateGraph(Words)
    graph.add_sequence([first, second])
    graph.add_edge(START, "first")
    return graph.compile(**breakpoints)


def gated_before() -> Any:
    """Asks before its second node."""
    return _gated(interrupt_before=["second"])


def gated_after() -> Any:
    """Asks after its first node."""
    return _gated(interrupt_after=["first"])


def gated_within() -> StateGraph:
    """Asks before each node of a subgraph."""
    graph = StateGraph(Words)
    graph.add_node("within", _gated(interrupt_before=["first", "second"]))
    graph.add_edge(START, "within")
    return graph


AWKWARD = {"half": "a\ud800b", "nan": float("nan"), "large": "x" * 3_000_000, "nul": "a\0b"}


def awkward_raise(state: Words) -> Words:
    raise ValueError(AWKWARD[state["words"][0]])


def awkward_ask(state: Words) -> Words:
    return {"words": [interrupt({"question": AWKWARD[state["words"][0]]})]}


def awkward_say(state: Words) -> Words:
    return {"words": [AWKWARD[state["words"][0]]]}


raising_awkwardly = _chain(awkward_raise)
asking_awkwardly = _chain(awkward_ask)
saying_awkwardly = _chain(awkward_say)


@entrypoint()
async def counting(given: dict[str, Any]) -> int:
    """A graph of the functional API, which returns what it likes."""
    return 42
