"""The graph every executor on the bench runs: five nodes that do nothing."""

from typing import TypedDict

from langgraph.graph import END, START, StateGraph

NODES = ("a", "b", "c", "d", "e")


class State(TypedDict, total=False):
    """A counter, so that each node has something to write."""

    count: int


def step(state: State) -> State:
    return {"count": state.get("count", 0) + 1}


def build() -> StateGraph:
    graph = StateGraph(State)
    for name in NODES:
        graph.add_node(name, step)
    for before, after in zip((START, *NODES), (*NODES, END), strict=True):
        graph.add_edge(before, after)
    return graph


graph = build().compile()
