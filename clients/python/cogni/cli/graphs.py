"""`cogni graphs`: what can be run."""

from __future__ import annotations

from typing import Annotated

import typer

from cogni.cli.arguments import JsonOption, LimitOption
from cogni.cli.output import name_of, pages, show, show_all, time_of
from cogni.client import Client
from cogni.executor.v1.executor_service_pb2 import GetGraphRequest, ListGraphsRequest
from cogni.executor.v1.graph_pb2 import Graph, GraphState

app = typer.Typer(help="Graphs that can be run.", no_args_is_help=True)


@app.command("list")
def list_graphs(limit: LimitOption = 50, as_json: JsonOption = False) -> None:
    """List the graphs that runners have published."""

    def row(graph: Graph) -> tuple[str, ...]:
        return (
            graph.graph_id,
            name_of(GraphState, "GRAPH_STATE", graph.state),
            graph.revision[:12],
            ", ".join(tool.tool for tool in graph.tools),
            time_of(graph.publish_time),
            graph.error,
        )

    with Client() as client:
        show_all(
            pages(client.executor.ListGraphs, ListGraphsRequest(), "graphs", limit),
            ("graph", "state", "revision", "tools", "published", "error"),
            row,
            as_json,
        )


@app.command()
def get(
    graph: Annotated[str, typer.Argument(metavar="GRAPH_ID")],
    revision: Annotated[str, typer.Option(help="Default: the newest.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Show one graph: its schemas and tools."""
    with Client() as client:
        request = GetGraphRequest(graph_id=graph, revision=revision)
        show(client.executor.GetGraph(request).graph, as_json)
