"""python -m services.connections: serve, callback, undelivered, migrate, or print the settings."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from services.connections.composition import list_undelivered, open_application, serve_callback
from services.connections.settings import ConnectionsSettings
from services.runtime.command import run_process, service_command

app = service_command(ConnectionsSettings, open_application, package="services.connections")


@app.command("callback")
def callback() -> None:
    """Serve the page that OAuth providers send people back to."""
    raise typer.Exit(run_process(ConnectionsSettings, serve_callback))


@app.command("undelivered")
def undelivered(
    send_again: Annotated[bool, typer.Option(help="Send them once more, under their ids.")] = False,
) -> None:
    """List the events that no webhook took within a day, the latest first."""
    work = partial(list_undelivered, send_again=send_again)
    raise typer.Exit(run_process(ConnectionsSettings, work))


if __name__ == "__main__":
    app()
