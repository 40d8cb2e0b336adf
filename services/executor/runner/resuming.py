"""Where an attempt takes up its run: from the input, from a checkpoint, or with answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from langchain_core.runnables import RunnableConfig
from langgraph.types import Command, Interrupt, StateSnapshot

from services.executor.runner.describing import AnyGraph
from services.executor.runner.ending import Asking, Waiting
from services.executor.runner.rendering import bounded, json_of
from services.executor.runner.scrub import Scrubber
from services.executor.runs import WaitingReason
from services.runtime.jsonvalues import Json

#: What the open questions may measure together: GetRun's answer, which has the input too, may have
#: 4 MiB.
_PAYLOADS_BYTES_MAX = 1024 * 1024


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
    if state.interrupts:
        given = {each.id: answers[each.id] for each in state.interrupts if each.id in answers}
        if given:
            return Start(Command(resume=given))
    elif not await _stands_at_breakpoint(graph, state):
        return Start(None)
    # The attempt that came here may have died before it could ask. Going on from a breakpoint
    # means passing it, so nobody's answer is not an answer.
    asked = await questions_of(graph, state, scrubber)
    if asked and not any(each.interrupt_id in answers for each in asked):
        return Waiting(asked)
    return Start(None)


async def questions_of(graph: AnyGraph, state: StateSnapshot, scrubber: Scrubber) -> list[Asking]:
    """The questions that a state stands still with, or the breakpoint it stands before."""
    nodes = {each.id: task.name for task in state.tasks for each in task.interrupts}
    bytes_max = _PAYLOADS_BYTES_MAX // max(1, len(state.interrupts))
    asked = [
        _asking(each, nodes.get(each.id, ""), scrubber, bytes_max) for each in state.interrupts
    ]
    if asked or not state.next:
        return asked
    payload: Json = {"breakpoint": list(state.next)}
    return [Asking(f"breakpoint:{await _newest_place(graph, state)}", state.next[0], payload)]


async def _newest_place(graph: AnyGraph, state: StateSnapshot) -> str:
    """The newest checkpoint of the thread: within a subgraph, if that is where it stands.

    A subgraph may have several breakpoints while the outer graph stays where it is.
    """
    thread_id = state.config["configurable"]["thread_id"]
    thread: RunnableConfig = {"configurable": {"thread_id": thread_id}}
    async for newest in graph.checkpointer.alist(thread, limit=1):  # type: ignore[union-attr]
        return str(newest.config["configurable"]["checkpoint_id"])
    return str(state.config["configurable"]["checkpoint_id"])


async def _stands_at_breakpoint(graph: AnyGraph, state: StateSnapshot) -> bool:
    """Whether the outermost graph stops here by its `interrupt_before` or `interrupt_after`."""
    if not state.next:
        return False
    if _names(graph.interrupt_before_nodes, state.next):
        return True
    if not graph.interrupt_after_nodes or state.parent_config is None:
        return False
    before = await graph.aget_state(state.parent_config)
    return _names(graph.interrupt_after_nodes, [task.name for task in before.tasks])


def _names(breakpoints: Literal["*"] | Sequence[str], nodes: Sequence[str]) -> bool:
    shown = [each for each in nodes if not each.startswith("__")]
    return bool(shown) if breakpoints == "*" else not set(shown).isdisjoint(breakpoints)


def _asking(interrupt: Interrupt, node: str, scrubber: Scrubber, bytes_max: int) -> Asking:
    payload = bounded(scrubber.value(json_of(interrupt.value)), bytes_max)
    if isinstance(payload, dict) and payload.get("reason") == "OUTCOME_UNKNOWN":
        invocation_id, tool = payload.get("invocation_id"), payload.get("tool")
        if isinstance(invocation_id, str) and isinstance(tool, str):
            return Asking(
                interrupt.id, node, payload, WaitingReason.OUTCOME_UNKNOWN, invocation_id, tool
            )
    return Asking(interrupt.id, node, payload)
