"""What the chaos tests run: a streamed model call, an outward effect, another model call."""

import os
from pathlib import Path
from typing import TypedDict

from langchain_core.messages import HumanMessage
from langgraph.graph import END, START, StateGraph

from cogni.graph import chat_model, invocation_id, tool


class State(TypedDict, total=False):
    """What the nodes hand on."""

    number: int
    first: str
    effect: str
    second: str


def model() -> object:
    # A model with a price: the run works under a hold.
    return chat_model("openai/gpt-4o-mini", api_base=os.environ["CHAOS_PROVIDER"], api_key="none")


@tool(effects="outward", idempotent=True)
def leave_mark(number: int) -> str:
    """Leaves a mark in the world that a repetition with the same id does not double."""
    mark = Path(os.environ["CHAOS_EFFECTS"]) / str(invocation_id())
    mark.write_text(str(number))
    return mark.name


async def think(state: State) -> State:
    text = ""
    async for piece in model().astream([HumanMessage("think")]):
        text += piece.text
    return {"first": text}


async def act(state: State) -> State:
    return {"effect": await leave_mark.ainvoke({"number": state["number"]})}


async def conclude(state: State) -> State:
    answer = await model().ainvoke([HumanMessage("conclude")])
    return {"second": answer.text}


graph = (
    StateGraph(State)
    .add_sequence([think, act, conclude])
    .add_edge(START, "think")
    .add_edge("conclude", END)
)
