"""`cogni connections`: the credentials agents act with. Secrets go in and never come out."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Annotated, cast

import typer

from cogni.cli.arguments import (
    IdOption,
    JsonOption,
    LabelsOption,
    LimitOption,
    RequestIdOption,
    json_object,
    labels,
    request_id,
)
from cogni.cli.output import (
    console,
    name_of,
    pages,
    print_object,
    show,
    show_all,
    show_created,
    time_of,
)
from cogni.cli.proofs import EXIT_NOT_PROVEN
from cogni.client import Client
from cogni.client.access_log import Head, TamperedError, verify_records
from cogni.connections.v1.access_record_pb2 import AccessAction, AccessDecision, AccessRecord
from cogni.connections.v1.connection_pb2 import Connection, ConnectionState
from cogni.connections.v1.connections_service_pb2 import (
    ConnectionTool,
    CreateConnectionRequest,
    DeleteConnectionRequest,
    GetConnectionRequest,
    Installation,
    ListAccessRecordsRequest,
    ListConnectionsRequest,
    ListConnectionToolsRequest,
    ListInstallationsRequest,
    ListProvidersRequest,
    RefreshConnectionRequest,
    TestConnectionRequest,
)
from cogni.connections.v1.credential_pb2 import (
    ApiKeySecret,
    AppPasswordSecret,
    ConnectionSecret,
)
from cogni.connections.v1.provider_pb2 import AuthKind, Provider

app = typer.Typer(help="Connections: accounts agents may act with.", no_args_is_help=True)

ConnectionArgument = Annotated[str, typer.Argument(metavar="CONNECTION_ID")]
GITHUB_API = "https://api.github.com"

ApiUrlOption = Annotated[str, typer.Option(help="GitHub's API, for an Enterprise Server.")]
NameOption = Annotated[str, typer.Option("--name", help="A name for people.")]


def secret_text(what: str) -> str:
    """The secret from a prompt without echo, or from standard input when that is a pipe.

    Never from an argument: those are visible to every process of the machine.
    """
    if sys.stdin.isatty():
        return str(typer.prompt(what, hide_input=True))
    text = sys.stdin.readline().rstrip("\r\n")
    if not text:
        raise typer.BadParameter(f"no {what.lower()} on standard input")
    return text


@app.command()
def providers(as_json: JsonOption = False) -> None:
    """List what can be connected to."""

    def row(provider: Provider) -> tuple[str, ...]:
        kinds = (name_of(AuthKind, "AUTH_KIND", kind) for kind in provider.auth_kinds)
        return provider.provider_id, ", ".join(kinds), provider.description

    with Client() as client:
        show_all(
            pages(client.connections.ListProviders, ListProvidersRequest(), "providers", 1000),
            ("provider", "kinds", "description"),
            row,
            as_json,
        )


@app.command("add-app-password")
def add_app_password(
    provider: Annotated[str, typer.Argument(help="For example bluesky.")],
    identifier: Annotated[str, typer.Option(help="The account: a handle, address or id.")],
    settings: Annotated[
        str, typer.Option(help='What the provider needs, like {"service_url": "…"}.')
    ] = "{}",
    name: NameOption = "",
    label: LabelsOption = None,
    given_request_id: RequestIdOption = None,
    only_id: IdOption = False,
    as_json: JsonOption = False,
) -> None:
    """Connect an account by an app password, read from a prompt or standard input."""
    password = secret_text("App password")
    secret = ConnectionSecret(
        app_password=AppPasswordSecret(identifier=identifier, password=password)
    )
    request = CreateConnectionRequest(
        request_id=request_id(given_request_id),
        provider=provider,
        auth_kind=AuthKind.AUTH_KIND_APP_PASSWORD,
        display_name=name,
        labels=labels(label),
        settings=json_object(settings),
        secret=secret,
    )
    with Client() as client:
        created = client.connections.CreateConnection(request).connection
        show_created(created, "connection_id", only_id, as_json)


@app.command("add-api-key")
def add_api_key(
    provider: Annotated[str, typer.Argument(help="For example api_key.")],
    settings: Annotated[str, typer.Option(help="What the provider needs, as JSON.")] = "{}",
    name: NameOption = "",
    label: LabelsOption = None,
    given_request_id: RequestIdOption = None,
    only_id: IdOption = False,
    as_json: JsonOption = False,
) -> None:
    """Connect an account by an API key, read from a prompt or standard input."""
    secret = ConnectionSecret(api_key=ApiKeySecret(key=secret_text("API key")))
    request = CreateConnectionRequest(
        request_id=request_id(given_request_id),
        provider=provider,
        auth_kind=AuthKind.AUTH_KIND_API_KEY,
        display_name=name,
        labels=labels(label),
        settings=json_object(settings),
        secret=secret,
    )
    with Client() as client:
        created = client.connections.CreateConnection(request).connection
        show_created(created, "connection_id", only_id, as_json)


@app.command("add-github-app")
def add_github_app(
    app_id: Annotated[str, typer.Option(help="The app's id, or its client id.")],
    installation: Annotated[str, typer.Option(help="One of `cogni connections installations`.")],
    key: Annotated[str, typer.Option(help="The private key's name among the operator's keys.")],
    api_url: ApiUrlOption = GITHUB_API,
    name: NameOption = "",
    label: LabelsOption = None,
    given_request_id: RequestIdOption = None,
    only_id: IdOption = False,
    as_json: JsonOption = False,
) -> None:
    """Connect an installation of a GitHub App whose private key the operator keeps."""
    request = CreateConnectionRequest(
        request_id=request_id(given_request_id),
        provider="github_app",
        display_name=name,
        labels=labels(label),
    )
    request.settings.update(
        {"app_id": app_id, "private_key": key, "installation_id": installation, "api_url": api_url}
    )
    with Client() as client:
        created = client.connections.CreateConnection(request).connection
        show_created(created, "connection_id", only_id, as_json)


@app.command()
def installations(
    app_id: Annotated[str, typer.Option(help="The app's id, or its client id.")],
    key: Annotated[str, typer.Option(help="The private key's name among the operator's keys.")],
    api_url: ApiUrlOption = GITHUB_API,
    limit: LimitOption = 50,
    as_json: JsonOption = False,
) -> None:
    """List where a GitHub App is installed, as GitHub answers now."""

    def row(found: Installation) -> tuple[str, ...]:
        return (
            found.installation_id,
            found.account.name,
            "all" if found.all_repositories else "chosen",
            f"suspended {time_of(found.suspend_time)}" if found.HasField("suspend_time") else "",
            ", ".join(found.scopes),
            ", ".join(found.connection_ids),
        )

    request = ListInstallationsRequest()
    request.settings.update({"app_id": app_id, "private_key": key, "api_url": api_url})
    with Client() as client:
        show_all(
            pages(client.connections.ListInstallations, request, "installations", limit),
            ("installation", "account", "repositories", "suspended", "scopes", "connections"),
            row,
            as_json,
        )


@app.command()
def refresh(connection: ConnectionArgument, as_json: JsonOption = False) -> None:
    """Renew the credential at the provider now, also one that was suspended there and is not any
    more."""
    with Client() as client:
        request = RefreshConnectionRequest(connection_id=connection, force=True)
        show(client.connections.RefreshConnection(request).connection, as_json)


@app.command()
def get(connection: ConnectionArgument, as_json: JsonOption = False) -> None:
    """Show one connection."""
    with Client() as client:
        request = GetConnectionRequest(connection_id=connection)
        show(client.connections.GetConnection(request).connection, as_json)


@app.command("list")
def list_connections(
    provider: Annotated[str, typer.Option(help="Only this provider.")] = "",
    limit: LimitOption = 50,
    as_json: JsonOption = False,
) -> None:
    """List connections, newest first."""

    def row(connection: Connection) -> tuple[str, ...]:
        return (
            connection.connection_id,
            connection.provider,
            name_of(ConnectionState, "CONNECTION_STATE", connection.state),
            connection.display_name,
            connection.account.name,
            connection.owner,
        )

    request = ListConnectionsRequest(provider=provider)
    with Client() as client:
        show_all(
            pages(client.connections.ListConnections, request, "connections", limit),
            ("connection_id", "provider", "state", "name", "account", "owner"),
            row,
            as_json,
        )


@app.command("test")
def try_credential(connection: ConnectionArgument, as_json: JsonOption = False) -> None:
    """Try the stored credential at the provider."""
    with Client() as client:
        request = TestConnectionRequest(connection_id=connection)
        show(client.connections.TestConnection(request), as_json)


@app.command()
def tools(connection: ConnectionArgument, as_json: JsonOption = False) -> None:
    """List an MCP server's tools as it defines them now; grant them by the first column.

    What the server says of its tools is not to be trusted: read it before you grant it.
    """

    def row(tool: ConnectionTool) -> tuple[str, ...]:
        first_line = tool.description.partition("\n")[0]
        arguments = tool.input_schema.fields["properties"].struct_value.fields
        return tool.tool, ", ".join(sorted(arguments)), tool.digest[:12], first_line

    request = ListConnectionToolsRequest(connection_id=connection)
    with Client() as client:
        show_all(
            client.connections.ListConnectionTools(request).tools,
            ("tool", "arguments", "digest", "description"),
            row,
            as_json,
        )


@app.command()
def delete(connection: ConnectionArgument, as_json: JsonOption = False) -> None:
    """Revoke its leases, erase its secret and delete it."""
    with Client() as client:
        request = DeleteConnectionRequest(connection_id=connection)
        show(client.connections.DeleteConnection(request), as_json)


@app.command()
def records(
    connection: Annotated[str, typer.Option(help="Only this connection.")] = "",
    run: Annotated[str, typer.Option(help="Only this run.")] = "",
    limit: LimitOption = 50,
    as_json: JsonOption = False,
) -> None:
    """List who used which credential, and who was refused."""

    def row(record: AccessRecord) -> tuple[str, ...]:
        return (
            str(record.sequence),
            time_of(record.record_time),
            name_of(AccessAction, "ACCESS_ACTION", record.action),
            name_of(AccessDecision, "ACCESS_DECISION", record.decision),
            record.tool,
            record.run_id or record.actor,
            record.reason,
        )

    request = ListAccessRecordsRequest(connection_id=connection, run_id=run)
    with Client() as client:
        show_all(
            pages(client.connections.ListAccessRecords, request, "records", limit),
            ("sequence", "time", "action", "decision", "tool", "by", "reason"),
            row,
            as_json,
        )


@app.command("verify-records")
def verify_whole_log(
    head: Annotated[
        str, typer.Option(help="A head that an earlier check printed, kept elsewhere.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Check that no record of who used which credential was changed, removed or inserted.

    Reads the whole log and prints its head: keep it away from the database, and give it to the
    next check. Exits 4 when the log is not what was once written.
    """
    try:
        kept = Head.parse(head) if head else None
    except ValueError:
        raise typer.BadParameter("a head is SEQUENCE:HASH", param_hint="--head") from None
    request = ListAccessRecordsRequest(oldest_first=True)
    with Client() as client:
        found = pages(client.connections.ListAccessRecords, request, "records", sys.maxsize)
        try:
            end = verify_records(cast("Iterable[AccessRecord]", found), kept=kept)
        except TamperedError as error:
            sys.stderr.write(f"NOT PROVEN: {error}\n")
            raise typer.Exit(EXIT_NOT_PROVEN) from None
    if as_json:
        print_object({"records": end.sequence, "head": str(end)})
        return
    out = console()
    out.print(f"{end.sequence} records, none changed, removed or inserted")
    out.print(f"head: {end}", soft_wrap=True)
