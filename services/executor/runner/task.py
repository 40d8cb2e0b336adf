"""Where in the graph some code runs: the LangGraph task it belongs to."""

from dataclasses import dataclass

from langchain_core.runnables import RunnableConfig
from langgraph.config import get_config


@dataclass(frozen=True)
class TaskPlace:
    """One execution of a node. The id is the same when the node is executed again."""

    task_id: str
    node: str
    #: Counts LangGraph's own tries of the node within one attempt, from 1.
    node_attempt: int


def place_of(config: RunnableConfig | None) -> TaskPlace:
    """Return the task that `config` belongs to, or the one this code runs in.

    Outside any task, all fields are empty: such code has one place for the whole run.
    """
    for each in (config, _current()):
        runtime = (each or {}).get("configurable", {}).get("__pregel_runtime")
        info = getattr(runtime, "execution_info", None)
        if each is not None and info is not None:
            node = str(each.get("metadata", {}).get("langgraph_node", ""))
            return TaskPlace(info.task_id, node, info.node_attempt)
    return TaskPlace("", "", 1)


def _current() -> RunnableConfig | None:
    try:
        return get_config()
    except RuntimeError:
        return None
