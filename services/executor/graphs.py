"""A graph as its runners published it: the catalogue's entry."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from services.runtime.jsonvalues import Json

#: The tenant of graphs that every tenant may run.
EVERY_TENANT = "*"
#: What a graph's id looks like, and how long it may be.
GRAPH_ID = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
GRAPH_ID_LENGTH_MAX = 200


class GraphState(StrEnum):
    """Whether a graph can be run."""

    AVAILABLE = "AVAILABLE"
    BROKEN = "BROKEN"


class ToolEffect(StrEnum):
    """What a tool does to the world outside."""

    NONE = "NONE"
    IDEMPOTENT = "IDEMPOTENT"
    OUTWARD = "OUTWARD"


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that a graph declares."""

    tool: str
    description: str = ""
    arguments_schema: dict[str, Json] = field(default_factory=dict)
    effect: ToolEffect = ToolEffect.OUTWARD
    provider: str = ""


@dataclass(frozen=True, slots=True)
class Graph:
    """One revision of a graph. `error` says why a BROKEN one could not be loaded."""

    graph_id: str
    revision: str
    state: GraphState = GraphState.AVAILABLE
    description: str = ""
    error: str | None = None
    input_schema: dict[str, Json] = field(default_factory=dict)
    output_schema: dict[str, Json] = field(default_factory=dict)
    context_schema: dict[str, Json] = field(default_factory=dict)
    tools: tuple[Tool, ...] = ()
    nodes: tuple[str, ...] = ()
    publish_time: datetime | None = None
