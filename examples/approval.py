"""Asks a person before it acts: the run waits, for days if need be, until ResumeRun answers."""

from typing import TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.types import interrupt


class State(TypedDict, total=False):
    """What is proposed, and what became of it."""

    proposal: str
    approved: bool


async def ask(state: State) -> State:
    """Stops the run with a question; the answer is the value ResumeRun brings."""
    answer = interrupt({"question": "May I go on?", "proposal": state.get("proposal", "")})
    return {"approved": answer is True}


graph = StateGraph(State).add_node(ask).add_edge(START, "ask").add_edge("ask", END)
