"""`cogni grants`: what runs may do."""

from __future__ import annotations

from typing import Annotated

import typer
from google.protobuf import json_format

from cogni.cli.arguments import (
    IdOption,
    JsonOption,
    LabelsOption,
    LimitOption,
    RequestIdOption,
    after,
    amount,
    enum_value,
    json_value,
    labels,
    request_id,
)
from cogni.cli.output import name_of, pages, show, show_all, show_created, time_of
from cogni.client import Client
from cogni.executor.v1.grant_pb2 import Grant, GrantState, ToolPermission
from cogni.executor.v1.grant_service_pb2 import (
    CreateGrantRequest,
    GetGrantRequest,
    ListGrantsRequest,
    RevokeGrantRequest,
)

app = typer.Typer(help="Grants: what runs may do.", no_args_is_help=True)

GrantArgument = Annotated[str, typer.Argument(metavar="GRANT_ID")]
GRAPH_PERMISSION = "graph:execute:"


def tool_permission(text: str) -> ToolPermission:
    """A tool's name, or a ToolPermission as JSON for constraints on its arguments."""
    if not text.startswith(("{", "@")):
        return ToolPermission(tool=text)
    try:
        return json_format.ParseDict(json_value(text), ToolPermission())
    except json_format.ParseError as error:
        raise typer.BadParameter(f"not a tool permission: {error}") from None


@app.command()
def create(
    name: Annotated[str, typer.Option(help="A name for people.")] = "",
    graph: Annotated[list[str] | None, typer.Option(help="A graph that may be executed.")] = None,
    tool: Annotated[
        list[str] | None,
        typer.Option(help="A tool that may be invoked: its name, or a ToolPermission as JSON."),
    ] = None,
    connection: Annotated[
        list[str] | None, typer.Option(help="A connection whose credential may be leased.")
    ] = None,
    account: Annotated[str, typer.Option(help="The Ledger account that pays.")] = "",
    budget: Annotated[
        str | None, typer.Option(help="The most all runs together may spend, like '5 USD'.")
    ] = None,
    expires_in: Annotated[
        str | None, typer.Option(help="When it ends by itself, like 12h or 30d.")
    ] = None,
    label: LabelsOption = None,
    given_request_id: RequestIdOption = None,
    only_id: IdOption = False,
    as_json: JsonOption = False,
) -> None:
    """Create a grant. What it does not name is denied."""
    request = CreateGrantRequest(
        request_id=request_id(given_request_id),
        display_name=name,
        graphs=[f"{GRAPH_PERMISSION}{g.removeprefix(GRAPH_PERMISSION)}" for g in graph or ()],
        tools=[tool_permission(text) for text in tool or ()],
        connection_ids=connection or (),
        account_id=account,
        budget=amount(budget) if budget else None,
        expire_time=after(expires_in) if expires_in else None,
        labels=labels(label),
    )
    with Client() as client:
        show_created(client.grants.CreateGrant(request).grant, "grant_id", only_id, as_json)


@app.command()
def get(grant: GrantArgument, as_json: JsonOption = False) -> None:
    """Show one grant."""
    with Client() as client:
        show(client.grants.GetGrant(GetGrantRequest(grant_id=grant)).grant, as_json)


@app.command("list")
def list_grants(
    state: Annotated[list[str] | None, typer.Option(help="Only these states.")] = None,
    graph: Annotated[str, typer.Option(help="Only those that allow this graph.")] = "",
    limit: LimitOption = 50,
    as_json: JsonOption = False,
) -> None:
    """List grants, newest first."""
    request = ListGrantsRequest(
        states=[enum_value(GrantState, "GRANT_STATE", word) for word in state or ()],
        graph_id=graph,
    )

    def row(grant: Grant) -> tuple[str, ...]:
        return (
            grant.grant_id,
            name_of(GrantState, "GRANT_STATE", grant.state),
            grant.display_name,
            ", ".join(text.removeprefix(GRAPH_PERMISSION) for text in grant.graphs),
            ", ".join(permission.tool for permission in grant.tools),
            time_of(grant.expire_time),
        )

    with Client() as client:
        show_all(
            pages(client.grants.ListGrants, request, "grants", limit),
            ("grant_id", "state", "name", "graphs", "tools", "expires"),
            row,
            as_json,
        )


@app.command()
def revoke(
    grant: GrantArgument,
    comment: Annotated[str, typer.Option(help="Why, for the record.")] = "",
    as_json: JsonOption = False,
) -> None:
    """End a grant: when this returns, nothing more is allowed under it."""
    with Client() as client:
        request = RevokeGrantRequest(grant_id=grant, comment=comment)
        show(client.grants.RevokeGrant(request).grant, as_json)
