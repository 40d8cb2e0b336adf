"""Where an attempt takes up its run: from the input, from a checkpoint, or with answers."""

from dataclasses import dataclass
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.types import Command, Interrupt, StateSnapshot

from services.executor.runner.describing import AnyGraph
from services.executor.runner.ending import Asking, Waiting
from services.executor.runner.rendering import json_of
from services.executor.runner.scrub import Scrubber
from services.executor.runs import WaitingReason
from services.runtime.jsonvalues import Json


@dataclass(frozen=True)
class Start:
    """What to give the graph; None goes on from the newest checkpoint."""

    graph_input: Any


async def take_up(
    graph: AnyGraph,
    config: RunnableConfig,
    run_id: str,
    graph_input: dict[str, Json],
    answers: dict[str, Json],
    scrubber: Scrubber,
) -> Start | Waiting:
    """Say how the attempt begins; Waiting when its questions are still open.

    The thread may hold the state of earlier runs: what carries another run_id is where this run
    begins, not where it was. A new run_id on a state of this run would apply the input twice.
    """
    state = await graph.aget_state(config)
    if (state.metadata or {}).get("run_id") != run_id:
        return Start(graph_input)
    if not state.interrupts:
        return Start(None)
    given = {each.id: answers[each.id] for each in state.interrupts if each.id in answers}
    if given:
        return Start(Command(resume=given))
    return Waiting(questions_of(state, scrubber))


def questions_of(state: StateSnapshot, scrubber: Scrubber) -> list[Asking]:
    """The questions that a state stands still with, or the breakpoint it stands before."""
    nodes = {each.id: task.name for task in state.tasks for each in task.interrupts}
    asked = [_asking(each, nodes.get(each.id, ""), scrubber) for each in state.interrupts]
    if asked or not state.next:
        return asked
    checkpoint_id = state.config["configurable"]["checkpoint_id"]
    payload: Json = {"breakpoint": list(state.next)}
    return [Asking(f"breakpoint:{checkpoint_id}", state.next[0], payload)]


def _asking(interrupt: Interrupt, node: str, scrubber: Scrubber) -> Asking:
    payload = scrubber.value(json_of(interrupt.value))
    if isinstance(payload, dict) and payload.get("reason") == "OUTCOME_UNKNOWN":
        invocation_id, tool = payload.get("invocation_id"), payload.get("tool")
        if isinstance(invocation_id, str) and isinstance(tool, str):
            return Asking(
                interrupt.id, node, payload, WaitingReason.OUTCOME_UNKNOWN, invocation_id, tool
            )
    return Asking(interrupt.id, node, payload)
