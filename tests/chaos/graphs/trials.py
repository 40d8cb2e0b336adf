"""Graphs that are stopped and killed: one takes its time in steps, one kills its process."""

import asyncio
import os
from typing import TypedDict

from langgraph.graph import END, START, StateGraph

STEP_SECONDS = 0.2


class State(TypedDict, total=False):
    """How many steps there are, how many are done, and whether this one is poison."""

    steps: int
    done: int
    poison: bool


async def step(state: State) -> State:
    """Takes one step; each is a checkpoint and events of its own."""
    if state.get("poison"):
        os._exit(1)
    await asyncio.sleep(STEP_SECONDS)
    return {"done": state.get("done", 0) + 1}


def onward(state: State) -> str:
    """Goes round until every step is done."""
    return "step" if state["done"] < state["steps"] else END


steps = (
    StateGraph(State)
    .add_node(step)
    .add_edge(START, "step")
    .add_conditional_edges("step", onward, ["step", END])
)
