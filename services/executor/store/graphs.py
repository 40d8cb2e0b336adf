"""Keeps the catalogue of graphs that runners publish when they start."""

import json
from collections.abc import Sequence
from typing import Any

from services.executor.graphs import Graph, GraphState, Tool, ToolEffect
from services.executor.store.events import Connection
from services.executor.store.rows import Row
from services.runtime.jsonvalues import Json

# Publishing a revision again makes it the newest: an operator may go back to an older one.
_PUBLISH = """
INSERT INTO graphs (tenant_id, graph_id, revision, state, description, error, input_schema,
    output_schema, context_schema, tools, nodes, publish_time, seen_time)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, cogni_now(), cogni_now())
ON CONFLICT (tenant_id, graph_id, revision) DO UPDATE SET
    state = excluded.state, description = excluded.description, error = excluded.error,
    input_schema = excluded.input_schema, output_schema = excluded.output_schema,
    context_schema = excluded.context_schema, tools = excluded.tools, nodes = excluded.nodes,
    seen_time = excluded.seen_time
"""
# A tenant's own graph hides everybody's graph of the same name.
_NEWEST = """
SELECT * FROM graphs WHERE graph_id = $1
ORDER BY (tenant_id <> '*') DESC, seen_time DESC LIMIT 1
"""
_REVISION = """
SELECT * FROM graphs WHERE graph_id = $1 AND revision = $2
ORDER BY (tenant_id <> '*') DESC LIMIT 1
"""
_PAGE = """
SELECT DISTINCT ON (graph_id) * FROM graphs WHERE graph_id > $1
ORDER BY graph_id, (tenant_id <> '*') DESC, seen_time DESC LIMIT $2
"""


async def publish(tx: Connection, tenant_id: str, graphs: Sequence[Graph]) -> None:
    """Make these the newest revisions of their graphs. Needs a jobs transaction.

    `tenant_id` is EVERY_TENANT unless the runner serves one tenant alone.
    """
    await tx.executemany(
        _PUBLISH,
        [
            (
                tenant_id,
                graph.graph_id,
                graph.revision,
                graph.state,
                graph.description,
                graph.error,
                json.dumps(graph.input_schema),
                json.dumps(graph.output_schema),
                json.dumps(graph.context_schema),
                json.dumps([_tool_to_json(tool) for tool in graph.tools]),
                list(graph.nodes),
            )
            for graph in graphs
        ],
    )


async def get(tx: Connection, graph_id: str, revision: str | None) -> Graph | None:
    """Return the graph in this revision, or in the newest one; None when there is none."""
    if revision:
        row = await tx.fetchrow(_REVISION, graph_id, revision)
    else:
        row = await tx.fetchrow(_NEWEST, graph_id)
    return None if row is None else _graph(row)


async def page(tx: Connection, after_id: str, limit: int) -> list[Graph]:
    """Return at most `limit` graphs by name after `after_id`, each in its newest revision."""
    return [_graph(row) for row in await tx.fetch(_PAGE, after_id, limit)]


def _tool_to_json(tool: Tool) -> Json:
    return {
        "tool": tool.tool,
        "description": tool.description,
        "arguments_schema": tool.arguments_schema,
        "effect": tool.effect,
        "provider": tool.provider,
    }


def _tool_from_json(stored: dict[str, Any]) -> Tool:
    return Tool(**{**stored, "effect": ToolEffect(stored["effect"])})


def _graph(row: Row) -> Graph:
    return Graph(
        graph_id=row["graph_id"],
        revision=row["revision"],
        state=GraphState(row["state"]),
        description=row["description"],
        error=row["error"],
        input_schema=json.loads(row["input_schema"]),
        output_schema=json.loads(row["output_schema"]),
        context_schema=json.loads(row["context_schema"]),
        tools=tuple(_tool_from_json(each) for each in json.loads(row["tools"])),
        nodes=tuple(row["nodes"]),
        publish_time=row["publish_time"],
    )
