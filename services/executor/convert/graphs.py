"""Converts graphs into the contract's messages."""

from cogni.executor.v1 import graph_pb2
from services.executor.convert import enums
from services.executor.convert.times import timestamp
from services.executor.graphs import Graph, Tool
from services.runtime.jsonvalues import to_struct


def graph_to_proto(graph: Graph, *, whole: bool) -> graph_pb2.Graph:
    """Return the graph as its reader sees it; without `whole`, without its schemas."""
    message = graph_pb2.Graph(
        graph_id=graph.graph_id,
        revision=graph.revision,
        description=graph.description,
        state=enums.graph_state(graph.state),
        error=graph.error or "",
        tools=[_tool_to_proto(tool, whole=whole) for tool in graph.tools],
        nodes=graph.nodes,
        publish_time=timestamp(graph.publish_time),
    )
    if whole:
        message.input_schema.CopyFrom(to_struct(graph.input_schema))
        message.output_schema.CopyFrom(to_struct(graph.output_schema))
        message.context_schema.CopyFrom(to_struct(graph.context_schema))
    return message


def _tool_to_proto(tool: Tool, *, whole: bool) -> graph_pb2.Tool:
    message = graph_pb2.Tool(
        tool=tool.tool,
        description=tool.description,
        effect=enums.tool_effect(tool.effect),
        provider=tool.provider,
    )
    if whole:
        message.arguments_schema.CopyFrom(to_struct(tool.arguments_schema))
    return message
