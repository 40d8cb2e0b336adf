"""Converts grants into the contract's messages, and requests back."""

from cogni.executor.v1 import grant_pb2, grant_service_pb2
from services.executor.constraints import (
    ArgumentConstraint,
    ArgumentRule,
    Equals,
    Glob,
    MaxLength,
    Range,
)
from services.executor.convert import enums
from services.executor.convert.times import amount, amount_of, time_of, timestamp
from services.executor.grants import (
    GRAPH_PREFIX,
    Grant,
    GrantChange,
    GrantRequest,
    McpTool,
    ToolPermission,
)
from services.runtime.jsonvalues import from_value, to_struct, to_value


def grant_to_proto(grant: Grant, *, whole: bool = True) -> grant_pb2.Grant:
    """Return the grant as its reader sees it; in lists without the definitions of its tools."""
    return grant_pb2.Grant(
        grant_id=grant.grant_id,
        tenant_id=grant.tenant_id,
        display_name=grant.display_name,
        owner=grant.owner,
        state=enums.grant_state(grant.state),
        graphs=[f"{GRAPH_PREFIX}{graph_id}" for graph_id in grant.graph_ids],
        tools=[_permission_to_proto(each, whole=whole) for each in grant.tools],
        connection_ids=grant.connection_ids,
        account_id=grant.account_id or "",
        budget=amount(grant.budget),
        expire_time=timestamp(grant.expire_time),
        labels=grant.labels,
        create_time=timestamp(grant.create_time),
        revoke_time=timestamp(grant.revoke_time),
        revoke_comment=grant.revoke_comment,
        revoker=grant.revoker,
    )


def grant_request(sent: grant_service_pb2.CreateGrantRequest) -> GrantRequest:
    """Return what a validated CreateGrantRequest asks for."""
    return GrantRequest(
        display_name=sent.display_name,
        graph_ids=tuple(each.removeprefix(GRAPH_PREFIX) for each in sent.graphs),
        tools=tuple(_permission(each) for each in sent.tools),
        connection_ids=tuple(sent.connection_ids),
        account_id=sent.account_id or None,
        budget=amount_of(sent.budget) if sent.HasField("budget") else None,
        expire_time=time_of(sent.expire_time) if sent.HasField("expire_time") else None,
        labels=dict(sent.labels),
    )


def change_to_proto(change: GrantChange) -> grant_pb2.GrantChange:
    """Return the contract's change."""
    return grant_pb2.GrantChange(
        grant_id=change.grant_id,
        tenant_id=change.tenant_id,
        state=enums.grant_state(change.state),
        expire_time=timestamp(change.expire_time),
        change_time=timestamp(change.change_time),
        owner=change.owner,
    )


def _permission(sent: grant_pb2.ToolPermission) -> ToolPermission:
    limited = sent.HasField("max_invocations_per_run")
    return ToolPermission(
        tool=sent.tool,
        arguments=tuple(
            ArgumentConstraint(each.path, each.required, _rule(each)) for each in sent.arguments
        ),
        only_named_arguments=sent.only_named_arguments,
        max_invocations_per_run=sent.max_invocations_per_run if limited else None,
        effect=enums.tool_effect_of(sent.effect),
        reviewed_digest=sent.mcp_tool.digest,
    )


def _permission_to_proto(permission: ToolPermission, *, whole: bool) -> grant_pb2.ToolPermission:
    return grant_pb2.ToolPermission(
        tool=permission.tool,
        arguments=[_constraint_to_proto(each) for each in permission.arguments],
        only_named_arguments=permission.only_named_arguments,
        max_invocations_per_run=permission.max_invocations_per_run,
        effect=enums.tool_effect(permission.effect),
        mcp_tool=_mcp_tool(permission.mcp_tool, whole=whole) if permission.mcp_tool else None,
    )


def _mcp_tool(tool: McpTool, *, whole: bool) -> grant_pb2.McpTool:
    message = grant_pb2.McpTool(
        connection_id=tool.connection_id,
        provider=tool.provider,
        name=tool.name,
        digest=tool.digest,
    )
    if whole:
        message.description = tool.description
        message.input_schema.CopyFrom(to_struct(tool.input_schema))
    return message


def _rule(sent: grant_pb2.ArgumentConstraint) -> ArgumentRule | None:
    match sent.WhichOneof("rule"):
        case "equals":
            return Equals((from_value(sent.equals),))
        case "one_of":
            return Equals(tuple(from_value(each) for each in sent.one_of.values))
        case "glob":
            return Glob(sent.glob)
        case "range":
            bounds = sent.range
            return Range(
                bounds.min if bounds.HasField("min") else None,
                bounds.max if bounds.HasField("max") else None,
            )
        case "max_length":
            return MaxLength(sent.max_length)
        case _:
            return None


def _constraint_to_proto(constraint: ArgumentConstraint) -> grant_pb2.ArgumentConstraint:
    message = grant_pb2.ArgumentConstraint(path=constraint.path, required=constraint.required)
    match constraint.rule:
        case Equals((value,)):
            message.equals.CopyFrom(to_value(value))
        case Equals(values):
            message.one_of.values.extend(to_value(value) for value in values)
        case Glob(pattern):
            message.glob = pattern
        case Range(least, most):
            message.range.CopyFrom(grant_pb2.NumberRange(min=least, max=most))
        case MaxLength(length):
            message.max_length = length
    return message
