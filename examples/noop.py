"""The smallest graph: one node that changes nothing. For measuring and first calls."""

from typing import TypedDict

from langgraph.graph import END, START, StateGraph


class State(TypedDict, total=False):
    """Whatever comes in goes out."""

    note: str


async def nothing(state: State) -> State:
    """Does nothing."""
    return {}


graph = StateGraph(State).add_node(nothing).add_edge(START, "nothing").add_edge("nothing", END)
