"""What a compiled graph says about itself: its schemas, nodes and tools."""

import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from langchain_core.tools import BaseTool
from langgraph.prebuilt import ToolNode
from langgraph.pregel import Pregel

from cogni.graph.policy import Effect, ToolPolicy, policy_of
from services.executor.graphs import Graph, Tool, ToolEffect
from services.executor.runner.rendering import json_of
from services.runtime.jsonvalues import Json

AnyGraph: TypeAlias = Pregel[Any, Any, Any, Any]

_log = logging.getLogger(__name__)

#: How deep subgraphs are looked into for their tools.
_DEPTH_MAX = 5


def described(graph_id: str, revision: str, graph: AnyGraph) -> Graph:
    """Return the catalogue's entry for a graph.

    Tools are those of its tool nodes; one that a node's code invokes by itself is not seen here,
    and is guarded all the same.
    """
    return Graph(
        graph_id,
        revision,
        description=(getattr(graph, "description", None) or "").strip()[:2000],
        input_schema=_schema(graph.get_input_jsonschema),
        output_schema=_schema(graph.get_output_jsonschema),
        context_schema=_schema(graph.get_context_jsonschema),
        tools=tuple(_tool(each) for each in tools_of(graph)),
        nodes=tuple(name for name in graph.nodes if not name.startswith("__")),
    )


def _schema(make: Callable[[], Any]) -> dict[str, Json]:
    try:
        schema = json_of(make() or {})
    except Exception:  # State may hold types that pydantic has no schema for.
        _log.debug("a graph's state has no JSON schema", exc_info=True)
        return {}
    return schema if isinstance(schema, dict) else {}


def _tools(graph: AnyGraph, depth: int) -> Iterator[BaseTool]:
    seen: set[str] = set()
    for node in graph.nodes.values():
        bound = getattr(node, "bound", node)
        found: list[BaseTool] = []
        if isinstance(bound, ToolNode):
            found = list(bound.tools_by_name.values())
        elif isinstance(bound, Pregel) and depth < _DEPTH_MAX:
            found = list(_tools(bound, depth + 1))
        for each in found:
            if each.name not in seen:
                seen.add(each.name)
                yield each


def tools_of(graph: AnyGraph) -> Iterator[BaseTool]:
    """The tools that the graph's tool nodes hold, its subgraphs' among them, each name once."""
    return _tools(graph, 0)


def _tool(declared: BaseTool) -> Tool:
    policy = policy_of(declared)
    return Tool(
        tool=declared.name,
        description=declared.description[:2000],
        arguments_schema=_schema(lambda: declared.get_input_jsonschema()),
        effect=effect_of(policy),
        provider=next(iter(policy.providers), ""),
    )


def effect_of(policy: ToolPolicy) -> ToolEffect:
    """What the contract calls a declared policy."""
    if policy.effects is Effect.NONE:
        return ToolEffect.NONE
    return ToolEffect.IDEMPOTENT if policy.idempotent else ToolEffect.OUTWARD
