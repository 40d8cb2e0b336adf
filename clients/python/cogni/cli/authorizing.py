"""`cogni connections authorize`: a person agrees at the provider, and the connection is made."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import parse_qs, urlsplit

import typer

from cogni.cli import connections
from cogni.cli.arguments import (
    IdOption,
    JsonOption,
    LabelsOption,
    RequestIdOption,
    json_object,
    labels,
    request_id,
)
from cogni.cli.connections import NameOption, secret_text
from cogni.cli.output import show_created
from cogni.client import Client
from cogni.connections.v1.connections_service_pb2 import (
    BeginAuthorizationRequest,
    CompleteAuthorizationRequest,
    NewConnection,
)

app = connections.app


def completion(address: str) -> CompleteAuthorizationRequest:
    """What the provider said in the address it sent the browser to (RFC 6749 §4.1.2, RFC 9207)."""
    said = {name: values[0] for name, values in parse_qs(urlsplit(address.strip()).query).items()}
    request = CompleteAuthorizationRequest(state=said.get("state", ""), issuer=said.get("iss", ""))
    if "error" in said:
        request.error = said["error"]
    else:
        request.code = said.get("code", "")
    if not request.state or not (request.error or request.code):
        raise typer.BadParameter("that address has no answer of a provider: no state, or no code")
    return request


def browsed(url: str) -> str:
    """Where the person's browser ended after `url`; empty when they do not say."""
    typer.echo(f"Open {url}", err=True)
    return str(typer.prompt("The address the browser ended at", default="", err=True))


@app.command()
def authorize(
    provider: Annotated[str, typer.Argument(help="For example twitter; empty with --again.")] = "",
    again: Annotated[
        str, typer.Option(metavar="CONNECTION_ID", help="Authorise this connection again.")
    ] = "",
    settings: Annotated[str, typer.Option(help="What the provider needs, as JSON.")] = "{}",
    scope: Annotated[
        list[str] | None, typer.Option(help="A scope to ask for; repeat it. Default: its own.")
    ] = None,
    with_client_secret: Annotated[
        bool, typer.Option(help="Read the secret of an OAuth client of yours, from a prompt.")
    ] = False,
    redirect_uri: Annotated[
        str, typer.Option(help="Where the provider sends people. Default: the server's callback.")
    ] = "",
    name: NameOption = "",
    label: LabelsOption = None,
    given_request_id: RequestIdOption = None,
    only_id: IdOption = False,
    as_json: JsonOption = False,
) -> None:
    """Connect an account by its owner's consent in a browser.

    Prints the provider's page. Paste the address that the browser ends at, or nothing when the
    server's callback page said that it is done.
    """
    if bool(provider) == bool(again):
        raise typer.BadParameter("name a provider, or a connection with --again")
    request = BeginAuthorizationRequest(
        request_id=request_id(given_request_id), scopes=scope or (), redirect_uri=redirect_uri
    )
    if again:
        request.connection_id = again
    else:
        secret = secret_text("Client secret") if with_client_secret else ""
        request.new_connection.CopyFrom(
            NewConnection(
                provider=provider,
                display_name=name,
                labels=labels(label),
                settings=json_object(settings),
                client_secret=secret,
            )
        )
    with Client() as client:
        begun = client.connections.BeginAuthorization(request)
        address = browsed(begun.authorization_url)
        if not address:
            typer.echo("`cogni connections list` shows it once its owner has agreed.", err=True)
            return
        made = client.connections.CompleteAuthorization(completion(address)).connection
        show_created(made, "connection_id", only_id, as_json)
