"""python -m services.connections: serve, callback, migrate the database, or print the settings."""

from __future__ import annotations

import typer

from services.connections.composition import open_application, serve_callback
from services.connections.settings import ConnectionsSettings
from services.runtime.command import run_process, service_command

app = service_command(ConnectionsSettings, open_application, package="services.connections")


@app.command("callback")
def callback() -> None:
    """Serve the page that OAuth providers send people back to."""
    raise typer.Exit(run_process(ConnectionsSettings, serve_callback))


if __name__ == "__main__":
    app()
